//! What a display shows, readable from any thread: the front image and the cursor over it.
//!
//! The slice's worker writes under the lock, for one flush at a time; a reader copies under it. No other
//! thread of the frame's path takes it.

use super::format::{Format, PIXEL};
use beamline_abi::virtio_gpu::CURSOR_SIDE;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A cursor's side in pixels.
const SIDE: usize = CURSOR_SIDE as usize;
/// Bytes of a cursor's image.
pub(super) const CURSOR_BYTES: usize = SIDE * SIDE * PIXEL;

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Rows from the top, 4 bytes per pixel, without padding.
    pub rgba: Vec<u8>,
}

/// The front image, in the format of the resource that is shown.
#[derive(Clone, Debug)]
pub(super) struct Front {
    pub(super) format: Format,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<u8>,
}

/// The cursor: colours that its alpha is multiplied into already, as Linux makes them.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) rgba: Box<[u8; CURSOR_BYTES]>,
}

/// What is shown.
#[derive(Debug, Default)]
pub(super) struct Shows {
    /// `None`: the scanout is off.
    pub(super) front: Option<Front>,
    pub(super) cursor: Option<Cursor>,
}

/// A display's screen.
#[derive(Debug, Default)]
pub struct Screen(Mutex<Shows>);

impl Screen {
    /// What the guest shows; `None` where its scanout is off. The worker waits for a plain copy at most.
    pub fn image(&self) -> Option<Image> {
        let (front, cursor) = {
            let shows = self.lock();
            (shows.front.clone()?, shows.cursor.clone())
        };
        let (pixels, _) = front.pixels.as_chunks::<PIXEL>();
        let mut rgba: Vec<u8> = pixels.iter().flat_map(|p| front.format.rgba(*p)).collect();
        if let Some(cursor) = cursor {
            blend(&mut rgba, front.width, front.height, &cursor);
        }
        Some(Image { width: front.width as u32, height: front.height as u32, rgba })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Draws the cursor over the image, as far as it lies on it.
fn blend(rgba: &mut [u8], width: usize, height: usize, cursor: &Cursor) {
    let on = |start: i32, at: usize, side: usize| {
        usize::try_from(i64::from(start) + at as i64).ok().filter(|place| *place < side)
    };
    let (pixels, _) = rgba.as_chunks_mut::<PIXEL>();
    let (drawn, _) = cursor.rgba.as_chunks::<PIXEL>();
    for (row, line) in drawn.chunks_exact(SIDE).enumerate() {
        let Some(y) = on(cursor.y, row, height) else { continue };
        for (column, over) in line.iter().enumerate() {
            let Some(x) = on(cursor.x, column, width) else { continue };
            if let Some(under) = pixels.get_mut(y * width + x) {
                let left = 255 - u32::from(over[3]);
                for (to, from) in under.iter_mut().zip(over) {
                    let sum = u32::from(*from) + (u32::from(*to) * left + 127) / 255;
                    *to = sum.min(255) as u8;
                }
            }
        }
    }
}
