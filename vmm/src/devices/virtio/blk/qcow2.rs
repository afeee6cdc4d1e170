//! A look at a qcow2 image's L1 and refcount tables (QEMU: docs/interop/qcow2.rst) before the crate reads and writes by
//! them: a refcount table without its first entry has the crate call itself until the stack ends.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// Bytes of the header up to the table's place and size.
const HEADER: usize = 60;
/// Bits of a cluster's size.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Most bytes of a table: what QEMU takes.
const MOST: u64 = 8 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_be_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_be_bytes(*b))
}

/// Whether the tables of the image in `file` can be read by, and where `writes`, written by. What else there is to say
/// of the header, the crate says.
pub(super) fn check(mut file: &File, writes: bool) -> io::Result<()> {
    // The end of a block device says its size, which its metadata do not.
    let length = file.seek(SeekFrom::End(0))?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let bits = word(&header, 20);
    if !CLUSTER_BITS.contains(&bits) {
        return Err(wrong("its clusters have no size that clusters can have"));
    }
    check_l1(&header, bits, length)?;
    if writes { check_refcounts(file, &header, bits, length) } else { Ok(()) }
}

/// Whether the L1 table is in the file, and is all that the disk needs: the crate takes memory for as many entries as
/// the header says, and where the guest uses more of the disk, for as many as that needs.
fn check_l1(header: &[u8], bits: u32, length: u64) -> io::Result<()> {
    let entries = u64::from(word(header, 36));
    if long(header, 40).checked_add(entries * 8).is_none_or(|end| end > length) {
        return Err(wrong("its L1 table is not all in the file"));
    }
    // An entry stands for a cluster of entries of 8 bytes, each of which stands for a cluster.
    if long(header, 24).div_ceil(1 << (2 * bits - 3)) > entries {
        return Err(wrong("its L1 table is too small for its disk"));
    }
    Ok(())
}

/// Whether the refcount table names blocks in the file, one after the other.
fn check_refcounts(file: &File, header: &[u8], bits: u32, length: u64) -> io::Result<()> {
    let cluster = 1u64 << bits;
    let (table, size) = (long(header, 48), u64::from(word(header, 56)) << bits);
    if !table.is_multiple_of(cluster) || size > MOST {
        return Err(wrong("its refcount table is not aligned, or has more than 8 MiB"));
    }
    if table.checked_add(size).is_none_or(|end| end > length) {
        return Err(wrong("its refcount table is not all in the file"));
    }
    // The header is in the first block's range: there is one.
    let (mut ended, mut blocks) = (false, 0);
    let mut chunk = vec![0; CHUNK.min(size as usize)];
    for at in (0..size).step_by(CHUNK) {
        // Clusters have a power of two of bytes, and so has what is left.
        let len = (size - at).min(CHUNK as u64) as usize;
        let chunk = chunk.get_mut(..len).unwrap_or_default();
        file.read_exact_at(chunk, table + at)?;
        for block in chunk.chunks_exact(8).map(|entry| long(entry, 0)) {
            if block == 0 {
                ended = true;
            } else if ended {
                return Err(wrong(
                    "its refcount table has holes; `qemu-img check -r all` may mend it",
                ));
            } else if !block.is_multiple_of(cluster) || block >= length {
                return Err(wrong(
                    "its refcount table names a place that is not in the file; `qemu-img check -r all` may mend it",
                ));
            } else {
                blocks += 1;
            }
        }
    }
    if blocks == 0 {
        return Err(wrong("its refcount table is empty; `qemu-img check -r all` may mend it"));
    }
    Ok(())
}
