//! Stage 6, fence: from backend to the used ring. What is unfinished, by number, and how it is answered.

use beamline_abi::Reason;
use beamline_abi::virtio_gpu::cmd;

/// A fixed table of unfinished things, named by their place.
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: (0..capacity).map(|_| None).collect(),
            free: (0..capacity as u32).rev().collect(),
        }
    }
    pub(super) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }
    /// The new entry's number, or `None` where the table is full.
    pub(super) fn insert(&mut self, value: T) -> Option<u32> {
        let n = self.free.pop()?;
        self.entries[n as usize] = Some(value);
        Some(n)
    }
    pub(super) fn get(&self, n: u32) -> Option<&T> {
        self.entries.get(n as usize)?.as_ref()
    }
    pub(super) fn get_mut(&mut self, n: u32) -> Option<&mut T> {
        self.entries.get_mut(n as usize)?.as_mut()
    }
    pub(super) fn remove(&mut self, n: u32) -> Option<T> {
        let value = self.entries.get_mut(n as usize)?.take()?;
        self.free.push(n);
        Some(value)
    }
}

/// The response type for a request that is over.
pub const fn outcome(result: Result<(), Reason>) -> u32 {
    match result {
        Ok(()) => cmd::RESP_OK_NODATA,
        Err(reason) => response_type(reason),
    }
}

/// The closest of virtio-gpu's error types; the pacer's reason register has the exact one.
pub const fn response_type(reason: Reason) -> u32 {
    match reason {
        Reason::BadId => cmd::RESP_ERR_INVALID_RESOURCE_ID,
        Reason::Quota => cmd::RESP_ERR_OUT_OF_MEMORY,
        Reason::Malformed | Reason::OutOfBounds | Reason::Dma | Reason::StaleFrame => {
            cmd::RESP_ERR_INVALID_PARAMETER
        }
        Reason::None
        | Reason::Unsupported
        | Reason::Shader
        | Reason::JobTooLong
        | Reason::DeviceLost
        | Reason::Draining
        | Reason::Fixed
        | Reason::Ceiling
        | Reason::NoRoom
        | Reason::Busy => cmd::RESP_ERR_UNSPEC,
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn a_slab_gives_out_each_place_once() {
        let mut slab = Slab::new(2);
        let (a, b) = (slab.insert('a').unwrap(), slab.insert('b').unwrap());
        assert_ne!(a, b);
        assert_eq!(slab.insert('c'), None);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert('c'), Some(a));
        assert_eq!(slab.get(99), None);
    }
}
