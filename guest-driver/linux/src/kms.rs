//! The kernel's mode setting interface (drm/drm.h, drm/drm_mode.h), as far as page flips of dumb buffers need it.
#![allow(unsafe_code, reason = "DRM is ioctls that take pointers")]

use crate::mapping::Mapping;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode as FileMode, OFlags, open};
use rustix::io::{Errno, read};
use std::ffi::c_ulong;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `DRM_CONNECTOR`'s state `connected`.
const CONNECTED: u32 = 1;
/// `DRM_MODE_PAGE_FLIP_EVENT`.
const WITH_EVENT: u32 = 1;
/// `DRM_EVENT_FLIP_COMPLETE`.
const FLIP_COMPLETE: u32 = 2;
/// Connectors, or modes of one, that are looked at.
const MOST: usize = 32;
/// Bits of a pixel, and those of them that are colour: XRGB8888.
const BITS: u32 = 32;
const DEPTH: u32 = 24;

/// What the kernel refuses.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// A call failed.
    #[error("{what} failed: {errno}")]
    Call {
        /// The step.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// Nothing is connected, or it has no mode.
    #[error("{0}: attach a display")]
    NoDisplay(&'static str),
    /// A flip did not end.
    #[error("no flip ended within {0:?}")]
    Late(Duration),
    /// The kernel said what this program does not know.
    #[error("the card says what is no flip's end: {0} bytes, kind {1}")]
    Strange(usize, u32),
}

const fn failed(what: &'static str) -> impl FnOnce(Errno) -> KmsError {
    move |errno| KmsError::Call { what, errno }
}

/// A structure that a request reads and writes.
trait Argument: FromBytes + IntoBytes {
    /// The request's number.
    const NUMBER: c_ulong;
    /// What it is for, for people.
    const WHAT: &'static str;
}

macro_rules! argument {
    ($(#[$doc:meta])* $number:literal, $what:literal, $name:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        struct $name { $($field: $kind,)* }

        impl Argument for $name {
            const NUMBER: c_ulong = $number;
            const WHAT: &'static str = $what;
        }
    };
}

/// `struct drm_mode_modeinfo`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ModeInfo {
    clock: u32,
    hdisplay: u16,
    h: [u16; 4],
    vdisplay: u16,
    v: [u16; 4],
    vrefresh: u32,
    flags: u32,
    kind: u32,
    name: [u8; 32],
}

argument! {
    /// `struct drm_mode_card_res`.
    0xa0, "listing connectors", Resources {
        fbs: u64,
        crtcs: u64,
        connectors: u64,
        encoders: u64,
        fb_count: u32,
        crtc_count: u32,
        connector_count: u32,
        encoder_count: u32,
        bounds: [u32; 4],
    }
}
argument! {
    /// `struct drm_mode_get_connector`.
    0xa7, "asking for a connector", Connector {
        encoders: u64,
        modes: u64,
        props: u64,
        prop_values: u64,
        mode_count: u32,
        prop_count: u32,
        encoder_count: u32,
        encoder: u32,
        id: u32,
        kind: u32,
        kind_id: u32,
        connection: u32,
        size_mm: [u32; 2],
        subpixel: u32,
        padding: u32,
    }
}
argument! {
    /// `struct drm_mode_create_dumb`.
    0xb2, "making a buffer", CreateDumb {
        height: u32,
        width: u32,
        bits: u32,
        flags: u32,
        handle: u32,
        pitch: u32,
        size: u64,
    }
}
argument! {
    /// `struct drm_mode_map_dumb`.
    0xb3, "asking where a buffer is", MapDumb { handle: u32, padding: u32, offset: u64, }
}
argument! {
    /// `struct drm_mode_fb_cmd`.
    0xae, "making a framebuffer", AddFramebuffer {
        id: u32,
        width: u32,
        height: u32,
        pitch: u32,
        bits: u32,
        depth: u32,
        handle: u32,
    }
}
argument! {
    /// `struct drm_mode_crtc`.
    0xa2, "setting the mode", SetCrtc {
        connectors: u64,
        connector_count: u32,
        crtc: u32,
        fb: u32,
        x: u32,
        y: u32,
        gamma: u32,
        mode_valid: u32,
        mode: ModeInfo,
    }
}
argument! {
    /// `struct drm_mode_crtc_page_flip`.
    0xb0, "flipping", PageFlip { crtc: u32, fb: u32, flags: u32, reserved: u32, user: u64, }
}
const _: () = assert!(size_of::<Resources>() == 64 && size_of::<Connector>() == 80);
const _: () = assert!(size_of::<CreateDumb>() == 32 && size_of::<MapDumb>() == 16);
const _: () = assert!(size_of::<AddFramebuffer>() == 28 && size_of::<SetCrtc>() == 104);
const _: () = assert!(size_of::<PageFlip>() == 24 && size_of::<ModeInfo>() == 68);

/// `struct drm_event_vblank`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct VblankEvent {
    kind: u32,
    length: u32,
    user: u64,
    seconds: u32,
    micros: u32,
    sequence: u32,
    crtc: u32,
}

