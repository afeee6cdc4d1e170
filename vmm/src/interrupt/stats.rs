//! KVM's own counters of a VM's vCPUs, from its binary statistics (Linux, Documentation/virt/kvm/api.rst,
//! `KVM_GET_STATS_FD`).
//!
//! ```text
//! file   header | id | descriptors, each with a name | data
//! ```
//!
//! The file is the kernel's. Yet each offset and count in it is checked: a kernel that lays it out in a way that
//! is not known here gives no numbers, rather than wrong ones.

use crate::platform;
use kvm_bindings::{
    KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK, kvm_stats_desc, kvm_stats_header,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vmm_sys_util::errno;

/// A descriptor without its name.
const DESCRIPTOR: usize = size_of::<kvm_stats_desc>();
/// Longest name that is read, with its terminating zero; KVM's are at most 48.
const MAX_NAME: u32 = 256;
/// Most descriptors that are read; KVM has fewer than 100 of a vCPU.
const MAX_DESCRIPTORS: u32 = 1024;

/// Why KVM's counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// KVM has none.
    #[error("this kernel's KVM has no binary statistics (Linux 5.14 has them)")]
    Missing(#[source] errno::Error),
    /// The VM cannot be held.
    #[error("the VM's descriptor cannot be duplicated")]
    Hold(#[source] io::Error),
    /// The file could not be read.
    #[error("KVM's statistics cannot be read")]
    Read(#[source] io::Error),
    /// The file is not laid out as documented.
    #[error("KVM's statistics are not laid out as its documentation says: {0}")]
    Layout(&'static str),
}

/// One of KVM's counters of a vCPU (arch/x86/include/asm/kvm_host.h, `struct kvm_vcpu_stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// All exits, also those that KVM serves itself.
    Exits,
    /// Port accesses that went to the VMM.
    Io,
    /// Memory accesses that went to the VMM.
    Mmio,
    /// `hlt`.
    Halt,
    /// Wake-ups of a halted vCPU.
    HaltWakeup,
    /// Halts that ended while KVM still polled.
    HaltPolled,
    /// Exits because an interrupt of the host's came: also what kicks a vCPU out to be given one of its own.
    Irq,
    /// Exits because the guest takes interrupts again.
    IrqWindow,
    /// Interrupts that KVM put in at an entry, in software.
    IrqInjections,
    /// Returns to the VMM because of a signal.
    Signal,
    /// Instructions that KVM emulated.
    Emulated,
}

impl Counter {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Exits,
        Self::Io,
        Self::Mmio,
        Self::Halt,
        Self::HaltWakeup,
        Self::HaltPolled,
        Self::Irq,
        Self::IrqWindow,
        Self::IrqInjections,
        Self::Signal,
        Self::Emulated,
    ];

    /// KVM's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exits => "exits",
            Self::Io => "io_exits",
            Self::Mmio => "mmio_exits",
            Self::Halt => "halt_exits",
            Self::HaltWakeup => "halt_wakeup",
            Self::HaltPolled => "halt_successful_poll",
            Self::Irq => "irq_exits",
            Self::IrqWindow => "irq_window_exits",
            Self::IrqInjections => "irq_injections",
            Self::Signal => "signal_exits",
            Self::Emulated => "insn_emulation",
        }
    }
}

/// Counters at one moment, or their growth between two. Those that this KVM lacks are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([Option<u64>; Counter::ALL.len()]);

impl Counts {
    /// One of them.
    pub fn get(&self, counter: Counter) -> Option<u64> {
        self.0[counter as usize]
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.into_iter().filter_map(|c| Some((c, self.get(c)?)))
    }

    /// Sets one.
    #[must_use]
    pub fn with(mut self, counter: Counter, value: u64) -> Self {
        self.0[counter as usize] = Some(value);
        self
    }

    fn zip(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let mut joined = Self::default();
        for ((to, a), b) in joined.0.iter_mut().zip(self.0).zip(other.0) {
            *to = a.zip(b).map(|(a, b)| join(a, b));
        }
        joined
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        self.zip(before, u64::wrapping_sub)
    }

    /// Both together: what one of them lacks is missing.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.zip(other, u64::wrapping_add)
    }
}

/// The counters of one vCPU.
#[derive(Debug)]
struct VcpuStats {
    file: File,
    /// Where each counter is in the file.
    at: [Option<u64>; Counter::ALL.len()],
}

/// The counters of all vCPUs of a VM.
#[derive(Debug)]
pub struct VmStats {
    vcpus: Vec<VcpuStats>,
    /// Before Linux 6.5 a file of statistics does not keep its VM alive.
    _vm: OwnedFd,
}

impl VmStats {
    /// Of these vCPUs of `vm`.
    pub fn new<'a, V: AsRawFd + 'a>(
        vm: &impl AsRawFd,
        vcpus: impl IntoIterator<Item = &'a V>,
    ) -> Result<Self, StatsError> {
        let held = platform::duplicate(vm).map_err(StatsError::Hold)?;
        let open = |vcpu| {
            platform::stats(vcpu).map_err(|e| match e.errno() {
                libc::ENOTTY | libc::EINVAL => StatsError::Missing(e),
                _ => StatsError::Read(e.into()),
            })
        };
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| VcpuStats::new(open(vcpu)?.into()))
            .collect::<Result<_, _>>()?;
        Ok(Self { vcpus, _vm: held })
    }

    /// The counters of all vCPUs together, now.
    pub fn read(&self) -> Result<Counts, StatsError> {
        let mut all = None;
        for vcpu in &self.vcpus {
            let counts = vcpu.read()?;
            all = Some(all.map_or(counts, |all: Counts| all.and(counts)));
        }
        Ok(all.unwrap_or_default())
    }
}

