//! What slices show, as pictures.

use super::dispatch::Control;
use super::{Drained, Host};
use crate::backend::Event;
pub use crate::mediate::display::screen::Image;
use std::io;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long a picture may take to come back.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(2);
impl Host {
    /// What a slice shows: its 2D scanout with the cursor over it, or without one what its context presented
    /// last. `None` where there is no such slice, or it shows nothing. Waits for the renderer, for two
    /// seconds at most.
    pub fn scanout(&self, slice: &str) -> Option<Image> {
        let index = self.config.slices.iter().position(|s| s.name == slice)?;
        if let Some(image) = self.slices.get(index)?.screen().image() {
            return Some(image);
        }
        let (reply, image) = channel();
        self.control.send(Control::Capture { slice: index as u16, reply }).ok()?;
        self.wake.signal();
        // No context, or nothing presented: there is no picture, and nothing is wrong.
        match image.recv_timeout(CAPTURE_PATIENCE) {
            Ok(Event::Image { width, height, rgba, .. }) if width > 0 && height > 0 => {
                Some(Image { width, height, rgba })
            }
            _ => None,
        }
    }

    pub(super) fn write_images(&self, folder: &Path, drained: &mut Drained) {
        if let Err(error) = std::fs::create_dir_all(folder) {
            drained.problems.push(format!("{}: {error}", folder.display()));
            return;
        }
        for slice in &self.config.slices {
            let Some(Image { width, height, rgba }) = self.scanout(&slice.name) else { continue };
            let path = folder.join(format!("{}.png", slice.name));
            match write_png(&path, width, height, &rgba) {
                Ok(()) => drained.images.push(path),
                Err(error) => drained.problems.push(format!("{}: {error}", path.display())),
            }
        }
    }
}

pub(crate) fn write_png(
    path: &Path,
    width: u32,
    height: u32,
    rgba: &[u8],
) -> Result<(), png::EncodingError> {
    let file = std::fs::File::create(path)?;
    let mut encoder = png::Encoder::new(io::BufWriter::new(file), width, height);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgba)?;
    writer.finish()
}