/// Calls a request of DRM. What it points to must be as it says, and live until it returns.
///
/// # Safety
/// Each address in `argument` is of as many bytes as the count beside it makes, to be written by the kernel.
unsafe fn call<T: Argument>(card: &OwnedFd, argument: &mut T) -> Result<(), KmsError> {
    // `_IOWR('d', number, T)`.
    let request = 0b11 << 30 | (size_of::<T>() as c_ulong) << 16 | 0x64 << 8 | T::NUMBER;
    // SAFETY: the request reads and writes a `T`; what that points to is the caller's.
    while unsafe { libc::ioctl(card.as_raw_fd(), request, std::ptr::from_mut(argument)) } < 0 {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
        if errno != Errno::INTR {
            return Err(failed(T::WHAT)(errno));
        }
    }
    Ok(())
}

/// The end of a flip, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flipped {
    /// `CLOCK_MONOTONIC`, µs.
    pub micros: u64,
    /// The number of the vblank; 0 of a driver that counts none.
    pub sequence: u32,
}

/// An image that can be shown, and written to.
#[derive(Debug)]
pub struct Buffer {
    memory: Mapping,
    pitch: u32,
    fb: u32,
}

impl Buffer {
    /// Writes a row of pixels, 0x00RRGGBB each.
    pub fn write_row(&self, y: u32, pixels: impl Iterator<Item = u32>) {
        let row = u64::from(y) * u64::from(self.pitch);
        for (at, pixel) in (row..).step_by(4).zip(pixels) {
            self.memory.write(at, beamline_guest_driver::transport::Width::Dword, pixel.into());
        }
    }
}

/// A card's first display that is connected, and its preferred mode.
#[derive(Debug)]
pub struct Display {
    card: OwnedFd,
    crtc: u32,
    connector: u32,
    mode: ModeInfo,
}

impl Display {
    /// Opens the card at `path`. Who opens it first may set modes.
    ///
    /// # Errors
    /// The kernel's, and [`KmsError::NoDisplay`].
    pub fn open(path: &str) -> Result<Self, KmsError> {
        let card = open(path, OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty())
            .map_err(failed("opening the card"))?;
        let (mut crtcs, mut connectors) = ([0u32; MOST], [0u32; MOST]);
        let mut found = Resources {
            crtcs: (&raw mut crtcs) as u64,
            connectors: (&raw mut connectors) as u64,
            crtc_count: MOST as u32,
            connector_count: MOST as u32,
            ..Resources::default()
        };
        // SAFETY: both lists have room for as many numbers as is said, the other two for none.
        unsafe { call(&card, &mut found) }?;
        let crtc = crtcs[0];
        for &id in connectors.iter().take(found.connector_count as usize) {
            let mut modes = [ModeInfo::default(); MOST];
            // The first question, with no room, has the kernel look at the display.
            let mut connector = Connector { id, ..Connector::default() };
            // SAFETY: there is room for nothing, as is said.
            unsafe { call(&card, &mut connector) }?;
            let known = connector.mode_count.min(MOST as u32);
            let modes_at = (&raw mut modes) as u64;
            connector =
                Connector { id, mode_count: known, modes: modes_at, ..Connector::default() };
            // SAFETY: the list has room for as many modes as is said, the others for nothing.
            unsafe { call(&card, &mut connector) }?;
            if connector.connection == CONNECTED && known > 0 && crtc != 0 {
                return Ok(Self { card, crtc, connector: id, mode: modes[0] });
            }
        }
        Err(KmsError::NoDisplay("no connector is connected and has a mode"))
    }