impl VcpuStats {
    fn new(file: File) -> Result<Self, StatsError> {
        let mut header = [0; size_of::<kvm_stats_header>()];
        file.read_exact_at(&mut header, 0).map_err(StatsError::Read)?;
        // flags, name_size, num_desc, id_offset, desc_offset, data_offset
        let field = |index: usize| u32_at(&header, 4 * index);
        let (name, count, descriptors, data) = (field(1), field(2), field(4), field(5));
        if name == 0 || name > MAX_NAME {
            return Err(StatsError::Layout("names have more than 256 bytes, or none"));
        }
        if count > MAX_DESCRIPTORS {
            return Err(StatsError::Layout("there are more than 1024 descriptors"));
        }
        let size = DESCRIPTOR + name as usize;
        let mut block = vec![0; size * count as usize];
        file.read_exact_at(&mut block, descriptors.into()).map_err(StatsError::Read)?;
        let mut at = [None; Counter::ALL.len()];
        for descriptor in block.chunks_exact(size) {
            // flags, exponent: s16, size: u16, offset, bucket_size, name
            let (flags, offset) = (u32_at(descriptor, 0), u32_at(descriptor, 8));
            let values = u16::from_le_bytes([descriptor[6], descriptor[7]]);
            let name = &descriptor[DESCRIPTOR..];
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let known = Counter::ALL.into_iter().find(|c| c.name().as_bytes() == name);
            // A histogram of the same name would be something else.
            if let Some(counter) = known
                && flags & KVM_STATS_TYPE_MASK == KVM_STATS_TYPE_CUMULATIVE
                && values == 1
            {
                at[counter as usize] = Some(u64::from(data) + u64::from(offset));
            }
        }
        Ok(Self { file, at })
    }

    fn read(&self) -> Result<Counts, StatsError> {
        let mut counts = Counts::default();
        for (to, at) in counts.0.iter_mut().zip(self.at) {
            let Some(at) = at else { continue };
            let mut value = [0; 8];
            self.file.read_exact_at(&mut value, at).map_err(StatsError::Read)?;
            *to = Some(u64::from_le_bytes(value));
        }
        Ok(counts)
    }
}

/// The caller has checked that `at` is within `bytes`: it is a constant, and so is their least size.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of statistics with these counters: name, flags, number of values, and the value.
    fn file(entries: &[(&str, u32, u16, u64)], name_size: u32, count: u32) -> File {
        let mut bytes = Vec::new();
        let data = 24 + entries.len() as u32 * (16 + name_size);
        for field in [0, name_size, count, 24, 24, data] {
            bytes.extend(field.to_le_bytes());
        }
        for (index, (name, flags, values, _)) in entries.iter().enumerate() {
            bytes.extend(flags.to_le_bytes());
            bytes.extend(0u16.to_le_bytes());
            bytes.extend(values.to_le_bytes());
            bytes.extend((index as u32 * 8).to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
            let mut name = name.as_bytes().to_vec();
            name.resize(name_size as usize, 0);
            bytes.extend(name);
        }
        for (.., value) in entries {
            bytes.extend(value.to_le_bytes());
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn counters_are_found_by_name_and_kind() {
        let entries = [
            ("irq_exits", 0, 1, 7),
            // A histogram, and an array: neither is the counter.
            ("halt_exits", 4, 1, 8),
            ("io_exits", 0, 2, 9),
            ("exits", 0, 1, 1 << 40),
            ("exit", 0, 1, 3),
        ];
        let counts = VcpuStats::new(file(&entries, 48, 5)).unwrap().read().unwrap();
        let expected = Counts::default().with(Counter::Irq, 7).with(Counter::Exits, 1 << 40);
        assert_eq!(counts, expected);
        let twice = counts.and(counts);
        assert_eq!(twice.since(counts), counts);
        // What one vCPU lacks says nothing of all.
        assert_eq!(twice.and(Counts::default()), Counts::default());
    }

    #[test]
    fn a_file_that_is_laid_out_otherwise_gives_no_numbers() {
        let one = [("exits", 0, 1, 7)];
        for (name, count) in [(0, 1), (257, 1), (48, 1025)] {
            let made = VcpuStats::new(file(&one, name, count));
            assert!(matches!(made, Err(StatsError::Layout(_))), "{name} {count}");
        }
        // More descriptors than the file has, and a counter beyond its end.
        assert!(matches!(VcpuStats::new(file(&one, 48, 100)), Err(StatsError::Read(_))));
        let cut = file(&one, 48, 1);
        cut.set_len(24 + 64 + 7).unwrap();
        assert!(matches!(VcpuStats::new(cut).unwrap().read(), Err(StatsError::Read(_))));
    }
}
