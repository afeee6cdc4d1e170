//! What a platform provides: configuration space, device memory, shared memory, a clock and a wait.

/// A guest physical address, which is also what a device uses for DMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on. The caller stays within a range that [`Transport::reaches`] or an
    /// [`Arena`] vouched for, so the sum cannot wrap; a wrap would not be unsafe either.
    #[must_use]
    pub const fn at(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl core::fmt::Display for Gpa {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The device number of a function on bus 0: 0 to 31. All functions are function 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

/// How many bytes one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes.
    Qword,
}

impl Width {
    /// 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
}

/// Why [`Transport::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Wake {
    /// An interrupt came since the last wait, or the wait ended for no reason: look at the devices.
    Interrupt,
    /// The platform wants the guest to give up: no more interrupts will come.
    Stop,
}

/// A platform, as the driver sees it. All accesses are little endian and naturally aligned.
pub trait Transport {
    /// Reads configuration space; all ones where there is no function. `width` is at most 4 bytes.
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32;
    /// Writes configuration space. `width` is at most 4 bytes.
    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32);

    /// Whether device memory at `gpa..gpa + len` can be accessed from here.
    fn reaches(&self, gpa: Gpa, len: u64) -> bool;
    /// Reads device memory (a BAR) in one access.
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64;
    /// Writes device memory (a BAR) in one access.
    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64);

    /// Copies shared memory out. The range lies within the arena.
    fn read(&self, gpa: Gpa, bytes: &mut [u8]);
    /// Copies into shared memory. The range lies within the arena.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]);
    /// Reads 16 bits of shared memory at once; later reads are not moved before it (acquire).
    fn load_u16(&self, gpa: Gpa) -> u16;
    /// Writes 16 bits of shared memory at once; earlier writes are not moved behind it (release).
    fn store_u16(&mut self, gpa: Gpa, value: u16);
    /// Orders every access before it with every access behind it.
    fn fence(&self);

    /// The CPU's time-stamp counter.
    fn tsc(&self) -> u64;
    /// Blocks until an interrupt came that no earlier wait has returned for. May return early.
    fn wait(&mut self) -> Wake;
}

/// The arena has no room for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the DMA arena has no {wanted} bytes left (aligned to {align}); give it {short} bytes more"
)]
pub struct ArenaFull {
    /// Bytes asked for.
    pub wanted: u64,
    /// Their alignment.
    pub align: u64,
    /// Bytes that the arena lacks.
    pub short: u64,
}

/// Memory that devices may see, handed out once and never taken back.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// An arena over `base..base + len`, which the transport's shared-memory accesses must cover.
    pub const fn new(base: Gpa, len: u64) -> Self {
        Self { next: base.0, end: base.0.saturating_add(len) }
    }

    /// `len` zeroed bytes at a multiple of `align`, a power of two.
    pub fn alloc<T: Transport>(
        &mut self,
        t: &mut T,
        len: u64,
        align: u64,
    ) -> Result<Gpa, ArenaFull> {
        let align = align.max(1).next_power_of_two();
        let start = self.next.saturating_add(align - 1) & !(align - 1);
        let end = start.saturating_add(len);
        if end > self.end || end == u64::MAX {
            return Err(ArenaFull { wanted: len, align, short: end.saturating_sub(self.end) });
        }
        self.next = end;
        let zeros = [0; 256];
        let mut at = start;
        while at < end {
            let n = (end - at).min(zeros.len() as u64);
            t.write(Gpa(at), &zeros[..n as usize]);
            at += n;
        }
        Ok(Gpa(start))
    }
}
