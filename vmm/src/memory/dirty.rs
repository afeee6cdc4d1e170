//! Which pages of the RAM the guest has written since the last look: KVM's dirty log, for live migration to come.
//!
//! ```text
//!        start                    take: what was written since the last look
//!  Off ─────────► Logging ──────────────────────────────────────────────────► Logging
//!   ▲               │ stop, or KVM refused a look
//!   └───────────────┘
//! ```
//!
//! KVM knows what vCPUs write, and what it writes itself on their behalf. It does not see what anybody writes into the
//! shared memfd: the functions' servers, vhost, and this process' own devices, such as a disk that fills the guest's
//! buffers. Whoever copies a guest has to ask those as well, or to quiet them. Only RAM is logged, no page that a
//! function maps and no flash.

use super::Part;
use crate::Gpa;
use crate::platform::{Platform, Slot};
use vmm_sys_util::errno;

/// Bytes of a page, as KVM logs them: 4096, also where the RAM is of huge pages.
pub const PAGE: u64 = 4096;

/// Why it is not known what the guest writes.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// There is no guest any more.
    #[error("the guest has ended: nothing of it is logged")]
    Ended,
    /// Somebody logs already.
    #[error(
        "the guest's writes are logged already, and a look takes the pages out of the log: stop that log first"
    )]
    Started,
    /// Nobody logs.
    #[error("the guest's writes are not logged: start the log first")]
    Off,
    /// KVM refused something. Nothing is logged from now on, and what the log had is lost.
    #[error(
        "KVM refused to {what} for {size:#x} bytes of guest RAM at {at:#x}, and nothing is logged now: it takes a KVM \
         with KVM_MEM_LOG_DIRTY_PAGES; all pages may have been written"
    )]
    Refused {
        /// What.
        what: &'static str,
        /// Guest-physical address of the memory slot.
        at: u64,
        /// Its bytes.
        size: u64,
        /// Why.
        source: errno::Error,
    },
}

/// The pages that were written between two looks, as a bitmap for each part of the RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenPages {
    parts: Vec<(Part, Vec<u64>)>,
}

impl WrittenPages {
    /// How many pages of [`PAGE`] bytes.
    pub fn count(&self) -> u64 {
        let words = self.parts.iter().flat_map(|(_, bitmap)| bitmap);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// The address of each, from the lowest on.
    pub fn iter(&self) -> impl Iterator<Item = Gpa> + '_ {
        self.parts.iter().flat_map(|(part, bitmap)| {
            let at = part.at.0;
            bits(bitmap).map(move |page| Gpa(at + page * PAGE))
        })
    }

    /// The parts of the RAM from the lowest on, each with its bitmap: bit `n % 64` of word `n / 64` is the part's page
    /// number `n`.
    pub fn bitmaps(&self) -> impl Iterator<Item = (Part, &[u64])> + '_ {
        self.parts.iter().map(|(part, bitmap)| (*part, &**bitmap))
    }
}

/// The numbers of the bits that are set, from the lowest on.
fn bits(bitmap: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0u64..).zip(bitmap).flat_map(|(index, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| u64::from(left.trailing_zeros()))?;
            left &= left - 1;
            Some(index * 64 + bit)
        })
    })
}

/// The log of one guest's RAM.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    /// The RAM's parts, from the lowest on, and KVM's slot of each.
    ram: Vec<(Part, Slot)>,
    on: bool,
}

impl DirtyLog {
    /// Logs nothing yet.
    pub(crate) fn new(ram: Vec<(Part, Slot)>) -> Self {
        Self { ram, on: false }
    }

    /// Logs what is written from now on.
    pub(crate) fn start(&mut self, platform: &mut Platform) -> Result<(), DirtyError> {
        if self.on {
            return Err(DirtyError::Started);
        }
        let started = self.ram.iter().try_for_each(|(part, slot)| {
            platform.log_writes(slot, true).map_err(refused("log writes", part))
        });
        self.on = true;
        started.inspect_err(|_| self.give_up(platform))
    }

    /// What was written since the last look, or since the start. The log is empty then, and goes on.
    pub(crate) fn take(&mut self, platform: &mut Platform) -> Result<WrittenPages, DirtyError> {
        if !self.on {
            return Err(DirtyError::Off);
        }
        let parts = self.ram.iter().map(|(part, slot)| {
            let bitmap = platform.take_writes(slot);
            Ok((*part, bitmap.map_err(refused("tell what was written", part))?))
        });
        match parts.collect() {
            Ok(parts) => Ok(WrittenPages { parts }),
            // What was taken of the parts before is in no log any more.
            Err(error) => {
                self.give_up(platform);
                Err(error)
            }
        }
    }

    /// Logs nothing any more, and forgets what was written.
    pub(crate) fn stop(&mut self, platform: &mut Platform) -> Result<(), DirtyError> {
        if !self.on {
            return Err(DirtyError::Off);
        }
        self.on = false;
        let mut stopped = Ok(());
        for (part, slot) in &self.ram {
            let result = platform.log_writes(slot, false);
            stopped = stopped.and(result.map_err(refused("stop logging", part)));
        }
        stopped
    }

    /// The error that led here says it.
    fn give_up(&mut self, platform: &mut Platform) {
        let _ = self.stop(platform);
    }
}

fn refused(what: &'static str, part: &Part) -> impl FnOnce(errno::Error) -> DirtyError {
    let (at, size) = (part.at.0, part.size);
    move |source| DirtyError::Refused { what, at, size, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_in_the_order_of_their_addresses() {
        let part = |at, offset| Part { at: Gpa(at), size: 128 * PAGE, offset };
        let parts = vec![
            (part(0, 0), vec![1 | 1 << 63, 1 << 1]),
            (part(1 << 32, 128 * PAGE), vec![0, 1 << 63]),
        ];
        let written = WrittenPages { parts };
        let pages: Vec<u64> = written.iter().map(|at| at.0).collect();
        assert_eq!(pages, [0, 63 * PAGE, 65 * PAGE, (1 << 32) + 127 * PAGE]);
        assert_eq!(written.count(), 4);
        assert_eq!(written.bitmaps().map(|(part, _)| part.at.0).collect::<Vec<_>>(), [0, 1 << 32]);
    }
}
