//! What the guest's PCI bus shows of a slice.

use crate::bed::Bed;
use crate::guest::{Guest, Iommu, Machine};
use crate::host::Host;
use crate::{turn, words};
use beamline_abi::pacer;

/// Each function's identity and how it can be reset, and the BARs as start, end and flags.
const WALK: &str = r#"
cd /sys/bus/pci/devices
for function in *; do
    echo "pci: at=$function vendor=$(cat $function/vendor) device=$(cat $function/device)" \
        "class=$(cat $function/class) subsystem=$(cat $function/subsystem_vendor)" \
        "reset=$(cat $function/reset_method 2>/dev/null)"
    bar=0
    head -n 6 $function/resource | while read -r start end flags; do
        echo "bar: at=$function index=$bar start=$start end=$end flags=$flags"
        bar=$((bar + 1))
    done
done
"#;
/// `IORESOURCE_MEM`, `_PREFETCH`, `_MEM_64` (linux/ioport.h).
const FLAGS: [(u64, &str); 3] =
    [(0x200, "memory"), (0x2000, "prefetchable"), (0x10_0000, "64-bit")];

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// Index, bytes and kind of each BAR that the function at `at` has.
fn bars(said: &[String], at: &str) -> Vec<(u64, u64, Vec<&'static str>)> {
    said.iter()
        .filter(|line| line.starts_with("bar: "))
        .map(|line| words(line))
        .filter(|bar| bar["at"] == at && hex(bar["end"]) != 0)
        .map(|bar| {
            let kind = FLAGS.into_iter().filter(|(bit, _)| hex(bar["flags"]) & bit != 0);
            let size = hex(bar["end"]) - hex(bar["start"]) + 1;
            (bar["index"].parse().unwrap(), size, kind.map(|(_, name)| name).collect())
        })
        .collect()
}

#[test]
fn qemu_attaches_both_functions_and_linux_sees_them() {
    let Some(bed) = Bed::ready("qemu_attaches_both_functions_and_linux_sees_them") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = Host::start(&bed, folder.path(), 60);
    let machine = Machine {
        script: WALK,
        programs: &[],
        devices: host.devices(),
        iommu: Iommu::None,
        words: "",
    };
    let said = Guest::boot(&bed, folder.path(), &machine).finish();

    let function = |at| {
        let line = said.iter().find(|l| l.starts_with(&format!("pci: at=0000:00:{at}.0 ")));
        words(line.unwrap_or_else(|| panic!("nothing is at {at}: {said:#?}")))
    };
    let found = function("04");
    assert_eq!(hex(found["vendor"]), u64::from(pacer::VENDOR_ID));
    assert_eq!(hex(found["device"]), u64::from(pacer::DEVICE_ID));
    assert_eq!(hex(found["class"]), u64::from(pacer::CLASS));
    assert_eq!(hex(found["subsystem"]), u64::from(pacer::VENDOR_ID));
    assert_eq!(found["reset"], "flr");
    let memory = vec!["memory", "prefetchable", "64-bit"];
    assert_eq!(
        bars(&said, "0000:00:04.0"),
        [
            (0, pacer::BAR0_SIZE, vec!["memory", "64-bit"]),
            (2, pacer::BAR2_SIZE, memory.clone()),
            (4, pacer::BAR4_SIZE, memory),
        ]
    );

    // virtio 1.3, section 4.1.2: vendor 0x1af4, device 0x1040 and the device type, 16 for a GPU.
    let found = function("05");
    assert_eq!((hex(found["vendor"]), hex(found["device"])), (0x1af4, 0x1050));
    assert_eq!(hex(found["class"]) >> 16, 0x03, "not a display controller");
    assert_eq!(found["reset"], "flr");
    let bars = bars(&said, "0000:00:05.0");
    assert!(bars.iter().any(|(_, _, kind)| kind.contains(&"64-bit")), "{bars:?}");
    host.stop();
}
