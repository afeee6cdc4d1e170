//! A stock Linux kernel on more vCPUs than most machines give a guest.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, run, share};
use crate::{turn, words};
use std::collections::{BTreeSet, HashMap};

/// How many it has, on the one processor in software.
const CPUS: usize = 16;

/// From each CPU something is started on the next one, which says where it runs (proc_pid_stat(5), field 39).
const PASS: &str = r#"
echo "cpus: online=$(cat /sys/devices/system/cpu/online) present=$(cat /sys/devices/system/cpu/present)"
count() { grep -E '(LOC|RES|CAL):' /proc/interrupts | sed "s/^ */$1: /"; }
count before
last=$(($(nproc) - 1))
for cpu in $(seq 0 $last); do
    next=$(((cpu + 1) % (last + 1)))
    taskset -c $cpu sh -c "taskset -c $next sh -c 'read -r stat </proc/self/stat; set -- \${stat##*) }; \
        shift 36; echo ran: from=$cpu to=$next on=\$1'"
done
count after
poweroff -f
"#;

/// What each CPU counted by then: by the line's name in `/proc/interrupts`.
fn counts(said: &[String], when: &str) -> HashMap<String, Vec<u64>> {
    let count = |line: &&str| {
        let (name, rest) = line.split_once(':')?;
        let all = rest.split_whitespace().take(CPUS).map(|n| n.parse().unwrap()).collect();
        Some((name.to_owned(), all))
    };
    inner(said, &format!("{when}: ")).iter().filter_map(count).collect()
}

#[test]
fn a_stock_kernel_uses_sixteen_cpus() {
    let Some(bed) = Bed::ready("a_stock_kernel_uses_sixteen_cpus") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = config("512M", "").replace("count = 2", &format!("count = {CPUS}"));
    let init = format!("{INIT}{PASS}");
    share(&bed, &folder.path().join("share"), &init, &[], &[("linux.toml", &config)]);
    let said = run(&bed, folder.path(), "beamline run /share/linux.toml\necho ended: status=$?\n");

    let all = format!("0-{}", CPUS - 1);
    let cpus = inner(&said, "cpus: ");
    let cpus = words(cpus.first().expect("the inner guest's user space says which CPUs it has"));
    assert_eq!((cpus["online"], cpus["present"]), (&*all, &*all));
    let ids: BTreeSet<usize> =
        inner(&said, "cpu: ").iter().map(|l| words(l)["apicid"].parse().unwrap()).collect();
    assert_eq!(ids, (0..CPUS).collect());

    // Each ran what the one before it started there.
    let ran: Vec<[usize; 3]> = inner(&said, "ran: ")
        .into_iter()
        .map(|line| ["from", "to", "on"].map(|name| words(line)[name].parse().unwrap()))
        .collect();
    let expected: Vec<_> = (0..CPUS).map(|n| [n, (n + 1) % CPUS, (n + 1) % CPUS]).collect();
    assert_eq!(ran, expected);
    // Each has a timer, and meanwhile each was interrupted by another.
    let (before, after) = (counts(&said, "before"), counts(&said, "after"));
    assert!(after["LOC"].iter().all(|n| *n > 0), "{:?}", after["LOC"]);
    let woken = |cpu: usize| {
        let of = |all: &HashMap<String, Vec<u64>>| all["RES"][cpu] + all["CAL"][cpu];
        of(&after) - of(&before)
    };
    let woken: Vec<u64> = (0..CPUS).map(woken).collect();
    assert!(woken.iter().all(|n| *n > 0), "{woken:?}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
