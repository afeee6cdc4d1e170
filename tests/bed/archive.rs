//! What a test adds to the bed's initramfs: an archive behind it, in cpio's "newc" format
//! (linux: Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fmt::Write as _;
use std::path::Path;

/// `S_IFREG`, readable and executable by all.
const MODE: u32 = 0o100_755;
/// What the kernel looks for at the end.
const TRAILER: &str = "TRAILER!!!";

/// An initramfs: the bed's, and files in its root.
pub(crate) struct Initramfs(Vec<u8>);

impl Initramfs {
    /// The one at `path`, and nothing yet.
    pub(crate) fn on(path: &Path) -> Self {
        let mut bytes = std::fs::read(path).unwrap();
        // Compressed as it is, it may end anywhere; an archive starts at a multiple of 4.
        pad(&mut bytes);
        Self(bytes)
    }

    pub(crate) fn file(mut self, name: &str, content: &[u8]) -> Self {
        self.entry(name, MODE, content);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.0
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        // inode, mode, uid, gid, links, mtime, size, two pairs of device numbers, name's length, checksum.
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let mut head = String::from("070701");
        for field in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            write!(head, "{field:08x}").expect("a string takes everything");
        }
        self.0.extend_from_slice(head.as_bytes());
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        pad(&mut self.0);
        self.0.extend_from_slice(content);
        pad(&mut self.0);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
