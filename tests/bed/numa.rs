//! A stock Linux kernel on Beamline's own VMM that is told of NUMA nodes.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, run, share};
use crate::{turn, words};

/// The first node's memory ends within the second part of the RAM, above the PCI window.
const NODES: &str = "[[node]]\nmemory = \"3584M\"\nvcpus = [1]\ndistances = [10, 21]\n\
    [[node]]\nmemory = \"512M\"\nvcpus = [0]\ndistances = [31, 10]\n";

/// What the kernel says of each node, and what it did not like.
const LOOK: &str = r#"
for node in /sys/devices/system/node/node*; do
    echo "node: at=$(basename $node) cpus=$(cat $node/cpulist)" \
        "kib=$(awk '/MemTotal/ { print $4 }' $node/meminfo) distances=$(tr ' ' , <$node/distance)"
done
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    echo "package: of=$(basename $cpu) is=$(cat $cpu/topology/physical_package_id)" \
        "siblings=$(cat $cpu/topology/core_siblings_list)"
done
dmesg | grep -E 'SRAT|SLIT|not on the same node' | sed 's/^/told: /'
poweroff -f
"#;

#[test]
fn a_stock_kernel_sees_the_nodes_of_the_file() {
    let Some(bed) = Bed::ready("a_stock_kernel_sees_the_nodes_of_the_file") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let init = format!("{INIT}{LOOK}");
    let files = [
        ("linux.toml", config("4G", NODES)),
        // The outer guest has one node.
        ("elsewhere.toml", config("4G", &NODES.replacen("[0]", "[0]\nhost_nodes = [7]", 1))),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    share(&bed, &folder.path().join("share"), &init, &[], &files);
    let said = run(
        &bed,
        folder.path(),
        "beamline run /share/elsewhere.toml --check 2>&1 | sed 's/^/check: /'\n\
         beamline run /share/linux.toml\n\
         echo ended: status=$?\n",
    );
    let refused = |line: &&String| line.starts_with("check: ") && line.contains("host_nodes");
    let refused = said.iter().filter(refused).find(|line| line.contains("correct"));
    assert!(refused.is_some_and(|line| line.contains("`node[1].host_nodes`")), "{said:#?}");

    let nodes = inner(&said, "node: ");
    let nodes: Vec<_> = nodes.iter().map(|line| words(line)).collect();
    let seen: Vec<_> = nodes.iter().map(|w| (w["at"], w["cpus"], w["distances"])).collect();
    assert_eq!(seen, [("node0", "1", "10,21"), ("node1", "0", "31,10")], "{said:#?}");
    // The kernel keeps some of it for itself, above all of the first node's.
    for (node, mib) in nodes.iter().zip([3584, 512]) {
        let kib: u64 = node["kib"].parse().unwrap();
        assert!((mib * 1024 * 8 / 10..=mib * 1024).contains(&kib), "{nodes:#?}");
    }
    // The vCPU that boots is in the second node, and its package is the first.
    let packages = inner(&said, "package: ");
    assert_eq!(packages, ["of=cpu0 is=0 siblings=0", "of=cpu1 is=1 siblings=1"], "{said:#?}");
    let told = inner(&said, "told: ");
    assert!(told.iter().any(|line| line.contains("SRAT")), "{said:#?}");
    assert!(!told.iter().any(|line| line.contains("not on the same node")), "{told:#?}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
