//! Stage 7, vblank: the pacer function, through which a guest is paced.
//!
//! [`Pacer`] is what the vfio-user server drives; [`PacerBeat`] goes to the dispatcher, which writes the
//! timing page and signals vblanks; [`PacerHandle`] to the slice's poster, which signals the other vectors
//! and drains the marker ring; [`PacerShared`] is for whoever else has something to tell the guest, or
//! to hear from it. The layout is in [`beamline_abi::pacer`].

mod ask;
mod markers;
mod registers;
#[cfg(test)]
mod tests;
mod timing;

use crate::device::eventfd::EventFd;
use crate::device::pci::bar::Bar;
use crate::device::pci::config::{Identity, Msix};
use crate::device::pci::msix::{IrqError, IrqTable};
use crate::device::pci::{Function, PciError, trapped};
use arc_swap::ArcSwapOption;
use ask::Desk;
pub use ask::{Answer, Ask, AskTurn};
use beamline_abi::pacer::{self, TimingPage, control, status, vector};
use beamline_abi::{Generation, Nanos, Reason, SliceId};
use beamline_latency::clock::{GuestTsc, TscMap};
use beamline_vfio_user::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo, RegionMapping, SparseArea,
};
use markers::MarkerRing;
pub use markers::{Drained, MarkerReader};
use registers::Registers;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use timing::TimingArea;
pub use timing::TimingWriter;

/// Where TIME comes from: host `CLOCK_MONOTONIC`, or a test's clock.
pub type Now = Arc<dyn Fn() -> Nanos + Send + Sync>;

/// What a pacer is made of.
#[derive(Clone)]
pub struct PacerConfig {
    /// The slice, the same as in its frame context.
    pub slice: SliceId,
    /// The slice's life.
    pub generation: Generation,
    /// What the TIME register reads.
    pub now: Now,
}

/// What the guest reads as the slice's state, beside whether vblanks are on and whether it is asked to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum SliceState {
    /// All is well.
    #[default]
    Normal = 0,
    /// The GPU contexts are lost.
    Lost = 1,
}

/// What several threads know about one pacer. All of it is lock-free.
pub struct PacerShared {
    control: AtomicU32,
    state: AtomicU32,
    /// Whether the host asks the guest to stop submitting. No reset clears it.
    quiesce: AtomicBool,
    /// Vectors that the poster has to signal, by bit.
    notices: AtomicU32,
    desk: Desk,
    reason: AtomicU32,
    reason_count: AtomicU32,
    generation: AtomicU32,
    resets: AtomicU32,
    tsc: ArcSwapOption<GuestTsc>,
    wake: EventFd,
}

impl PacerShared {
    /// Whether the guest wants vblanks.
    pub fn vblank_enabled(&self) -> bool {
        self.control.load(Ordering::Acquire) & control::VBLANK_ENABLE != 0
    }

    /// Tells the guest why something of its was refused or dropped.
    pub fn set_reason(&self, reason: Reason) {
        self.reason.store(reason as u32, Ordering::Relaxed);
        self.reason_count.fetch_add(1, Ordering::Release);
    }

    /// Sets what STATUS reads. `Lost` is cleared when the context ends.
    pub fn set_state(&self, state: SliceState) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// Asks the guest to stop submitting, or asks it no more, and tells it so. Nothing holds it to it.
    pub fn set_quiesce(&self, quiesce: bool) {
        if self.quiesce.swap(quiesce, Ordering::AcqRel) != quiesce {
            self.notify(vector::QUIESCE);
        }
    }

    /// Whether the guest is asked to stop submitting.
    pub fn is_quiesced(&self) -> bool {
        self.quiesce.load(Ordering::Acquire)
    }

    /// Has the poster signal one of [`pacer::vector`].
    fn notify(&self, vector: u16) {
        self.notices.fetch_or(1 << vector, Ordering::AcqRel);
        self.wake.signal();
    }

