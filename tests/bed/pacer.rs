//! The pacer, driven from the guest's user space by the guest driver, behind an IOMMU.

use crate::bed::Bed;
use crate::guest::{Guest, Iommu, Machine};
use crate::host::Host;
use crate::witness::Witness;
use crate::{turn, words};
use std::collections::HashMap;
use std::path::Path;

/// How many vblanks are watched.
const VBLANKS: u64 = 300;
/// How often a run is repeated where the machine did not let the guest keep up.
const TRIES: u32 = 6;

/// [`BIND`], to be part of a longer script.
macro_rules! bind {
    () => {
        r"
for module in virtio_pci virtio_iommu vfio-pci vfio_iommu_type1; do modprobe $module || exit; done
at=0000:00:04.0
echo vfio-pci >/sys/bus/pci/devices/$at/driver_override
echo $at >/sys/bus/pci/drivers_probe
"
    };
}

/// Hands the function at slot 4 to user space.
pub(crate) const BIND: &str = bind!();

/// Watches vblanks without end.
pub(crate) const ENDLESS: &str = concat!(bind!(), "/beamline-pacer-probe $at 1000000 600\n");

/// Watches vblanks until a run lost none.
fn watch() -> String {
    format!(
        r"
try=0
while [ $try -lt {TRIES} ]; do
    /beamline-pacer-probe $at {VBLANKS} 60 >/probe.txt || {{ cat /probe.txt; exit 1; }}
    cat /probe.txt
    if grep -q ' missed=0 ' /probe.txt; then exit 0; fi
    try=$((try + 1))
done
"
    )
}

fn every_vblank_is_seen_at(test: &str, hz: u32, iommu: Iommu) {
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = Host::start(&bed, folder.path(), hz);
    let script = BIND.to_owned() + &watch();
    let witness = Witness::start();
    let guest = boot_behind(&bed, &host, folder.path(), &script, iommu);
    witness.worst();
    let said = guest.finish();
    println!("  idle threads were held up for {:?} at most", witness.worst());
    judge(&said, hz);
    host.stop();
}

fn boot(bed: &Bed, host: &Host, folder: &Path, script: &str) -> Guest {
    boot_behind(bed, host, folder, script, Iommu::Intel)
}

fn boot_behind(bed: &Bed, host: &Host, folder: &Path, script: &str, iommu: Iommu) -> Guest {
    let machine = Machine {
        script,
        programs: &["beamline-pacer-probe"],
        devices: host.devices(),
        iommu,
        words: "",
    };
    Guest::boot(bed, folder, &machine)
}

/// That the last run lost nothing.
fn judge(said: &[String], hz: u32) {
    let runs: Vec<&String> = said.iter().filter(|l| l.starts_with("probe: slice=")).collect();
    let best = words(runs.last().unwrap_or_else(|| panic!("the probe said nothing: {said:#?}")));
    let number = |name: &str| best[name].parse::<u64>().unwrap();

    // The numbers without a gap.
    assert_eq!(number("missed"), 0, "vblanks were lost in each of {TRIES} runs: {runs:#?}");
    assert_eq!(number("last") - number("first") + 1, VBLANKS);
    on_grid(&best, VBLANKS, hz);
}

/// That a run saw as many vblanks as it should, each with an interrupt of its own, and on the grid of the refresh
/// rate, which does not drift.
pub(crate) fn on_grid(run: &HashMap<&str, &str>, vblanks: u64, hz: u32) {
    let number = |name: &str| run[name].parse::<u64>().unwrap();
    assert_eq!(number("seen"), vblanks);
    assert!(number("interrupts") >= vblanks, "interrupts are missing: {run:#?}");
    assert_eq!(number("markers_dropped"), 0);
    let (num, den) = run["period"].split_once('/').unwrap();
    let (num, den): (u64, u64) = (num.parse().unwrap(), den.parse().unwrap());
    assert_eq!(num * u64::from(hz), den * 1_000_000_000);
    let at = |seq: u64| (u128::from(seq) * u128::from(num) / u128::from(den)) as u64;
    let expected = at(number("last")) - at(number("first"));
    assert_eq!(number("last_ns") - number("first_ns"), expected);
}

#[test]
fn no_vblank_is_lost_at_60_hz() {
    every_vblank_is_seen_at("no_vblank_is_lost_at_60_hz", 60, Iommu::Intel);
}

#[test]
fn no_vblank_is_lost_at_90_hz() {
    every_vblank_is_seen_at("no_vblank_is_lost_at_90_hz", 90, Iommu::Intel);
}

#[test]
fn no_vblank_is_lost_behind_virtio_iommu() {
    every_vblank_is_seen_at("no_vblank_is_lost_behind_virtio_iommu", 60, Iommu::Virtio);
}

/// A QEMU that dies with vblanks on, and one that comes after it and resets the function.
#[test]
fn the_next_guest_is_paced_where_the_last_one_died() {
    const TEST: &str = "the_next_guest_is_paced_where_the_last_one_died";
    let Some(bed) = Bed::ready(TEST) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = Host::start(&bed, folder.path(), 60);
    let mut guest = boot(&bed, &host, folder.path(), ENDLESS);
    guest.until("probe: paced from ");
    // Kills it.
    drop(guest);

    let reset = BIND.to_owned()
        + "/beamline-pacer-probe $at 10 60 || exit\n\
           echo 1 >/sys/bus/pci/devices/$at/reset || exit\n"
        + &watch();
    let said = boot(&bed, &host, folder.path(), &reset).finish();
    judge(&said, 60);
    host.stop();
}
