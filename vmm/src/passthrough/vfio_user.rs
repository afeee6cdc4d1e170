//! A function served by another process over vfio-user.
//!
//! ```text
//! attach ─► Attached ──(the connection ends)──► Lost
//! ```
//!
//! A lost function stays in its slot: reads are all-ones, writes are dropped, mapped pages keep their last
//! contents. The guest goes on.

use super::bar::Backing;
use super::connect::Cutter;
use super::dma::RamView;
use super::link::{Link, LinkError};
use super::reset;
use super::server::Server;
use crate::Gpa;
use crate::clock::TscOffset;
use crate::interrupt::watch::TimingView;
use crate::memory::RamFile;
use crate::pci::bar::{self, BARS, BarError, BarShapes};
use crate::pci::msix::{Capability, Msix, MsixError, Signaller};
use crate::pci::{ConfigEffect, PciFunction, Wiring, nothing};
use beamline_abi::pacer;
use beamline_abi::pci::{capability, config, msix, status};
use beamline_vfio_user::{IrqIndex, RegionIndex};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// First place where a capability can be.
const FIRST_CAPABILITY: u8 = 0x40;
/// A list that is longer than configuration space has room for is a loop.
const MAX_CAPABILITIES: usize = 48;

/// The BAR that is a pacer's timing page.
const TIMING_BAR: usize = 2;

/// Why a function cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A request failed.
    #[error("{label}: {what} failed")]
    Link {
        /// The function.
        label: String,
        /// What was asked.
        what: &'static str,
        /// Why.
        source: LinkError,
    },
    /// The configuration space is too small.
    #[error("{label}: its configuration space has {size} bytes; a PCI function has at least 256")]
    Config {
        /// The function.
        label: String,
        /// Its size in bytes.
        size: u64,
    },
    /// No function answers.
    #[error("{label}: its vendor ID is {vendor:#06x}, so that no guest would see it")]
    Vendor {
        /// The function.
        label: String,
        /// The ID.
        vendor: u16,
    },
    /// Its BARs make no sense.
    #[error("{label}: its BARs make no sense")]
    Bars {
        /// The function.
        label: String,
        /// Why.
        source: BarError,
    },
    /// Its MSI-X capability makes no sense.
    #[error("{label}: its MSI-X capability makes no sense")]
    Msix {
        /// The function.
        label: String,
        /// Why.
        source: MsixError,
    },
}

/// A function served over vfio-user.
pub struct VfioUser {
    label: String,
    server: Arc<Server>,
    bars: BarShapes,
    backing: [Backing; BARS],
    msix: Option<Msix>,
    express: Option<u16>,
    tsc: Option<TscOffset>,
    /// The second handle to its connection, which goes with it.
    cutter: Option<Arc<Cutter>>,
}

impl VfioUser {
    /// Attaches the function behind `link` and shows it the guest's RAM, which the view may change. `tsc` is
    /// told to a pacer.
    pub fn attach(
        label: String,
        mut link: Box<dyn Link>,
        ram: &RamFile,
        tsc: TscOffset,
    ) -> Result<(Self, RamView), AttachError> {
        let l = &mut *link;
        let failed = |what| {
            let label = label.clone();
            move |source| AttachError::Link { label, what, source }
        };
        let size = l.region(RegionIndex::CONFIG).map_err(failed("asking for its regions"))?.size;
        if size < config::SIZE as u64 {
            return Err(AttachError::Config { label, size });
        }
        let mut space = [0; config::SIZE];
        for (register, at) in space.chunks_exact_mut(4).zip((0..).step_by(4)) {
            l.read(RegionIndex::CONFIG, at, register)
                .map_err(failed("reading its configuration space"))?;
        }
        let vendor = u16_at(&space, config::VENDOR_ID);
        if matches!(vendor, 0 | 0xffff) {
            return Err(AttachError::Vendor { label, vendor });
        }
        let mut regions = Vec::with_capacity(BARS);
        for bar in 0..BARS as u32 {
            let region = l.region(RegionIndex::bar(bar)).map_err(failed("asking for its BARs"))?;
            let bells = if region.size == 0 {
                Vec::new()
            } else {
                l.doorbells(RegionIndex::bar(bar)).map_err(failed("asking for its doorbells"))?
            };
            regions.push((region, bells));
        }
        let mut sizes = [0; BARS];
        for (size, (region, _)) in sizes.iter_mut().zip(&regions) {
            *size = region.size;
        }
        let mut lows = [0; BARS];
        for (low, at) in lows.iter_mut().zip((config::BAR0..).step_by(4)) {
            *low = u32_at(&space, at);
        }
        let bars = bar::shapes(lows, sizes)
            .map_err(|source| AttachError::Bars { label: label.clone(), source })?;
        let msix = match find(&space, capability::MSIX) {
            Some(at) => {
                let vectors =
                    l.vectors(IrqIndex::MSIX).map_err(failed("asking for its interrupts"))?;
                let capability = Capability::check(at, bytes_at(&space, at), &sizes, vectors)
                    .map_err(|source| AttachError::Msix { label: label.clone(), source })?;
                Some(Msix::new(capability))
            }
            None => None,
        };
        let mut backing: [Backing; BARS] = Default::default();
        for (bar, (region, bells)) in regions.into_iter().enumerate() {
            let keep_out = keep_out(msix.as_ref(), bar);
            backing[bar] = Backing::new(&format!("{label}: BAR{bar}"), region, bells, &keep_out);
        }
        let server = Arc::new(Server::new(label.clone(), link));
        let mut view = RamView::new(Arc::clone(&server), ram.clone());
        let showing = if ram.is_of_huge_pages() {
            // They can be given back behind a server's back, and then end it when it looks.
            "showing it the guest's huge pages, which `beamline host` takes only with `memory.hugepages` = \"transparent\","
        } else {
            "showing it the guest's memory"
        };
        view.show_ram().map_err(failed(showing))?;
        let is_pacer = vendor == pacer::VENDOR_ID
            && u16_at(&space, config::DEVICE_ID) == pacer::DEVICE_ID
            && sizes[0] >= pacer::BAR0_SIZE;
        let mut this = Self {
            label,
            server,
            bars,
            backing,
            msix,
            express: find(&space, capability::EXPRESS),
            tsc: is_pacer.then_some(tsc),
            cutter: None,
        };
        this.tell_tsc();
        Ok((this, view))
    }

