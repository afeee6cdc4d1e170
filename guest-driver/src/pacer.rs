//! Stage 9, guest: from vmm/interrupt to the application: vblanks, the timing page and frame markers.

mod ask;

pub use ask::{Answer, Ask, AskError, AskLatch};

use crate::pci::{self, Function, MsiTarget, PciError};
use crate::transport::{Gpa, Slot, Transport, Width};
use beamline_abi::pacer::{
    BAR0_SIZE, BAR2_SIZE, BAR4_SIZE, DEVICE_ID, MAGIC, MARKER_CAPACITY, MARKER_DROPPED,
    MARKER_ENTRIES, MARKER_HEAD, MARKER_TAIL, Marker, MarkerKind, TimingPage, VENDOR_ID, VERSION,
    control, reg, vector,
};
use beamline_abi::{FrameId, Generation, JobIndex, Nanos, Reason, SliceId};
use zerocopy::{FromBytes, IntoBytes};

/// How often a torn timing page is read again before the reader gives up for now.
const SEQLOCK_TRIES: u32 = 64;
/// The timing page as 64-bit words.
const PAGE_WORDS: usize = size_of::<TimingPage>() / 8;

/// Why the pacer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacerError {
    /// The PCI function cannot be used.
    #[error("the pacer's PCI function cannot be used")]
    Pci(#[from] PciError),
    /// BAR0 is not a pacer's.
    #[error("the pacer's magic register reads {0:#010x}, not {magic:#010x}", magic = MAGIC)]
    Magic(u32),
    /// The layout is of another major version.
    #[error("the pacer speaks version {0:#010x}; this driver knows major version {major}", major = VERSION >> 16)]
    Version(u32),
}

/// A vblank that this guest has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vblank {
    /// Its number, rising.
    pub seq: u64,
    /// Vblanks since the last that was seen which this guest did not wake for.
    pub missed: u64,
    /// The timing page at that vblank.
    pub timing: TimingPage,
}

/// What [`Pacer::poll_vblank`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum VblankPoll {
    /// A vblank that was not seen before.
    New(Vblank),
    /// Nothing new.
    None,
    /// The host was writing at every try: ask again before waiting for an interrupt.
    Busy,
}

/// The pacer function of one slice.
#[derive(Debug)]
pub struct Pacer {
    registers: Gpa,
    timing: Gpa,
    slice: SliceId,
    generation: Generation,
    seen: u64,
    /// ANSWER_COUNT when it was last looked at.
    answers: u32,
    /// The marker ring, which submissions write as well.
    pub markers: MarkerRing,
}

impl Pacer {
    /// Finds the first pacer at or behind slot `from`, checks it and routes its interrupts. Vblanks stay
    /// off until [`Pacer::enable`].
    pub fn attach<T: Transport>(
        t: &mut T,
        from: Slot,
        targets: &[MsiTarget; vector::COUNT as usize],
    ) -> Result<Self, PacerError> {
        let function = pci::find(t, VENDOR_ID, DEVICE_ID, from)?;
        function.enable(t);
        let registers = function.bar(t, 0, 0, BAR0_SIZE)?;
        let read = |t: &mut T, r: u32| t.mmio_read(registers.at(r.into()), Width::Dword) as u32;
        let magic = read(t, reg::MAGIC);
        if magic != MAGIC {
            return Err(PacerError::Magic(magic));
        }
        let version = read(t, reg::VERSION);
        if version >> 16 != VERSION >> 16 {
            return Err(PacerError::Version(version));
        }
        let mut slice = [0; 16];
        for (i, word) in slice.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&read(t, reg::SLICE_ID + 4 * i as u32).to_le_bytes());
        }
        let generation = Generation(read(t, reg::GENERATION));
        let pacer = Self::with_bars(t, &function, registers, SliceId(slice), generation)?;
        function.enable_msix(t, targets)?;
        Ok(pacer)
    }

    fn with_bars<T: Transport>(
        t: &mut T,
        function: &Function,
        registers: Gpa,
        slice: SliceId,
        generation: Generation,
    ) -> Result<Self, PacerError> {
        let timing = function.bar(t, 2, 0, BAR2_SIZE)?;
        let ring = function.bar(t, 4, 0, BAR4_SIZE)?;
        Ok(Self {
            registers,
            timing,
            slice,
            generation,
            seen: 0,
            answers: 0,
            markers: MarkerRing::attach(t, ring),
        })
    }

    /// The slice that this pacer belongs to.
    pub const fn slice(&self) -> SliceId {
        self.slice
    }

    /// The slice's generation when the pacer was attached.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Asks for vblanks.
    pub fn enable<T: Transport>(&self, t: &mut T) {
        self.write(t, reg::CONTROL, control::VBLANK_ENABLE);
    }

    /// Asks for no more vblanks.
    pub fn disable<T: Transport>(&self, t: &mut T) {
        self.write(t, reg::CONTROL, 0);
    }

    /// The status register, see [`beamline_abi::pacer::status`]. An exit: not for every frame.
    pub fn status<T: Transport>(&self, t: &mut T) -> u32 {
        self.read(t, reg::STATUS)
    }

    /// Why the host last refused something of this slice; `None` for a reason this driver does not know.
    /// An exit: not for every frame.
    pub fn reason<T: Transport>(&self, t: &mut T) -> Option<Reason> {
        Reason::from_raw(self.read(t, reg::REASON))
    }

    /// Looks for a vblank that was not seen before, and marks it as seen in the marker ring.
    pub fn poll_vblank<T: Transport>(&mut self, t: &mut T) -> VblankPoll {
        let tsc = t.tsc();
        let Some(timing) = self.timing(t) else { return VblankPoll::Busy };
        if timing.vblank_seq <= self.seen {
            return VblankPoll::None;
        }
        let seq = timing.vblank_seq;
        let missed = if self.seen == 0 { 0 } else { seq - self.seen - 1 };
        self.seen = seq;
        self.markers.push(
            t,
            &Marker {
                kind: MarkerKind::Vblank as u32,
                job: JobIndex(0),
                reserved: 0,
                id: seq,
                tsc,
                aux: timing.presented.0,
            },
        );
        VblankPoll::New(Vblank { seq, missed, timing })
    }

    /// A consistent copy of the timing page; `None` where the host was writing at every try.
    pub fn timing<T: Transport>(&self, t: &mut T) -> Option<TimingPage> {
        for _ in 0..SEQLOCK_TRIES {
            let before = t.mmio_read(self.timing, Width::Dword) as u32;
            t.fence();
            let mut words = [0u64; PAGE_WORDS];
            for (i, word) in words.iter_mut().enumerate() {
                *word = t.mmio_read(self.timing.at(8 * i as u64), Width::Qword);
            }
            t.fence();
            let after = t.mmio_read(self.timing, Width::Dword) as u32;
            if before == after && before.is_multiple_of(2) {
                return TimingPage::read_from_bytes(words.as_bytes()).ok();
            }
            core::hint::spin_loop();
        }
        None
    }

    fn read<T: Transport>(&self, t: &mut T, register: u32) -> u32 {
        t.mmio_read(self.registers.at(register.into()), Width::Dword) as u32
    }

    fn write<T: Transport>(&self, t: &mut T, register: u32, value: u32) {
        t.mmio_write(self.registers.at(register.into()), Width::Dword, value.into());
    }
}

