//! Section `[memory]`: how much RAM the guest has, and of what.

use super::Wrong;
use schemars::JsonSchema;
use serde::Deserialize;

pub(super) const MIB: u64 = 1 << 20;
/// Smallest guest: bytes.
const MIN: u64 = 2 * MIB;
/// Half of the addresses that the smallest hardware has: the rest is left to large BARs.
const MAX: u64 = 256 << 30;

/// The guest's RAM.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "memory")]
pub(super) struct Raw {
    /// A multiple of 2M from "2M" to "256G".
    size: String,
    hugepages: Option<String>,
    prefault: Option<bool>,
    host_nodes: Option<Vec<u32>>,
}

/// Highest NUMA node of the host that can be named (Linux's `MAX_NUMNODES` is 1024 at most).
pub const MAX_NODE: u32 = 1023;

/// Pages larger than the ordinary 4 KiB, which the host has reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// 2 MiB each.
    TwoMib,
    /// 1 GiB each.
    OneGib,
}

impl HugePages {
    /// Bytes of one.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::TwoMib => 2 << 20,
            Self::OneGib => 1 << 30,
        }
    }
}

/// The guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes: a multiple of 2 MiB, from 2 MiB to 256 GiB, and of whole huge pages.
    pub size: u64,
    /// What it is made of; `None`: ordinary pages.
    pub hugepages: Option<HugePages>,
    /// The kernel makes huge pages of ordinary ones where it can.
    pub transparent: bool,
    /// All of it is there before the guest runs.
    pub prefault: bool,
    /// The host's NUMA nodes that it comes from; empty: any.
    pub host_nodes: Vec<u32>,
}

impl Raw {
    /// `bound` says that the guest's own nodes name nodes of the host.
    pub(super) fn check(self, bound: bool) -> Result<Memory, Wrong> {
        let wrong = |what: &str| {
            Wrong::new(
                "memory.size",
                format!(
                    "{:?} {what}: give a multiple of 2M from \"2M\" to \"256G\", such as \"32M\"",
                    self.size
                ),
            )
        };
        let size = parse_size(&self.size).ok_or_else(|| wrong("is not a size"))?;
        if size < MIN {
            return Err(wrong("is too small"));
        }
        if size > MAX {
            return Err(wrong("is too large"));
        }
        if !size.is_multiple_of(MIN) {
            return Err(wrong("is not a multiple of 2M"));
        }
        let (hugepages, transparent) = match self.hugepages.as_deref() {
            None => (None, false),
            Some("2M") => (Some(HugePages::TwoMib), false),
            Some("1G") => (Some(HugePages::OneGib), false),
            Some("transparent") => (None, true),
            Some(other) => {
                let message = format!(
                    "{other:?} is no kind of huge pages: give \"2M\", \"1G\" or \"transparent\""
                );
                return Err(Wrong::new("memory.hugepages", message));
            }
        };
        if hugepages.is_some_and(|pages| !size.is_multiple_of(pages.bytes())) {
            return Err(wrong("is not a whole number of pages of memory.hugepages"));
        }
        let host_nodes = self.host_nodes.unwrap_or_default();
        if let Some(node) = host_nodes.iter().find(|n| **n > MAX_NODE) {
            let message = format!("names node {node}: numbers go from 0 to {MAX_NODE}");
            return Err(Wrong::new("memory.host_nodes", message));
        }
        // A node's own huge pages cannot be reserved but by taking them.
        let taken = hugepages.is_some() && (bound || !host_nodes.is_empty());
        if taken && self.prefault == Some(false) {
            return Err(Wrong::new(
                "memory.prefault",
                "is false, and hugepages with host_nodes are: a node that runs out of them would end the guest while it \
                 runs; set it to true",
            ));
        }
        let prefault = self.prefault.unwrap_or(taken);
        Ok(Memory { size, hugepages, transparent, prefault, host_nodes })
    }
}

/// `"32M"` → bytes; suffixes K, M and G are powers of 1024.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