    /// The same, which keeps `cutter` for as long as there is the function.
    #[must_use]
    pub(crate) fn with_cutter(mut self, cutter: Arc<Cutter>) -> Self {
        self.cutter = Some(cutter);
        self
    }

    /// The timing page, where this is a pacer whose page is mapped.
    pub(crate) fn timing(&self) -> Option<TimingView> {
        self.tsc?;
        TimingView::new(self.backing[TIMING_BAR].mapping(0)?)
    }

    /// Tells a pacer how the guest's TSC relates to the host's.
    fn tell_tsc(&mut self) {
        let Some(TscOffset(offset)) = self.tsc else { return };
        let writes = [
            (pacer::reg::TSC_OFFSET, offset as u32),
            (pacer::reg::TSC_OFFSET + 4, (offset >> 32) as u32),
            (pacer::reg::TSC_SCALE, 0),
            (pacer::reg::TSC_SCALE + 4, 0),
            (pacer::reg::TSC_COMMIT, 1),
        ];
        for (register, value) in writes {
            self.server
                .ask(|l| l.write(RegionIndex::bar(0), u64::from(register), &value.to_le_bytes()));
        }
    }

    fn in_msix(&self, bar: usize, offset: u64) -> Option<Structure> {
        let c = self.msix.as_ref()?.capability();
        if c.table.bar == bar && c.table.range.contains(&offset) {
            Some(Structure::Table(offset - c.table.range.start))
        } else if c.pba.bar == bar && c.pba.range.contains(&offset) {
            Some(Structure::Pba(offset - c.pba.range.start))
        } else {
            None
        }
    }
}

/// The server's side of the vectors.
struct Vectors<'a>(&'a mut dyn Link);

impl Signaller for Vectors<'_> {
    type Error = LinkError;

    fn set(&mut self, start: u32, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.0.set_irqs(IrqIndex::MSIX, start, fds)
    }

    fn clear(&mut self, count: u32) -> Result<(), LinkError> {
        self.0.clear_irqs(IrqIndex::MSIX, 0, count)
    }
}

/// A structure in a BAR that the VMM owns, with the offset into it.
enum Structure {
    Table(u64),
    Pba(u64),
}

impl PciFunction for VfioUser {
    fn label(&self) -> &str {
        &self.label
    }

    fn bars(&self) -> &BarShapes {
        &self.bars
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let read = self.server.ask(|l| l.read(RegionIndex::CONFIG, u64::from(offset), data));
        if read.is_none() {
            nothing(data);
        } else if let Some(msix) = &self.msix {
            msix.overlay_control(offset, data);
        }
    }