/// The host time of a guest TSC value by the page's map; `None` without a map, or where the result is not
/// a time.
pub fn host_time(page: &TimingPage, tsc: u64) -> Option<Nanos> {
    if page.clock_source == 0 {
        return None;
    }
    // Counters wrap: one that starts at 0 with its guest was still below 0 at the host's reference.
    let ticks = i128::from(tsc.wrapping_sub(page.tsc_ref) as i64);
    // 63 bits and 64, with a sign: the product fits.
    let ns = ticks.checked_mul(i128::from(page.tsc_mult))? >> 32;
    u64::try_from(i128::from(page.ns_ref.0) + ns).ok().map(Nanos)
}

/// The guest's end of the marker ring: the host reads what is written here, without an exit.
#[derive(Debug)]
pub struct MarkerRing {
    base: Gpa,
    head: u32,
    tail: u32,
    dropped: u32,
}

impl MarkerRing {
    /// Takes over the ring at `base`, empty from where the host stands.
    pub fn attach<T: Transport>(t: &mut T, base: Gpa) -> Self {
        let tail = t.mmio_read(base.at(MARKER_TAIL.into()), Width::Dword) as u32;
        t.mmio_write(base.at(MARKER_HEAD.into()), Width::Dword, tail.into());
        Self { base, head: tail, tail, dropped: 0 }
    }

    /// How many markers found no room.
    pub const fn dropped(&self) -> u32 {
        self.dropped
    }

    /// Says that this job is about to go into the queue.
    pub fn submit<T: Transport>(&mut self, t: &mut T, frame: FrameId, job: JobIndex) {
        let tsc = t.tsc();
        let kind = MarkerKind::Submit as u32;
        self.push(t, &Marker { kind, job, reserved: 0, id: frame.0, tsc, aux: 0 });
    }

    /// Appends a marker, or counts it as dropped where the ring is full.
    pub fn push<T: Transport>(&mut self, t: &mut T, marker: &Marker) {
        // A tail out of range is the host's mistake; it reads as a full ring and heals with it.
        if self.head.wrapping_sub(self.tail) >= MARKER_CAPACITY {
            self.tail = t.mmio_read(self.base.at(MARKER_TAIL.into()), Width::Dword) as u32;
        }
        if self.head.wrapping_sub(self.tail) >= MARKER_CAPACITY {
            self.dropped = self.dropped.wrapping_add(1);
            let count = self.dropped.into();
            t.mmio_write(self.base.at(MARKER_DROPPED.into()), Width::Dword, count);
            return;
        }
        let index = u64::from(self.head % MARKER_CAPACITY);
        let entry = self.base.at(u64::from(MARKER_ENTRIES) + index * size_of::<Marker>() as u64);
        for (i, word) in marker.as_bytes().chunks_exact(8).enumerate() {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            t.mmio_write(entry.at(8 * i as u64), Width::Qword, u64::from_le_bytes(bytes));
        }
        self.head = self.head.wrapping_add(1);
        // The entry before the index that publishes it.
        t.fence();
        t.mmio_write(self.base.at(MARKER_HEAD.into()), Width::Dword, self.head.into());
    }
}
