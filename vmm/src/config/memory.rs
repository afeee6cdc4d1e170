//! Section `[memory]`: how much RAM the guest has.

use super::Wrong;
use schemars::JsonSchema;
use serde::Deserialize;

const MIB: u64 = 1 << 20;
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
}

/// The guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes: a multiple of 2 MiB, from 2 MiB to 256 GiB.
    pub size: u64,
}

impl Raw {
    pub(super) fn check(self) -> Result<Memory, Wrong> {
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
        Ok(Memory { size })
    }
}

/// `"32M"` → bytes; suffixes K, M and G are powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
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
