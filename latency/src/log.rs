//! The log file: stamps as they came, then what they mean.
//!
//! ```text
//! 0       magic "BLSTAMPS", version u32, bytes per stamp u32
//! 16      stamps, 48 bytes each
//! …       metadata, JSON
//! end-40  stamps u64, dropped u64, metadata bytes u64, zero u64, magic "BLSTMEND"
//! ```
//! Little endian. The metadata comes last because slices come and go during a run and the counter's map
//! is best taken at its end. A file without the last 40 bytes was cut or never finished, and is refused.

use crate::meta::Meta;
use crate::stamp::Stamp;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the format. A reader refuses another.
pub const VERSION: u32 = 1;
/// Longest file that is read, in bytes: 22 million stamps.
pub const MAX_BYTES: u64 = 1 << 30;
/// Longest metadata, in bytes.
pub const MAX_META_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: u32,
    stamp_bytes: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Tail {
    stamps: u64,
    dropped: u64,
    meta_bytes: u64,
    zero: u64,
    magic: [u8; 8],
}

const HEAD: Head =
    Head { magic: *b"BLSTAMPS", version: VERSION, stamp_bytes: size_of::<Stamp>() as u32 };
const TAIL_MAGIC: [u8; 8] = *b"BLSTMEND";

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("the stamp log could not be read or written")]
    Io(#[from] io::Error),
    /// The file is larger than any run makes.
    #[error("the stamp log has {0} bytes; at most {MAX_BYTES} are read")]
    TooLong(u64),
    /// The first bytes are not those of a stamp log.
    #[error("not a stamp log: it does not begin with \"BLSTAMPS\"")]
    Magic,
    /// Another version, or other stamps.
    #[error(
        "the stamp log has format version {version} with {stamp_bytes} bytes per stamp; this reader \
         knows version {VERSION} with 48"
    )]
    Version {
        /// As the file says.
        version: u32,
        /// As the file says.
        stamp_bytes: u32,
    },
    /// The end is missing.
    #[error(
        "the stamp log ends at byte {0} without its closing record: the host that wrote it did not \
         finish, or the file was cut"
    )]
    Truncated(u64),
    /// The closing record does not fit the file's length.
    #[error(
        "the stamp log's closing record tells of {stamps} stamps and {meta_bytes} bytes of metadata; \
         {present} bytes are there for both"
    )]
    Lengths {
        /// As the file says.
        stamps: u64,
        /// As the file says.
        meta_bytes: u64,
        /// Bytes between the first and the closing record.
        present: u64,
    },
    /// The metadata is not what this version writes.
    #[error("the stamp log's metadata is not valid")]
    Meta(#[from] serde_json::Error),
}

/// Writes a log.
#[derive(Debug)]
pub struct LogWriter<W: Write> {
    out: W,
    stamps: u64,
}

impl LogWriter<BufWriter<File>> {
    /// Makes or empties the file at `path`.
    pub fn create(path: &Path) -> Result<Self, LogError> {
        Self::new(BufWriter::with_capacity(1 << 18, File::create(path)?))
    }
}

impl<W: Write> LogWriter<W> {
    /// Begins a log.
    pub fn new(mut out: W) -> Result<Self, LogError> {
        out.write_all(HEAD.as_bytes())?;
        Ok(Self { out, stamps: 0 })
    }

    /// Adds a stamp.
    pub fn push(&mut self, stamp: &Stamp) -> Result<(), LogError> {
        self.out.write_all(stamp.as_bytes())?;
        self.stamps += 1;
        Ok(())
    }

    /// Closes the log. `dropped` is [`Collector::dropped`](crate::Collector::dropped).
    pub fn finish(mut self, meta: &Meta, dropped: u64) -> Result<W, LogError> {
        let json = serde_json::to_vec(meta)?;
        self.out.write_all(&json)?;
        let tail = Tail {
            stamps: self.stamps,
            dropped,
            meta_bytes: json.len() as u64,
            zero: 0,
            magic: TAIL_MAGIC,
        };
        self.out.write_all(tail.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A log in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// What the stamps mean.
    pub meta: Meta,
    /// The stamps, in the order they were collected: by ring, not by time.
    pub stamps: Vec<Stamp>,
    /// Stamps that found no room while recording.
    pub dropped: u64,
}

impl Log {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, LogError> {
        let file = File::open(path)?;
        // Not the length in the file's metadata: what is read must be bounded for pipes too.
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES + 1), &mut bytes)?;
        Self::parse(&bytes)
    }