    /// Pixels of the mode.
    pub fn size(&self) -> (u32, u32) {
        (self.mode.hdisplay.into(), self.mode.vdisplay.into())
    }

    /// The mode's rate as the kernel rounds it, Hz.
    pub fn rate(&self) -> u32 {
        self.mode.vrefresh
    }

    /// Makes a buffer of the mode's size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn buffer(&self) -> Result<Buffer, KmsError> {
        let (width, height) = self.size();
        let mut made = CreateDumb { width, height, bits: BITS, ..CreateDumb::default() };
        // SAFETY: it holds no address.
        unsafe { call(&self.card, &mut made) }?;
        let mut fb = AddFramebuffer {
            width,
            height,
            pitch: made.pitch,
            bits: BITS,
            depth: DEPTH,
            handle: made.handle,
            ..AddFramebuffer::default()
        };
        // SAFETY: it holds no address.
        unsafe { call(&self.card, &mut fb) }?;
        let mut place = MapDumb { handle: made.handle, ..MapDumb::default() };
        // SAFETY: it holds no address.
        unsafe { call(&self.card, &mut place) }?;
        let memory = Mapping::of(&self.card, place.offset, made.size as usize)
            .map_err(failed("mapping a buffer"))?;
        Ok(Buffer { memory, pitch: made.pitch, fb: fb.id })
    }

    /// Sets the mode, and shows a buffer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn show(&self, buffer: &Buffer) -> Result<(), KmsError> {
        let mut connector = self.connector;
        let mut set = SetCrtc {
            connectors: (&raw mut connector) as u64,
            connector_count: 1,
            crtc: self.crtc,
            fb: buffer.fb,
            mode_valid: 1,
            mode: self.mode,
            ..SetCrtc::default()
        };
        // SAFETY: the list has the one connector that is said.
        unsafe { call(&self.card, &mut set) }
    }

    /// Has a buffer shown from the next flip on. [`Display::flipped`] tells when it is.
    ///
    /// # Errors
    /// The kernel's; `EBUSY` while the last flip has not ended.
    pub fn flip(&self, buffer: &Buffer) -> Result<(), KmsError> {
        let mut flip =
            PageFlip { crtc: self.crtc, fb: buffer.fb, flags: WITH_EVENT, ..PageFlip::default() };
        // SAFETY: it holds no address.
        unsafe { call(&self.card, &mut flip) }
    }

    /// Waits until the flip has ended.
    ///
    /// # Errors
    /// The kernel's, [`KmsError::Late`] after `patience`, [`KmsError::Strange`].
    pub fn flipped(&self, patience: Duration) -> Result<Flipped, KmsError> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let time =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.card, PollFlags::IN)], Some(&time)) {
                Ok(0) => return Err(KmsError::Late(patience)),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("waiting for a flip")(errno)),
            }
        }
        let mut event = VblankEvent::default();
        let bytes = read(&self.card, event.as_mut_bytes()).map_err(failed("reading an event"))?;
        if bytes != size_of::<VblankEvent>() || event.kind != FLIP_COMPLETE {
            return Err(KmsError::Strange(bytes, event.kind));
        }
        let micros = u64::from(event.seconds) * 1_000_000 + u64::from(event.micros);
        Ok(Flipped { micros, sequence: event.sequence })
    }
}
