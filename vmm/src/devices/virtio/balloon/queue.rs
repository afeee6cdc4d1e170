//! Pages that the guest gives up (virtio 1.3, sections 5.5.6 and 5.5.6.7): the host's memory behind them is
//! freed. Whoever touches such a page again finds zeroes.

use crate::Gpa;
use crate::devices::virtio::{Chain, Serve, VirtQueue};
use rustix::fs::FallocateFlags;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const PAGE: u64 = 4096;
/// Page numbers have 32 bits.
const NUMBER: u64 = 4;
/// Most page numbers of one buffer; Linux sends 256.
const MOST: usize = 4096;

/// Serves the queues.
pub(super) struct Pages {
    inflate: VirtQueue,
    deflate: VirtQueue,
    reporting: Option<VirtQueue>,
    memory: Arc<GuestMemoryMmap>,
    chain: Chain,
}

impl Pages {
    pub(super) fn new(
        inflate: VirtQueue,
        deflate: VirtQueue,
        reporting: Option<VirtQueue>,
        memory: Arc<GuestMemoryMmap>,
    ) -> Self {
        Self { inflate, deflate, reporting, memory, chain: Chain::default() }
    }
}

impl Serve for Pages {
    fn kick(&mut self, queue: usize) {
        let Self { inflate, deflate, reporting, memory, chain } = self;
        match queue {
            INFLATE => inflate.serve(chain, |chain| {
                give_up(memory, chain);
                0
            }),
            // The pages come back by being used.
            DEFLATE => deflate.serve(chain, |_| 0),
            _ => {
                if let Some(queue) = reporting {
                    queue.serve(chain, |chain| {
                        for part in chain.writable_segments() {
                            free(memory, part.at, u64::from(part.len));
                        }
                        0
                    });
                }
            }
        }
    }
}

/// Frees the pages whose numbers are in the buffer; neighbours in one go.
fn give_up(memory: &GuestMemoryMmap, chain: &Chain) {
    let count = (chain.readable() / NUMBER).min(MOST as u64) as usize;
    let mut bytes = vec![0; count * NUMBER as usize];
    if chain.read(memory, 0, &mut bytes).is_err() {
        return;
    }
    let mut run: Option<(u64, u64)> = None;
    for number in bytes.chunks_exact(NUMBER as usize) {
        let number = u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]]));
        run = match run {
            Some((first, end)) if number == end => Some((first, end + 1)),
            Some((first, end)) if number + 1 == first => Some((number, end)),
            other => {
                free_run(memory, other);
                Some((number, number + 1))
            }
        };
    }
    free_run(memory, run);
}

fn free_run(memory: &GuestMemoryMmap, run: Option<(u64, u64)>) {
    if let Some((first, end)) = run {
        free(memory, Gpa(first * PAGE), (end - first) * PAGE);
    }
}

/// Frees the whole pages of a range that are RAM of one region, which a file is behind.
fn free(memory: &GuestMemoryMmap, at: Gpa, len: u64) {
    let Some(end) = at.0.checked_add(len) else { return };
    let (Some(first), end) = (at.0.checked_next_multiple_of(PAGE), end / PAGE * PAGE) else {
        return;
    };
    let Some(len) = end.checked_sub(first).filter(|len| *len > 0) else { return };
    let Some(region) = memory.find_region(Gpa(first)) else { return };
    let offset = first - region.start_addr().0;
    if offset.checked_add(len).is_none_or(|end| end > region.len()) {
        return;
    }
    let Some(file) = region.file_offset() else { return };
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // It is a favour to the host: where it is refused the guest is no worse off.
    if let Err(e) = rustix::fs::fallocate(file.file(), how, file.start() + offset, len) {
        tracing::trace!("pages that the guest gave up stay: {e}");
    }
}
