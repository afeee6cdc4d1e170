//! Frames from a Linux guest's user space: the guest driver drives pacer and vGPU over vfio-pci.

use crate::bed::Bed;
use crate::guest::{Guest, Iommu, Machine};
use crate::host::Host;
use crate::{turn, words};

/// Draws a minute's worth at most; each frame has three jobs.
const SCRIPT: &str = r"
modprobe vfio-pci && modprobe vfio_iommu_type1 || exit
for at in 0000:00:04.0 0000:00:05.0; do
    if [ -e /sys/bus/pci/devices/$at/driver ]; then
        echo $at >/sys/bus/pci/devices/$at/driver/unbind
    fi
    echo vfio-pci >/sys/bus/pci/devices/$at/driver_override
    echo $at >/sys/bus/pci/drivers_probe
done
/beamline-frames-probe 0000:00:04.0 0000:00:05.0 60 scene=game frames=120
";

#[test]
fn a_linux_guest_draws_frames_through_qemu() {
    let Some(bed) = Bed::ready("a_linux_guest_draws_frames_through_qemu") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = Host::start(&bed, folder.path(), 60);
    let machine = Machine {
        script: SCRIPT,
        programs: &["beamline-frames-probe"],
        devices: host.devices(),
        iommu: Iommu::Intel,
        words: "",
    };
    let said = Guest::boot(&bed, folder.path(), &machine).finish();
    let done = said.iter().find(|line| line.starts_with("frames: slice="));
    let done = words(done.unwrap_or_else(|| panic!("no frames: {said:#?}")));
    assert_eq!((done["submitted"], done["completed"], done["failed"]), ("120", "120", "0"));
    // Answers come by interrupt; one may stand for several.
    assert!(done["interrupts"].parse::<u64>().unwrap() > 0);
    host.stop();
}