    fn config_write(&mut self, wiring: &mut dyn Wiring, offset: u16, data: &[u8]) -> ConfigEffect {
        self.server.ask(|l| l.write(RegionIndex::CONFIG, u64::from(offset), data));
        let flr = reset::starts_flr(self.express, offset, data);
        if let Some(msix) = &mut self.msix {
            // Irqfds change even where the server is lost.
            self.server.tell(|link| {
                let server = &mut Vectors(link);
                if flr {
                    msix.reset(wiring, server)
                } else {
                    msix.write_control(wiring, server, offset, data)
                }
            });
        }
        if !flr {
            return ConfigEffect::None;
        }
        self.tell_tsc();
        ConfigEffect::Reset
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        match (self.in_msix(bar, offset), &self.msix) {
            (Some(Structure::Table(at)), Some(msix)) => return msix.read_table(at, data),
            (Some(Structure::Pba(at)), Some(msix)) => return msix.read_pba(at, data),
            _ => {}
        }
        let readable = self.backing.get(bar).is_some_and(|b| b.flags().read);
        let index = RegionIndex::bar(bar as u32);
        if !readable || self.server.ask(|l| l.read(index, offset, data)).is_none() {
            nothing(data);
        }
    }

    fn bar_write(&mut self, wiring: &mut dyn Wiring, bar: usize, offset: u64, data: &[u8]) {
        match (self.in_msix(bar, offset), &mut self.msix) {
            (Some(Structure::Table(at)), Some(msix)) => {
                return msix.write_table(wiring, at, data);
            }
            (Some(Structure::Pba(_)), _) => return,
            _ => {}
        }
        let Some(backing) = self.backing.get(bar) else { return };
        if backing.flags().write && !backing.is_read_only(offset) {
            let index = RegionIndex::bar(bar as u32);
            self.server.ask(|l| l.write(index, offset, data));
        }
    }

    fn map(&mut self, wiring: &mut dyn Wiring, bar: usize, at: Gpa) {
        if let Some(backing) = self.backing.get_mut(bar) {
            backing.map(&self.label, wiring, at);
        }
    }

    fn unmap(&mut self, wiring: &mut dyn Wiring, bar: usize) {
        if let Some(backing) = self.backing.get_mut(bar) {
            backing.unmap(&self.label, wiring);
        }
    }

    /// By a function-level reset, where the function has one: the protocol's own would reset what is shown of the
    /// guest's memory with it.
    fn reset(&mut self, wiring: &mut dyn Wiring) {
        if let Some(express) = self.express {
            let flr = reset::INITIATE_FLR.to_le_bytes();
            let _ = self.config_write(wiring, express + reset::DEVICE_CONTROL, &flr);
        } else if let Some(msix) = &mut self.msix {
            self.server.tell(|link| msix.reset(wiring, &mut Vectors(link)));
        }
    }

    /// The connection ends with it: the server forgets its guest's memory and interrupts then.
    fn detach(mut self: Box<Self>, wiring: &mut dyn Wiring) -> Option<Box<dyn PciFunction>> {
        if let Some(cutter) = &self.cutter {
            cutter.cut();
        }
        if let Some(msix) = &mut self.msix {
            let Ok(()) = msix.reset(wiring, &mut Nobody);
        }
        None
    }
}

/// A server that is about to be left needs no word about its vectors.
struct Nobody;

impl Signaller for Nobody {
    type Error = std::convert::Infallible;

    fn set(&mut self, _: u32, _: &[BorrowedFd<'_>]) -> Result<(), Self::Error> {
        Ok(())
    }

    fn clear(&mut self, _: u32) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The ranges of BAR `bar` that the VMM owns.
fn keep_out(msix: Option<&Msix>, bar: usize) -> Vec<Range<u64>> {
    let Some(c) = msix.map(Msix::capability) else { return Vec::new() };
    [&c.table, &c.pba].into_iter().filter(|p| p.bar == bar).map(|p| p.range.clone()).collect()
}

/// Finds a capability that lies wholly in configuration space (PCI 3.0, section 6.7).
fn find(space: &[u8; config::SIZE], id: u8) -> Option<u16> {
    if u16_at(space, config::STATUS) & status::CAPABILITIES == 0 {
        return None;
    }
    let last = config::SIZE - usize::from(msix::CAP_SIZE);
    let mut at = space[usize::from(config::CAPABILITIES)] & !3;
    for _ in 0..MAX_CAPABILITIES {
        let i = usize::from(at);
        if at < FIRST_CAPABILITY || i > last {
            return None;
        }
        if space[i] == id {
            return Some(u16::from(at));
        }
        at = space[i + 1] & !3;
    }
    None
}

/// The bytes at `at`; zeros beyond the end.
fn bytes_at<const N: usize>(space: &[u8], at: u16) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(space.iter().skip(usize::from(at))) {
        *to = *from;
    }
    bytes
}

fn u16_at(space: &[u8], at: u16) -> u16 {
    u16::from_le_bytes(bytes_at(space, at))
}

fn u32_at(space: &[u8], at: u16) -> u32 {
    u32::from_le_bytes(bytes_at(space, at))
}

#[cfg(test)]
mod tests;
