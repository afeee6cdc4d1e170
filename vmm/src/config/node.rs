//! `[[node]]` entries: the guest's NUMA nodes.

use super::memory::{MIB, parse_size};
use super::{MAX_NODE, Memory, Wrong};
use crate::topology;
use schemars::JsonSchema;
use serde::Deserialize;

/// Most nodes.
const MAX_NODES: usize = 8;
/// What a node's memory is a multiple of: bytes.
const UNIT: u64 = 2 * MIB;
/// Distances (ACPI 6.5, section 5.2.17): to a node itself, to another where nothing is said, and the largest to one
/// that can be reached.
const LOCAL: u8 = 10;
const REMOTE: u8 = 20;
const FARTHEST: u8 = 254;
/// Highest APIC ID of 8 bits that is one CPU's.
const MAX_APIC_ID: u32 = 254;

/// A NUMA node of the guest.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "node")]
pub(super) struct Raw {
    /// Its part of `memory.size`: a multiple of 2M.
    memory: String,
    /// Its vCPUs; each vCPU is in one node.
    #[serde(default)]
    vcpus: Vec<u32>,
    /// The host's NUMA nodes that its memory comes from.
    #[serde(default)]
    host_nodes: Vec<u32>,
    /// To each node, in their order: 10 to itself, 11 to 254 to another.
    distances: Option<Vec<u32>>,
}

/// A NUMA node of the guest. Its number is its place in the list, and so is its memory's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Bytes: a multiple of 2 MiB, and of whole huge pages.
    pub memory: u64,
    /// Its vCPUs.
    pub vcpus: Vec<u32>,
    /// The host's NUMA nodes that its memory comes from; empty: any.
    pub host_nodes: Vec<u32>,
    /// The distance to each node: 10 to itself, 11 to 254 to another.
    pub distances: Vec<u8>,
}

impl Raw {
    /// Its memory comes from certain nodes of the host.
    pub(super) fn is_bound(&self) -> bool {
        !self.host_nodes.is_empty()
    }
}

/// Checks the nodes of a guest with `memory` and so many `vcpus`.
pub(super) fn check(raw: Vec<Raw>, memory: &Memory, vcpus: u32) -> Result<Vec<Node>, Wrong> {
    let count = raw.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > MAX_NODES {
        let message = format!("is the last of {count} nodes: a guest has {MAX_NODES} at most");
        return Err(Wrong::new(format!("node[{}]", count - 1), message));
    }
    if !memory.host_nodes.is_empty() {
        return Err(Wrong::new(
            "memory.host_nodes",
            "is for a guest without nodes: give each [[node]] its own `host_nodes`",
        ));
    }
    let nodes: Vec<Node> = (0..)
        .zip(raw)
        .map(|(index, raw)| node(index, raw, count, memory))
        .collect::<Result<_, _>>()?;
    let sum: u64 = nodes.iter().map(|node| node.memory).sum();
    if sum != memory.size {
        let message = format!(
            "is {} MiB, and that of the [[node]] entries is {} MiB together: make them the same",
            memory.size / MIB,
            sum / MIB
        );
        return Err(Wrong::new("memory.size", message));
    }
    seated(&nodes, vcpus)?;
    Ok(nodes)
}

fn node(index: usize, raw: Raw, count: usize, memory: &Memory) -> Result<Node, Wrong> {
    let key = |name: &str| format!("node[{index}].{name}");
    let wrong = |what: &str| {
        let message = format!(
            "{:?} {what}: give a multiple of 2M that is no more than memory.size, such as \"2G\"",
            raw.memory
        );
        Wrong::new(key("memory"), message)
    };
    let size = parse_size(&raw.memory).ok_or_else(|| wrong("is not a size"))?;
    if size == 0 {
        return Err(wrong("is nothing"));
    }
    if size > memory.size {
        return Err(wrong("is more than memory.size"));
    }
    if !size.is_multiple_of(UNIT) {
        return Err(wrong("is not a multiple of 2M"));
    }
    if memory.hugepages.is_some_and(|pages| !size.is_multiple_of(pages.bytes())) {
        return Err(wrong("is not a whole number of pages of memory.hugepages"));
    }
    if let Some(node) = raw.host_nodes.iter().find(|n| **n > MAX_NODE) {
        let message = format!("names node {node}: numbers go from 0 to {MAX_NODE}");
        return Err(Wrong::new(key("host_nodes"), message));
    }
    let distances = match raw.distances {
        Some(given) => distances(index, &given, count)
            .map_err(|message| Wrong::new(key("distances"), message))?,
        None => (0..count).map(|to| if to == index { LOCAL } else { REMOTE }).collect(),
    };
    Ok(Node { memory: size, vcpus: raw.vcpus, host_nodes: raw.host_nodes, distances })
}