    /// The vectors that are to be signalled since the last call. For the poster.
    pub fn take_notices(&self) -> impl Iterator<Item = u16> + use<> {
        let notices = self.notices.swap(0, Ordering::AcqRel);
        (0..vector::COUNT).filter(move |vector| notices >> vector & 1 != 0)
    }

    /// Sets what GENERATION reads.
    pub fn set_generation(&self, generation: Generation) {
        self.generation.store(generation.0, Ordering::Release);
    }

    /// What GENERATION reads.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Clears REASON and its count: they are of no concern to the guest that comes next. A context that is lost
    /// stays so until it ends.
    pub fn forget_faults(&self) {
        self.reason.store(Reason::None as u32, Ordering::Relaxed);
        self.reason_count.store(0, Ordering::Release);
    }

    /// How often the function was reset.
    pub fn resets(&self) -> u32 {
        self.resets.load(Ordering::Acquire)
    }

    /// How the guest's TSC runs, once the VMM has said so.
    pub fn guest_tsc(&self) -> Option<GuestTsc> {
        self.tsc.load().as_deref().copied()
    }

    /// Fills the page's TSC map and its source: from the host's own map and what the VMM said, or none.
    pub fn fill_tsc(&self, page: &mut TimingPage, host: Option<&TscMap>) {
        let map = host.zip(self.guest_tsc()).and_then(|(host, guest)| host.for_guest(guest).ok());
        page.tsc_ref = map.map_or(0, |m| m.tsc_ref);
        page.ns_ref = Nanos(map.map_or(0, |m| m.ns_ref));
        page.tsc_mult = map.map_or(0, |m| m.mult);
        page.clock_err = map.map_or(0, |m| u32::try_from(m.err_ns).unwrap_or(u32::MAX));
        page.clock_source = u32::from(map.is_some());
    }

    fn status(&self) -> u32 {
        match self.state.load(Ordering::Acquire) {
            s if s == SliceState::Lost as u32 => status::LOST,
            _ if self.is_quiesced() => status::QUIESCE,
            _ if self.vblank_enabled() => status::RUNNING,
            _ => status::IDLE,
        }
    }
}

/// The dispatcher's side of a pacer: nothing in it waits for the guest or its VMM. The marker ring is not in it:
/// whoever holds its descriptor can make a look at it wait.
pub struct PacerBeat {
    shared: Arc<PacerShared>,
    timing: TimingWriter,
    irqs: Arc<IrqTable>,
}

impl PacerBeat {
    /// Publishes the timing page; `lock` and `version` are filled in.
    pub fn publish(&mut self, page: &TimingPage) {
        self.timing.publish(page);
    }

    /// The eventfd of [`pacer::vector::VBLANK`], where somebody listens.
    pub fn vblank_wire(&self) -> Option<Arc<OwnedFd>> {
        self.irqs.wired(pacer::vector::VBLANK)
    }

    /// Looks at all that a vblank needs, and so brings it close to this CPU.
    pub fn warm(&self) -> u32 {
        self.shared.resets() ^ self.timing.warm() ^ u32::from(self.irqs.is_enabled())
    }

    /// What other threads may know and set.
    pub fn shared(&self) -> &PacerShared {
        &self.shared
    }
}

/// The poster's side of a pacer.
pub struct PacerHandle {
    shared: Arc<PacerShared>,
    markers: MarkerReader,
    irqs: Arc<IrqTable>,
}

impl PacerHandle {
    /// Signals one of [`pacer::vector`]. `false`: nobody listens.
    pub fn signal(&self, vector: u16) -> Result<bool, IrqError> {
        self.irqs.signal(vector)
    }

    /// The marker ring.
    pub fn markers(&mut self) -> &mut MarkerReader {
        &mut self.markers
    }

    /// Whether the guest wants vblanks.
    pub fn vblank_enabled(&self) -> bool {
        self.shared.vblank_enabled()
    }

