//! qcow2 images (QEMU: docs/interop/qcow2.rst) that are right, before somebody changes bytes of them.

/// Where each part is, in clusters: header, refcount table, a refcount block, L1 table, an L2 table, data.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNTS: u64 = 2;
const L1: u64 = 3;
const L2: u64 = 4;
const DATA: u64 = 5;
/// Clusters that it has.
pub(super) const CLUSTERS: u64 = 6;
/// What the cluster with data is filled with.
pub(super) const FILL: u8 = 0x77;
/// The cluster is used once.
const COPIED: u64 = 1 << 63;

/// How an image is laid out.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Bytes of the disk; the first cluster of it has data.
    pub(super) size: u64,
}

impl Shape {
    pub(super) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// The image's bytes.
    pub(super) fn build(self) -> Vec<u8> {
        let cluster = self.cluster();
        let mut image = vec![0; (CLUSTERS * cluster) as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(0, b"QFI\xfb");
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        // An L1 entry stands for a table of as many clusters as it has entries.
        let entries = self.size.div_ceil(cluster * cluster / 8).max(1);
        put(36, &(entries as u32).to_be_bytes());
        put(40, &(L1 * cluster).to_be_bytes());
        put(48, &(REFCOUNT_TABLE * cluster).to_be_bytes());
        put(56, &1u32.to_be_bytes());
        if self.version == 3 {
            // 16 bits for a count, and the header's length.
            put(96, &4u32.to_be_bytes());
            put(100, &104u32.to_be_bytes());
        }
        put(REFCOUNT_TABLE * cluster, &(REFCOUNTS * cluster).to_be_bytes());
        for n in 0..CLUSTERS {
            put(REFCOUNTS * cluster + 2 * n, &1u16.to_be_bytes());
        }
        put(L1 * cluster, &((L2 * cluster) | COPIED).to_be_bytes());
        put(L2 * cluster, &((DATA * cluster) | COPIED).to_be_bytes());
        put(DATA * cluster, &vec![FILL; cluster as usize]);
        image
    }
}
