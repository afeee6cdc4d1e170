//! A resource's guest memory: pieces that lie anywhere, read as one range of bytes.

use super::{Guest, Refused};
use crate::memory::Gpa;
use beamline_abi::virtio_gpu::MemEntry;
use zerocopy::{FromZeros, IntoBytes};

/// Most pieces of one resource: an image of 4096 × 4096 pixels whose pages all lie apart.
pub(super) const MAX_PIECES: u32 = 16_384;
/// Entries of the driver's list that are copied at once.
const COPIED: usize = 64;
/// What it costs to find and read a piece, in bytes copied.
const PIECE_COST: u64 = 128;
/// Most bytes of all pieces: twice the largest image.
const MAX_BYTES: u64 = 2 << 30;
/// Bytes of a piece that may lie in a mapping of their own, and what it costs to look at that.
const PAGE: u64 = 4096;
const PAGE_COST: u64 = 32;

/// A piece, which ends at byte `end` of all of them together.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    at: Gpa,
}

/// The pieces, in their order; each in reach of the device when they were told.
#[derive(Debug, Default)]
pub(super) struct Backing {
    pieces: Box<[Piece]>,
}

impl Backing {
    /// Copies the driver's list of `count` entries, which starts at `from` of its request.
    pub(super) fn take(
        guest: &dyn Guest,
        from: u64,
        count: u32,
        cost: &mut u64,
    ) -> Result<Self, Refused> {
        if count == 0 || count > MAX_PIECES {
            return Err(Refused::Parameter);
        }
        let mut pieces = Vec::with_capacity(count as usize);
        let mut entries = [MemEntry::new_zeroed(); COPIED];
        let (mut at, mut left, mut end) = (from, count as usize, 0);
        while left > 0 {
            let now = &mut entries[..left.min(COPIED)];
            guest.request(at, now.as_mut_bytes())?;
            for entry in now.iter() {
                let (start, len) = (Gpa(entry.addr), u64::from(entry.length));
                if len == 0 || start.checked_add(len).is_none() {
                    return Err(Refused::Parameter);
                }
                // At most 2^14 pieces of less than 2^32 bytes.
                end += len;
                if end > MAX_BYTES {
                    return Err(Refused::Parameter);
                }
                *cost += PIECE_COST + len / PAGE * PAGE_COST;
                guest.check(start, len)?;
                pieces.push(Piece { end, at: start });
            }
            at += size_of_val(now) as u64;
            left -= now.len();
        }
        Ok(Self { pieces: pieces.into() })
    }

    /// Bytes of the host's memory that the list of `count` pieces takes.
    pub(super) fn charge(count: u32) -> u64 {
        u64::from(count) * size_of::<Piece>() as u64
    }

    /// The same of this one.
    pub(super) fn charged(&self) -> u64 {
        size_of_val(&*self.pieces) as u64
    }

    /// Bytes of all pieces.
    pub(super) fn len(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.end)
    }

    /// Copies `out.len()` bytes from `offset` on.
    pub(super) fn read(
        &self,
        guest: &dyn Guest,
        offset: u64,
        out: &mut [u8],
        cost: &mut u64,
    ) -> Result<(), Refused> {
        let have = self.len();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > have) {
            return Err(Refused::Parameter);
        }
        *cost += out.len() as u64;
        let first = self.pieces.partition_point(|piece| piece.end <= offset);
        let mut start = first.checked_sub(1).map_or(0, |before| self.pieces[before].end);
        let mut skip = offset - start;
        let mut rest = out;
        for piece in &self.pieces[first..] {
            if rest.is_empty() {
                break;
            }
            let part = ((piece.end - start - skip) as usize).min(rest.len());
            let (now, later) = rest.split_at_mut(part);
            // The piece was checked not to wrap, so neither does a place in it.
            guest.memory(Gpa(piece.at.0 + skip), now)?;
            *cost += PIECE_COST;
            (rest, start, skip) = (later, piece.end, 0);
        }
        Ok(())
    }
}
