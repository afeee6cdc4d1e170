//! What is behind a disk: a raw file or block device, or a qcow2 image (crate imago).

use super::{SECTOR, lock, qcow2};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a qcow2 image starts with.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Zeroes, as many as are written at once where the host cannot make them.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The largest cluster that a qcow2 image can have: bytes.
const MAX_CLUSTER: u64 = 2 << 20;

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Its bytes are the disk's.
    Raw,
    /// qcow2.
    Qcow2,
}

/// An image, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
    /// `None`: looked up, and refused where it looks like something else than raw.
    pub format: Option<Format>,
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("{}: cannot be opened{}{}", path.display(), if *readonly { "" } else { " for writing" }, mend(source, *readonly))]
    Open {
        /// The file.
        path: PathBuf,
        /// For reading only.
        readonly: bool,
        /// Why.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{}: is neither a file nor a block device", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else has it open.
    #[error(
        "{}: is in use: another guest or program has locked it, or it is mounted; end that first (a disk can be \
         shared by readers only, readonly = true)", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Less than a sector.
    #[error(
        "{}: has {size} bytes; a disk has at least {SECTOR}: `truncate -s 16G` makes an empty one of it", path.display()
    )]
    Small {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// A qcow2 image without the word.
    #[error(
        "{}: starts like a qcow2 image; say format = \"qcow2\", or format = \"raw\" if its bytes are the \
         disk's", path.display()
    )]
    LooksLikeQcow2 {
        /// The file.
        path: PathBuf,
    },
    /// Not a qcow2 image that can be used.
    #[error(
        "{}: cannot be used as a qcow2 image: it is damaged (`qemu-img check` tells), or has a backing or data file, \
         which `qemu-img convert` makes one image of", path.display()
    )]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What can be done about an image that cannot be opened.
fn mend(error: &io::Error, readonly: bool) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; correct the disk's `path`, or make an image there: `truncate -s 16G` makes an empty raw one"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !readonly => {
            "; with readonly = true it is only read"
        }
        io::ErrorKind::PermissionDenied => "; this user may not read it",
        _ => "",
    }
}

/// The host's side of a disk. Offsets and lengths are whole sectors within [`Self::size`].
pub trait Disk: Send {
    /// Bytes.
    fn size(&self) -> u64;
    /// The guest may not write.
    fn readonly(&self) -> bool;
    /// Bytes of a logical block.
    fn block_size(&self) -> u32 {
        SECTOR as u32
    }
    /// Reads all of `to` from `at` on.
    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()>;
    /// Writes all of `from` from `at` on.
    fn write(&mut self, at: u64, from: &[u8]) -> io::Result<()>;
    /// Returns when everything written is on the medium.
    fn flush(&mut self) -> io::Result<()>;
    /// Makes a range zero; where `unmap`, its room may go back to the host.
    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// The range's contents do not matter any more.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()>;
}

/// Opens and locks what `source` names.
pub fn open(source: &Source) -> Result<Box<dyn Disk>, ImageError> {
    let Source { path, readonly, format } = source;
    let failed =
        |what| move |source: io::Error| ImageError::Io { path: path.clone(), what, source };
    let (mut file, kind) = locked(source)?;
    let disk: Box<dyn Disk> = if *format == Some(Format::Qcow2) {
        Box::new(QcowDisk::open(file, path, *readonly)?)
    } else {
        // The end of a block device says its size, which its metadata do not.
        let size = file.seek(SeekFrom::End(0)).map_err(failed("its size cannot be found"))?;
        let block = if kind.is_block_device() {
            rustix::fs::ioctl_blksszget(&file).unwrap_or(SECTOR as u32)
        } else {
            SECTOR as u32
        };
        Box::new(RawDisk { file, size, readonly: *readonly, block })
    };
    if disk.size() < SECTOR {
        return Err(ImageError::Small { path: path.clone(), size: disk.size() });
    }
    Ok(disk)
}