fn distances(index: usize, given: &[u32], count: usize) -> Result<Vec<u8>, String> {
    if given.len() != count {
        return Err(format!("has {} distances: give one to each of {count} nodes", given.len()));
    }
    let one = |(to, distance): (usize, &u32)| {
        let right = if to == index { LOCAL..=LOCAL } else { LOCAL + 1..=FARTHEST };
        u8::try_from(*distance).ok().filter(|d| right.contains(d)).ok_or_else(|| {
            format!(
                "says {distance} to node {to}: it is {LOCAL} to the node itself, and {} to {FARTHEST} to another",
                LOCAL + 1
            )
        })
    };
    given.iter().enumerate().map(one).collect()
}

/// Looks whether each of `vcpus` is in one node, and whether their APIC IDs have room for all nodes.
fn seated(nodes: &[Node], vcpus: u32) -> Result<(), Wrong> {
    let mut place = vec![None; vcpus as usize];
    for (index, node) in nodes.iter().enumerate() {
        let wrong = |message| Err(Wrong::new(format!("node[{index}].vcpus"), message));
        for vcpu in &node.vcpus {
            match place.get_mut(*vcpu as usize) {
                None => {
                    return wrong(format!(
                        "names vCPU {vcpu}: with vcpus.count = {vcpus} they are 0 to {}",
                        vcpus - 1
                    ));
                }
                Some(Some(other)) => {
                    return wrong(format!(
                        "names vCPU {vcpu}, which is in node {other} already: a vCPU is in one node"
                    ));
                }
                Some(free) => *free = Some(index),
            }
        }
    }
    if let Some(vcpu) = place.iter().position(Option::is_none) {
        let message = format!("is {vcpus}, and no [[node]] names vCPU {vcpu}: put it into one");
        return Err(Wrong::new("vcpus.count", message));
    }
    if topology::seats(vcpus, nodes).iter().any(|seat| seat.apic_id > MAX_APIC_ID) {
        return Err(Wrong::new(
            "node",
            "has one node with so many vCPUs beside so many others that APIC IDs do not suffice: divide the vCPUs \
             more evenly; 32 in a node always fit",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};
    use super::*;
    use std::path::Path;

    /// A guest of 4 GiB and 4 vCPUs.
    fn parse(memory: &str, nodes: &str) -> Result<Config, ConfigError> {
        let text = format!(
            "[guest]\nname = \"g\"\nimage = \"i\"\n[memory]\nsize = \"4G\"\n{memory}\n[vcpus]\ncount = 4\n{nodes}"
        );
        Config::parse(&text, Path::new("g.toml"))
    }

    const TWO: &str = "[[node]]\nmemory = \"1G\"\nvcpus = [0, 2]\n\
        [[node]]\nmemory = \"3G\"\nvcpus = [1, 3]\n";

    #[test]
    fn nodes_have_what_the_file_says() {
        assert!(parse("", "").unwrap().nodes.is_empty());
        let nodes = parse("", TWO).unwrap().nodes;
        let first = Node {
            memory: 1 << 30,
            vcpus: vec![0, 2],
            host_nodes: vec![],
            distances: vec![10, 20],
        };
        assert_eq!((&nodes[0], nodes.len()), (&first, 2));
        assert_eq!(nodes[1].distances, [20, 10]);
        let more =
            TWO.replacen("[0, 2]", "[0, 1, 2, 3]\nhost_nodes = [1]\ndistances = [10, 31]", 1);
        let nodes = parse("", &more.replacen("[1, 3]", "[]", 1)).unwrap().nodes;
        assert_eq!((&nodes[0].host_nodes[..], &nodes[0].distances[..]), (&[1][..], &[10, 31][..]));
        assert!(nodes[1].vcpus.is_empty());
    }

    #[test]
    fn pages_of_the_pools_from_a_nodes_host_nodes_are_prefaulted() {
        let bound = TWO.replacen("[0, 2]", "[0, 2]\nhost_nodes = [0]", 1);
        assert!(parse("hugepages = \"1G\"", &bound).unwrap().memory.prefault);
        assert!(!parse("hugepages = \"1G\"", TWO).unwrap().memory.prefault);
        let text = parse("hugepages = \"1G\"\nprefault = false", &bound).unwrap_err().to_string();
        assert!(text.contains("memory.prefault"), "{text}");
    }

    #[test]
    fn each_wrong_node_names_key_and_remedy() {
        for (from, to, key, remedy) in [
            ("\"1G\"", "\"1X\"", "node[0].memory", "not a size"),
            ("\"1G\"", "\"0\"", "node[0].memory", "is nothing"),
            ("\"1G\"", "\"3M\"", "node[0].memory", "multiple of 2M"),
            ("\"3G\"", "\"9999999999G\"", "node[1].memory", "more than memory.size"),
            ("\"3G\"", "\"2G\"", "memory.size", "is 4096 MiB"),
            ("[1, 3]", "[1, 4]", "node[1].vcpus", "0 to 3"),
            ("[1, 3]", "[1, 3, 0]", "node[1].vcpus", "in node 0 already"),
            ("[1, 3]", "[1, 3, 3]", "node[1].vcpus", "in node 1 already"),
            ("[1, 3]", "[1]", "vcpus.count", "names vCPU 3"),
            ("[1, 3]", "[1, 3]\nhost_nodes = [1024]", "node[1].host_nodes", "0 to 1023"),
            ("[1, 3]", "[1, 3]\ndistances = [10]", "node[1].distances", "each of 2 nodes"),
            ("[1, 3]", "[1, 3]\ndistances = [10, 10]", "node[1].distances", "11 to 254"),
            ("[1, 3]", "[1, 3]\ndistances = [20, 11]", "node[1].distances", "10 to the node"),
            ("[1, 3]", "[1, 3]\ndistances = [255, 10]", "node[1].distances", "255 to node 0"),
        ] {
            let text = TWO.replacen(from, to, 1);
            assert_ne!(text, TWO, "{from} is in the file");
            let m = parse("", &text).unwrap_err().to_string();
            assert!(m.starts_with(&format!("g.toml: {key}: ")) && m.contains(remedy), "{m}");
        }
        let m = parse("host_nodes = [0]", TWO).unwrap_err().to_string();
        assert!(m.contains("memory.host_nodes: ") && m.contains("its own"), "{m}");
        let m = parse("hugepages = \"1G\"", &TWO.replacen("\"1G\"", "\"512M\"", 1));
        assert!(m.unwrap_err().to_string().contains("node[0].memory"));
        let nine = "[[node]]\nmemory = \"2M\"\n".repeat(9);
        let m = parse("", &nine).unwrap_err().to_string();
        assert!(m.contains("node[8]: ") && m.contains("8 at most"), "{m}");
    }

    #[test]
    fn apic_ids_have_room_for_every_node() {
        let uneven = |largest: u32| {
            let node = |vcpus: Vec<u32>| format!("[[node]]\nmemory = \"2M\"\nvcpus = {vcpus:?}\n");
            let others = (largest..largest + 7).map(|vcpu| node(vec![vcpu]));
            let text = format!(
                "[guest]\nname = \"g\"\nimage = \"i\"\n[memory]\nsize = \"16M\"\n[vcpus]\ncount = {}\n{}{}",
                largest + 7,
                node((0..largest).collect()),
                others.collect::<String>()
            );
            Config::parse(&text, Path::new("g.toml"))
        };
        assert!(uneven(32).is_ok());
        let m = uneven(33).unwrap_err().to_string();
        assert!(m.contains("more evenly"), "{m}");
    }
}
