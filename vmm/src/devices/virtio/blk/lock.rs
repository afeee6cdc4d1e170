//! Locks that keep two writers, or a writer and a reader, from one image, whichever programs they are.
//!
//! Beamline's own and many tools take `flock`, which covers the file as a whole. VMMs take locks on bytes that belong
//! to an open file description (`F_OFD_SETLK`, fcntl(2)). Where those bytes are is QEMU's choice (block/file-posix.c):
//! from 100 on, one for each thing that an opener does; from 200 on, one for each that it does not let others do.
//! Whoever locks them all for itself excludes QEMU, and any VMM that locks the whole file.
#![allow(unsafe_code)] // fcntl(2) with a structure has no safe form for such locks.

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What is done: read (0), write (1), resize (3).
const DOES: i64 = 100;
/// What others may not do, in the same order.
const FORBIDS: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks `file` for as long as it is open, however the process ends; `false`: somebody else has locked it.
pub(super) fn take(file: &File, readonly: bool) -> io::Result<bool> {
    let how = if readonly {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(file, how) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    if !readonly {
        // To the end of the file, wherever that will be.
        return lock(file, libc::F_WRLCK, 0, 0);
    }
    // Others may read as well, and nobody may write.
    for byte in [DOES + READ, FORBIDS + WRITE, FORBIDS + RESIZE] {
        if !lock(file, libc::F_RDLCK, byte, 1)? {
            return Ok(false);
        }
    }
    Ok(!held(file, DOES + WRITE)? && !held(file, DOES + RESIZE)?)
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        // The kernel asks for 0 here.
        l_pid: 0,
    }
}

fn lock(file: &File, kind: i32, start: i64, len: i64) -> io::Result<bool> {
    let range = range(kind, start, len);
    // SAFETY: an open file, and a structure that outlives the call, which reads it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        e => Err(e),
    }
}

/// Whether somebody else has a lock on the byte.
fn held(file: &File, byte: i64) -> io::Result<bool> {
    let mut range = range(libc::F_WRLCK, byte, 1);
    // SAFETY: an open file, and a structure that outlives the call, which reads and writes it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(range.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files<const N: usize>() -> [File; N] {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Each is a description of its own, as if another program had opened it.
        std::array::from_fn(|_| File::options().read(true).write(true).open(file.path()).unwrap())
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let [a, b, c] = files();
        assert!(take(&a, true).unwrap() && take(&b, true).unwrap());
        assert!(!take(&c, false).unwrap());
        drop((a, b));
        assert!(take(&c, false).unwrap());
    }

    #[test]
    fn a_writer_excludes_whoever_locks_bytes() {
        let [ours, theirs] = files();
        assert!(take(&ours, false).unwrap());
        for byte in [DOES + READ, DOES + WRITE, FORBIDS + WRITE, 0] {
            assert!(!lock(&theirs, libc::F_RDLCK, byte, 1).unwrap(), "{byte}");
        }
    }

    #[test]
    fn a_reader_forbids_writing_and_lets_others_read() {
        let [ours, theirs] = files();
        assert!(take(&ours, true).unwrap());
        // What a VMM that writes looks for: does somebody forbid it?
        assert!(
            held(&theirs, FORBIDS + WRITE).unwrap() && held(&theirs, FORBIDS + RESIZE).unwrap()
        );
        // What one that reads looks for: does somebody write?
        assert!(!held(&theirs, DOES + WRITE).unwrap() && !held(&theirs, FORBIDS + READ).unwrap());
    }

    #[test]
    fn a_vmm_that_writes_is_seen_without_its_flock() {
        for readonly in [true, false] {
            let [ours, theirs] = files();
            assert!(lock(&theirs, libc::F_RDLCK, DOES + WRITE, 1).unwrap());
            assert!(!take(&ours, readonly).unwrap());
        }
        let [ours, theirs] = files();
        // One that reads: it lets others read, and nobody write.
        for byte in [DOES + READ, FORBIDS + WRITE, FORBIDS + RESIZE] {
            assert!(lock(&theirs, libc::F_RDLCK, byte, 1).unwrap());
        }
        assert!(!take(&ours, false).unwrap());
        drop(ours);
        let [ours, theirs] = files();
        assert!(
            lock(&theirs, libc::F_RDLCK, DOES + READ, 1).unwrap() && take(&ours, true).unwrap()
        );
    }
}