/// Looks for what would keep [`open`] from it, changes nothing, and lets it go again. Its bytes, as they are on
/// the host.
pub fn look(source: &Source) -> Result<u64, ImageError> {
    let (mut file, _) = locked(source)?;
    file.seek(SeekFrom::End(0)).map_err(|error| ImageError::Io {
        path: source.path.clone(),
        what: "its size cannot be found",
        source: error,
    })
}

/// What `source` names, open and locked, and what it is.
fn locked(source: &Source) -> Result<(File, FileType), ImageError> {
    let Source { path, readonly, format } = source;
    let failed =
        |what| move |source: io::Error| ImageError::Io { path: path.clone(), what, source };
    let mut options = OpenOptions::new();
    options.read(true).write(!readonly);
    // A block device that is mounted, or otherwise taken by the kernel, is not opened for itself alone (open(2)).
    let is_block = path.metadata().is_ok_and(|data| data.file_type().is_block_device());
    if is_block && !readonly {
        options.custom_flags(libc::O_EXCL);
    }
    let file = options.open(path).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => ImageError::InUse { path: path.clone() },
        _ => ImageError::Open { path: path.clone(), readonly: *readonly, source },
    })?;
    let kind = file.metadata().map_err(failed("cannot be looked at"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ImageError::Kind { path: path.clone() });
    }
    if !lock::take(&file, *readonly).map_err(failed("cannot be locked"))? {
        return Err(ImageError::InUse { path: path.clone() });
    }
    let mut magic = [0; 4];
    let is_qcow2 = file.read_exact_at(&mut magic, 0).is_ok() && magic == QCOW2_MAGIC;
    if is_qcow2 && format.is_none() {
        return Err(ImageError::LooksLikeQcow2 { path: path.clone() });
    }
    Ok((file, kind))
}

/// A file or block device whose bytes are the disk's.
struct RawDisk {
    file: File,
    size: u64,
    readonly: bool,
    block: u32,
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn readonly(&self) -> bool {
        self.readonly
    }

    fn block_size(&self) -> u32 {
        self.block
    }

    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, at)
    }

    fn write(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, at, len) {
            Ok(()) => Ok(()),
            // Not every file system can: then the zeroes are written.
            Err(Errno::OPNOTSUPP) => write_zeroes(at, len, |at, zeroes| self.write(at, zeroes)),
            Err(e) => Err(e.into()),
        }
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, how, at, len) {
            // It is a hint.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn write_zeroes(
    at: u64,
    len: u64,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let now = (len - done).min(ZEROES.len() as u64);
        write(at + done, &ZEROES[..now as usize])?;
        done += now;
    }
    Ok(())
}

/// A qcow2 image.
struct QcowDisk {
    image: FormatAccess<ImageFile>,
    readonly: bool,
}

impl QcowDisk {
    /// An image names other files only if whoever wrote it said so: none is opened.
    fn open(file: File, path: &Path, readonly: bool) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Qcow2 { path: path.to_owned(), source };
        qcow2::check(&file, !readonly).map_err(failed)?;
        let file = ImageFile::try_from(file).map_err(failed)?;
        let image = Qcow2::<ImageFile>::builder(file)
            .write(!readonly)
            .open(DenyImplicitOpenGate::default())
            .map_err(failed)?;
        Ok(Self { image: FormatAccess::new(image), readonly })
    }
}

impl Disk for QcowDisk {
    fn size(&self) -> u64 {
        self.image.size() / SECTOR * SECTOR
    }

    fn readonly(&self) -> bool {
        self.readonly
    }

    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.image.read(to, at)
    }

    fn write(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        self.image.write(from, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }

    fn zero(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        // The crate's arithmetic for a part of a cluster underflows where the disk is smaller than a cluster.
        if self.size() < MAX_CLUSTER {
            return write_zeroes(at, len, |at, zeroes| self.image.write(zeroes, at));
        }
        let done = if unmap {
            self.image.discard_to_zero(at, len)
        } else {
            self.image.write_zeroes(at, len)
        };
        match done {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                write_zeroes(at, len, |at, zeroes| self.image.write(zeroes, at))
            }
            done => done,
        }
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        match self.image.discard_to_any(at, len) {
            // It is a hint.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }
}