    /// Signalled when CONTROL or the guest's TSC changed, a vector is to be signalled, or the function was
    /// reset: the state is to be looked at after.
    pub fn wake(&self) -> &EventFd {
        &self.shared.wake
    }

    /// What other threads may know and set.
    pub fn shared(&self) -> &Arc<PacerShared> {
        &self.shared
    }
}

const REGISTERS_BAR: RegionIndex = RegionIndex::bar(0);
const TIMING_BAR: RegionIndex = RegionIndex::bar(2);
const MARKER_BAR: RegionIndex = RegionIndex::bar(4);

/// The pacer function.
pub struct Pacer {
    function: Function,
    registers: Registers,
    timing: TimingArea,
    ring: Arc<MarkerRing>,
    shared: Arc<PacerShared>,
}

impl Pacer {
    /// A pacer, and what the dispatcher and the slice's poster need of it.
    pub fn new(config: PacerConfig) -> Result<(Self, PacerBeat, PacerHandle), PciError> {
        let identity = Identity {
            vendor: pacer::VENDOR_ID,
            device: pacer::DEVICE_ID,
            class: pacer::CLASS,
            revision: 1,
            subsystem_vendor: pacer::VENDOR_ID,
            subsystem: pacer::DEVICE_ID,
        };
        let bars = [
            Bar::registers(0, pacer::BAR0_SIZE),
            Bar::memory(2, pacer::BAR2_SIZE),
            Bar::memory(4, pacer::BAR4_SIZE),
        ];
        let msix = Msix {
            vectors: pacer::vector::COUNT,
            bar: 0,
            table: pacer::MSIX_TABLE_OFFSET,
            pba: pacer::MSIX_PBA_OFFSET,
        };
        let function = Function::new(&identity, &bars, msix)?;
        let wake = EventFd::new().map_err(|errno| PciError::System { call: "eventfd", errno })?;
        let shared = Arc::new(PacerShared {
            control: AtomicU32::new(0),
            state: AtomicU32::new(SliceState::Normal as u32),
            quiesce: AtomicBool::new(false),
            notices: AtomicU32::new(0),
            desk: Desk::new(),
            reason: AtomicU32::new(Reason::None as u32),
            reason_count: AtomicU32::new(0),
            generation: AtomicU32::new(config.generation.0),
            resets: AtomicU32::new(0),
            tsc: ArcSwapOption::empty(),
            wake,
        });
        let (timing, writer) = TimingArea::new()?;
        let ring = Arc::new(MarkerRing::new()?);
        let beat = PacerBeat {
            shared: Arc::clone(&shared),
            timing: writer,
            irqs: Arc::clone(&function.irqs),
        };
        let handle = PacerHandle {
            shared: Arc::clone(&shared),
            markers: MarkerReader::new(Arc::clone(&ring)),
            irqs: Arc::clone(&function.irqs),
        };
        let registers = Registers::new(config.slice, config.now, Arc::clone(&shared));
        Ok((Self { function, registers, timing, ring, shared }, beat, handle))
    }

    fn read_bar0(&mut self, offset: u64, data: &mut [u8]) {
        let (table, pba) = (u64::from(pacer::MSIX_TABLE_OFFSET), u64::from(pacer::MSIX_PBA_OFFSET));
        data.fill(0);
        for (at, part) in split(offset, data, &[table, pba]) {
            match at {
                at if at < table => self.registers.read(at as u32, part),
                at if at < pba => self.function.msix.read_table(at - table, part),
                // Pending bits belong to the client, so here none is ever set.
                _ => {}
            }
        }
    }

    fn write_bar0(&mut self, offset: u64, data: &[u8]) {
        let (table, pba) = (u64::from(pacer::MSIX_TABLE_OFFSET), u64::from(pacer::MSIX_PBA_OFFSET));
        if offset < table {
            self.registers.write(offset as u32, data);
        } else if offset < pba {
            self.function.msix.write_table(offset - table, data);
        }
    }
}

