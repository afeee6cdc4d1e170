//! A stock Linux kernel on Beamline's own VMM that finds Microsoft's hypervisor in KVM's place.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, run, share};
use crate::{turn, words};

/// What the kernel found, and two sleeps by its timers.
const LOOK: &str = r#"
dmesg | grep -E 'Hypervisor detected|Hyper-V' | sed 's/^/found: /'
echo "clocks: has=$(tr ' ' , </sys/devices/system/clocksource/clocksource0/available_clocksource)" \
    "current=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
for cpu in 0 1; do
    echo "timer: of=$cpu is=$(tr ' ' _ </sys/devices/system/clockevents/clockevent$cpu/current_device)"
done
for clock in hyperv_clocksource_tsc_page hyperv_clocksource_msr; do
    echo $clock >/sys/devices/system/clocksource/clocksource0/current_clocksource
    before=$(cut -d ' ' -f 1 /proc/uptime)
    sleep 1
    echo "slept: clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" \
        "before=$before after=$(cut -d ' ' -f 1 /proc/uptime)"
done
sed 's/^/after: /' /proc/interrupts
poweroff -f
"#;

#[test]
fn a_stock_kernel_takes_its_time_from_hyper_v() {
    let Some(bed) = Bed::ready("a_stock_kernel_takes_its_time_from_hyper_v") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let init = format!("{INIT}{LOOK}");
    // Its own key of the section that `config` ends with.
    let config = config("256M", "hyperv = true\n");
    share(&bed, &folder.path().join("share"), &init, &[], &[("linux.toml", &config)]);
    let said = run(&bed, folder.path(), "beamline run /share/linux.toml\necho ended: status=$?\n");

    let found = inner(&said, "found: ");
    let detected = |line: &&str| line.contains("Hypervisor detected: Microsoft Hyper-V");
    assert!(found.iter().any(detected), "{said:#?}");
    let up = inner(&said, "up: ");
    let up = words(up.first().expect("the inner guest's user space says that it is up"));
    assert_eq!(up["cpus"], "2");
    let clocks = inner(&said, "clocks: ");
    let clocks = words(clocks.first().expect("it has clocks"));
    for clock in ["hyperv_clocksource_tsc_page", "hyperv_clocksource_msr"] {
        assert!(clocks["has"].split(',').any(|has| has == clock), "{clocks:?}");
    }
    // A second went by on each of them, by its own account.
    let slept = inner(&said, "slept: ");
    let slept: Vec<_> = slept.iter().map(|line| words(line)).collect();
    let names: Vec<_> = slept.iter().map(|w| w["clock"]).collect();
    assert_eq!(names, ["hyperv_clocksource_tsc_page", "hyperv_clocksource_msr"], "{said:#?}");
    for one in &slept {
        let [before, after] = ["before", "after"].map(|key| one[key].parse::<f64>().unwrap());
        assert!(after - before >= 0.98, "{one:?}");
    }
    // Each CPU's timer is synthetic, and has interrupted.
    let timers = inner(&said, "after: ");
    let timers = timers.iter().find(|line| line.trim_start().starts_with("HVS:"));
    let timers = timers.unwrap_or_else(|| panic!("no synthetic timers: {said:#?}"));
    let counts = timers.split_whitespace().skip(1).take(2);
    assert!(counts.map(|n| n.parse::<u64>().unwrap()).all(|n| n > 0), "{timers}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
