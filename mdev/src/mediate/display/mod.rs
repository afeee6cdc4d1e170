//! The display of a guest with a stock driver (virtio 1.3, section 5.7), in software on the slice's worker:
//! 2D resources and blobs of guest memory, one scanout, one cursor. No GPU work, no scheduler.
//!
//! | file | is |
//! |---|---|
//! | [`resources`] | resources by ID, and the quota they are charged to |
//! | `backing` | a resource's guest memory: scattered pieces, copied once, read as one range |
//! | [`screen`] | the front image and the cursor, for readers on other threads |
//! | [`format`] | pixels as red, green, blue, alpha |
//! | [`edid`] | the display's EDID |
//!
//! Guest memory is reached through [`Guest`] alone. Each request tells what it cost, so that the worker
//! can make a guest that copies too much wait.

mod backing;
#[cfg(test)]
mod driver_tests;
pub mod edid;
pub mod format;
mod requests;
pub mod resources;
pub mod screen;
#[cfg(test)]
mod tests;

use crate::memory::Gpa;
use beamline_abi::Nanos;
use beamline_abi::virtio_gpu::{Rect, cmd};
use beamline_sched::Period;
use format::PIXEL;
use resources::Resources;
use screen::Screen;
use std::sync::Arc;

use super::limit::Bucket;
use crate::device::virtio::gpu::Shown;

/// A request and the memory of the guest that made it.
pub trait Guest {
    /// Copies `out.len()` bytes of the request from `offset` on.
    fn request(&self, offset: u64, out: &mut [u8]) -> Result<(), Fault>;
    /// Copies guest memory.
    fn memory(&self, at: Gpa, out: &mut [u8]) -> Result<(), Fault>;
    /// Whether the device may read there.
    fn check(&self, at: Gpa, len: u64) -> Result<(), Fault>;
}

/// Why a guest's bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is too short, or its memory is not mapped for the device.
    Unreachable,
    /// The device was reset, or the guest took its memory away.
    Gone,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Scanout,
    Resource,
    Parameter,
    Memory,
    Unsupported,
    /// Nobody waits for an answer any more.
    Gone,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unreachable => Self::Parameter,
            Fault::Gone => Self::Gone,
        }
    }
}

/// How a request ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The response type.
    Answer(u32),
    /// Done: what is on the screen changed, so a fence waits for the vblank that shows it.
    Flushed,
    /// The device was reset meanwhile: there is nobody to answer.
    Gone,
}

/// What a display is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisplaySettings {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Between two vblanks.
    pub period: Period,
    /// Bytes of the host's memory for resources and the front image.
    pub quota: u64,
}

/// Bytes that one token of the copy allowance pays for.
const TOKEN: u64 = 4096;
/// Most bytes that a slice may have copied in a second: a fraction of a core.
const MAX_RATE: u64 = 2 << 30;
/// Copies of the whole display that a slice may make per vblank: a transfer and a flush, and as much again
/// in damage that overlaps.
const COPIES_PER_VBLANK: u64 = 3;
/// Vblanks' worth of copies that may come at once.
const BURST: u64 = 2;

impl DisplaySettings {
    /// How much the guest may have copied, in tokens of [`Display::take_cost`].
    pub fn allowance(&self) -> Bucket {
        let bytes = u64::from(self.width) * u64::from(self.height) * PIXEL as u64;
        let per_vblank = (bytes * COPIES_PER_VBLANK).div_ceil(TOKEN).max(1);
        let fastest = 1_000_000_000_u64.div_ceil(MAX_RATE / TOKEN);
        let interval = (self.period.floor().0 / per_vblank).max(fastest);
        Bucket::new(per_vblank * BURST, Nanos(interval))
    }
}

/// A rectangle that lies inside something, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl Area {
    /// `rect`, if no part of it is outside `width` by `height` pixels. It may be empty.
    fn within(rect: &Rect, width: u32, height: u32) -> Result<Self, Refused> {
        let fits = |start: u32, len: u32, side| start.checked_add(len).is_some_and(|e| e <= side);
        if !fits(rect.x, rect.width, width) || !fits(rect.y, rect.height, height) {
            return Err(Refused::Parameter);
        }
        let Rect { x, y, width, height } = *rect;
        let [x, y, width, height] = [x, y, width, height].map(|n| n as usize);
        Ok(Self { x, y, width, height })
    }

    /// What is in both; empty where nothing is.
    fn intersect(&self, other: &Self) -> Self {
        let cut = |a: usize, a_len: usize, b: usize, b_len: usize| {
            let start = a.max(b);
            (start, (a + a_len).min(b + b_len).saturating_sub(start))
        };
        let (x, width) = cut(self.x, self.width, other.x, other.width);
        let (y, height) = cut(self.y, self.height, other.y, other.height);
        Self { x, y, width, height }
    }

    fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0
    }
}