    /// Reads a log from memory.
    pub fn parse(bytes: &[u8]) -> Result<Self, LogError> {
        let len = bytes.len() as u64;
        if len > MAX_BYTES {
            return Err(LogError::TooLong(len));
        }
        let Ok((head, rest)) = Head::read_from_prefix(bytes) else {
            return Err(if bytes.is_empty() || !HEAD.as_bytes().starts_with(bytes) {
                LogError::Magic
            } else {
                LogError::Truncated(len)
            });
        };
        if head.magic != HEAD.magic {
            return Err(LogError::Magic);
        }
        if head.version != HEAD.version || head.stamp_bytes != HEAD.stamp_bytes {
            let Head { version, stamp_bytes, .. } = head;
            return Err(LogError::Version { version, stamp_bytes });
        }
        let Ok((body, tail)) = Tail::read_from_suffix(rest) else {
            return Err(LogError::Truncated(len));
        };
        if tail.magic != TAIL_MAGIC {
            return Err(LogError::Truncated(len));
        }
        let lengths = LogError::Lengths {
            stamps: tail.stamps,
            meta_bytes: tail.meta_bytes,
            present: body.len() as u64,
        };
        let Some(stamp_bytes) = tail.stamps.checked_mul(size_of::<Stamp>() as u64) else {
            return Err(lengths);
        };
        if tail.meta_bytes > MAX_META_BYTES
            || stamp_bytes.checked_add(tail.meta_bytes) != Some(body.len() as u64)
        {
            return Err(lengths);
        }
        // In range: stamp_bytes is at most body.len().
        let (raw, json) = body.split_at(stamp_bytes as usize);
        let stamps = raw
            .chunks_exact(size_of::<Stamp>())
            .filter_map(|chunk| Stamp::read_from_bytes(chunk).ok())
            .collect();
        Ok(Self { meta: serde_json::from_slice(json)?, stamps, dropped: tail.dropped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut writer = LogWriter::new(Vec::new()).unwrap();
        for time in 0..3 {
            writer.push(&Stamp { stage: 2, time, ..Stamp::default() }).unwrap();
        }
        writer.finish(&testkit::meta(), 7).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let log = Log::parse(&sample()).unwrap();
        assert_eq!(log.stamps.len(), 3);
        assert_eq!(log.stamps[2].time, 2);
        assert_eq!(log.dropped, 7);
        assert_eq!(log.meta, testkit::meta());
    }

    #[test]
    fn a_file_is_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.stamps");
        let mut writer = LogWriter::create(&path).unwrap();
        writer.push(&Stamp::default()).unwrap();
        writer.finish(&testkit::meta(), 0).unwrap();
        assert_eq!(Log::read(&path).unwrap().stamps, [Stamp::default()]);
        assert!(matches!(Log::read(&dir.path().join("none")), Err(LogError::Io(_))));
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = sample();
        for len in 0..whole.len() {
            let error = Log::parse(&whole[..len]).unwrap_err();
            let expected = matches!(error, LogError::Truncated(_) | LogError::Magic);
            assert!(expected, "{len}: {error}");
        }
    }

    #[test]
    fn other_files_and_lengths_are_refused() {
        assert!(matches!(Log::parse(b"PNG and other things"), Err(LogError::Magic)));
        let mut other = sample();
        other[8] = 9;
        assert!(matches!(Log::parse(&other), Err(LogError::Version { version: 9, .. })));
        let mut lying = sample();
        let at = lying.len() - size_of::<Tail>();
        lying[at..at + 8].copy_from_slice(&(u64::MAX / 48 + 1).to_le_bytes());
        assert!(matches!(Log::parse(&lying), Err(LogError::Lengths { .. })));
        let mut garbled = sample();
        let at = garbled.len() - size_of::<Tail>() - 1;
        garbled[at] = b'x';
        assert!(matches!(Log::parse(&garbled), Err(LogError::Meta(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let _ = Log::parse(&bytes);
            let mut changed = sample();
            for (at, byte) in edits {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            let _ = Log::parse(&changed);
        }
    }
}