/// Cuts an access at each of `bounds`, which rise: the parts with their offsets.
fn split<'a>(
    offset: u64,
    data: &'a mut [u8],
    bounds: &[u64],
) -> impl Iterator<Item = (u64, &'a mut [u8])> {
    let bounds = bounds.iter().copied().filter(move |b| *b > offset).chain([u64::MAX]);
    let (mut rest, mut at) = (data, offset);
    bounds.map_while(move |bound| {
        let len = usize::try_from(bound - at).unwrap_or(usize::MAX).min(rest.len());
        let (part, more) = std::mem::take(&mut rest).split_at_mut(len);
        rest = more;
        let from = at;
        at = bound;
        (!part.is_empty()).then_some((from, part))
    })
}

impl Device for Pacer {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { resettable: true }
    }

    fn region(&self, index: RegionIndex) -> RegionInfo<'_> {
        let whole = |size| vec![SparseArea { offset: 0, size }];
        match index {
            RegionIndex::CONFIG => Function::config_region(),
            REGISTERS_BAR => trapped(pacer::BAR0_SIZE),
            TIMING_BAR => RegionInfo {
                size: pacer::BAR2_SIZE,
                flags: RegionFlags { read: true, write: false },
                mapping: Some(RegionMapping {
                    fd: self.timing.fd(),
                    fd_offset: 0,
                    write: false,
                    areas: whole(pacer::BAR2_SIZE),
                }),
            },
            MARKER_BAR => RegionInfo {
                size: pacer::BAR4_SIZE,
                flags: RegionFlags { read: true, write: true },
                mapping: Some(RegionMapping {
                    fd: self.ring.as_fd(),
                    fd_offset: 0,
                    write: true,
                    areas: whole(pacer::BAR4_SIZE),
                }),
            },
            _ => RegionInfo::default(),
        }
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        self.function.irq(index)
    }

    fn io_fds(&self, _index: RegionIndex) -> Vec<IoFd<'_>> {
        Vec::new()
    }

    fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        match index {
            RegionIndex::CONFIG => self.function.config.read(offset, data),
            REGISTERS_BAR => self.read_bar0(offset, data),
            TIMING_BAR => self.timing.read(offset, data),
            MARKER_BAR => self.ring.read(offset, data),
            _ => return Err(no_region(index)),
        }
        Ok(())
    }

    fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        match index {
            RegionIndex::CONFIG => {
                if self.function.write_config(offset, data).reset {
                    self.reset();
                }
            }
            REGISTERS_BAR => self.write_bar0(offset, data),
            // Read-only memory: writes are dropped.
            TIMING_BAR => {}
            MARKER_BAR => self.ring.write(offset, data),
            _ => return Err(no_region(index)),
        }
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError> {
        self.function.set_irqs(index, start, count, action)
    }

    /// The pacer does no DMA: it has no use for the guest's memory and keeps none of it.
    fn dma_map(&mut self, _map: DmaMap) -> Result<(), DeviceError> {
        Ok(())
    }

    fn dma_unmap(&mut self, _iova: u64, _size: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn dma_unmap_all(&mut self) {}

    /// What the VMM said about the TSC stays: it is true of the guest, not of its driver.
    fn reset(&mut self) {
        self.function.reset();
        self.registers.reset();
        self.ring.reset();
        self.shared.control.store(0, Ordering::Release);
        self.shared.desk.reset();
        self.shared.resets.fetch_add(1, Ordering::Release);
        self.shared.wake.signal();
    }

    fn disconnected(&mut self) {
        self.function.irqs.clear();
        self.shared.tsc.store(None);
        self.reset();
    }
}

fn no_region(index: RegionIndex) -> DeviceError {
    DeviceError::Invalid(format!(
        "the pacer has no region {}: it has BAR 0, 2, 4 and config",
        index.0
    ))
}