/// How a blob is an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    offset: u64,
    stride: u64,
}

/// What the scanout shows.
#[derive(Clone, Copy, Debug)]
struct Binding {
    resource: u32,
    /// Pixels of the framebuffer.
    size: (u32, u32),
    /// Which part of it.
    area: Area,
    /// For blobs.
    layout: Option<Layout>,
    /// Nothing of it is on the screen yet: the next flush shows all of it.
    fresh: bool,
}

/// One slice's display.
#[derive(Debug)]
pub struct Display {
    settings: DisplaySettings,
    resources: Resources,
    scanout: Option<Binding>,
    screen: Arc<Screen>,
    /// Bytes of the quota that the front image has.
    front: u64,
    blobs: bool,
    /// Bytes copied since [`Display::take_cost`].
    cost: u64,
}

impl Display {
    /// A display that shows nothing.
    pub fn new(settings: DisplaySettings) -> Self {
        let resources = Resources::new(settings.quota);
        let screen = Arc::default();
        Self { settings, resources, scanout: None, screen, front: 0, blobs: false, cost: 0 }
    }

    /// What it is made from.
    pub fn settings(&self) -> &DisplaySettings {
        &self.settings
    }

    /// What it shows, for other threads.
    pub fn screen(&self) -> Arc<Screen> {
        Arc::clone(&self.screen)
    }

    /// A new driver, or none: all that the one before it made is gone.
    pub fn reset(&mut self, blobs: bool) {
        self.turn_off();
        self.screen.lock().cursor = None;
        self.resources.clear();
        self.blobs = blobs;
    }

    /// What the requests since the last call cost, in tokens of [`DisplaySettings::allowance`].
    pub fn take_cost(&mut self) -> u64 {
        std::mem::take(&mut self.cost).div_ceil(TOKEN)
    }

    /// Does what a request of the control queue asks for.
    pub fn control(&mut self, guest: &dyn Guest, request: &Shown) -> Done {
        let result = match request {
            Shown::Create(r) => {
                self.resources.make_surface(r.resource_id, r.format, r.width, r.height)
            }
            Shown::CreateBlob(r) => self.create_blob(guest, r),
            Shown::Unref { resource } => self.unref(*resource),
            Shown::Attach { resource, entries } => self.attach(guest, *resource, *entries),
            Shown::Detach { resource } => self.detach(*resource),
            Shown::Transfer(r) => self.transfer(guest, r),
            Shown::Scanout(r) => self.set_scanout(r),
            Shown::ScanoutBlob(r) => self.set_scanout_blob(r),
            Shown::Flush { resource, rect } => match self.flush(guest, *resource, rect) {
                Ok(true) => return Done::Flushed,
                Ok(false) => Ok(()),
                Err(refused) => Err(refused),
            },
            Shown::Cursor(_) | Shown::MoveCursor(_) => Err(Refused::Unsupported),
        };
        done(result)
    }

    /// Does what a request of the cursor queue asks for.
    pub fn cursor(&mut self, guest: &dyn Guest, request: &Shown) -> Done {
        done(match request {
            Shown::Cursor(r) => self.update_cursor(guest, r),
            Shown::MoveCursor(r) => self.move_cursor(&r.pos),
            _ => Err(Refused::Unsupported),
        })
    }

    /// Switches the scanout off.
    fn turn_off(&mut self) {
        self.scanout = None;
        self.screen.lock().front = None;
        self.resources.give(std::mem::take(&mut self.front));
    }
}

fn done(result: Result<(), Refused>) -> Done {
    Done::Answer(match result {
        Ok(()) => cmd::RESP_OK_NODATA,
        Err(Refused::Scanout) => cmd::RESP_ERR_INVALID_SCANOUT_ID,
        Err(Refused::Resource) => cmd::RESP_ERR_INVALID_RESOURCE_ID,
        Err(Refused::Parameter) => cmd::RESP_ERR_INVALID_PARAMETER,
        Err(Refused::Memory) => cmd::RESP_ERR_OUT_OF_MEMORY,
        Err(Refused::Unsupported) => cmd::RESP_ERR_UNSPEC,
        Err(Refused::Gone) => return Done::Gone,
    })
}
