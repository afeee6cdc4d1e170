//! What each request of the display does (virtio 1.3, sections 5.7.6.8 and 5.7.6.10).

use super::backing::Backing;
use super::format::{Format, PIXEL};
use super::resources::{Kind, MAX_SIDE, Resource};
use super::screen::{CURSOR_BYTES, Cursor, Front};
use super::{Area, Binding, Display, Guest, Layout, Refused};
use crate::device::virtio::gpu::request::{ATTACH_ENTRIES, BLOB_ENTRIES};
use beamline_abi::virtio_gpu::{
    BLOB_FLAGS, BLOB_MEM_GUEST, CURSOR_SIDE, CursorPos, Rect, ResourceCreateBlob, SetScanout,
    SetScanoutBlob, TransferToHost2d, UpdateCursor,
};

/// What it costs to find a row, in bytes copied.
const ROW_COST: u64 = 64;

impl Display {
    pub(super) fn create_blob(
        &mut self,
        guest: &dyn Guest,
        r: &ResourceCreateBlob,
    ) -> Result<(), Refused> {
        if !self.blobs {
            return Err(Refused::Unsupported);
        }
        self.resources.check_new(r.resource_id)?;
        // Host memory is not offered; a blob without bytes is none.
        if r.blob_mem != BLOB_MEM_GUEST || r.blob_flags & !BLOB_FLAGS != 0 || r.size == 0 {
            return Err(Refused::Parameter);
        }
        let backing = match r.nr_entries {
            0 => None,
            count => Some(self.take_backing(guest, BLOB_ENTRIES, count)?),
        };
        if let Some(short) = backing.as_ref().filter(|b| b.len() < r.size) {
            self.resources.give(short.charged());
            return Err(Refused::Parameter);
        }
        self.resources.make_blob(r.resource_id, r.size, backing);
        Ok(())
    }

    pub(super) fn unref(&mut self, id: u32) -> Result<(), Refused> {
        self.resources.remove(id)?;
        if self.scanout.is_some_and(|binding| binding.resource == id) {
            self.turn_off();
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, guest: &dyn Guest, id: u32, count: u32) -> Result<(), Refused> {
        if self.resources.get(id)?.backing.is_some() {
            return Err(Refused::Parameter);
        }
        let backing = self.take_backing(guest, ATTACH_ENTRIES, count)?;
        self.resources.get_mut(id)?.backing = Some(backing);
        Ok(())
    }

    /// Copies a list of pieces and charges for it.
    fn take_backing(
        &mut self,
        guest: &dyn Guest,
        from: u64,
        count: u32,
    ) -> Result<Backing, Refused> {
        let charge = Backing::charge(count);
        self.resources.take(charge)?;
        let backing = Backing::take(guest, from, count, &mut self.cost);
        if backing.is_err() {
            self.resources.give(charge);
        }
        backing
    }

    pub(super) fn detach(&mut self, id: u32) -> Result<(), Refused> {
        let resource = self.resources.get_mut(id)?;
        let gone = resource.backing.take().ok_or(Refused::Parameter)?;
        self.resources.give(gone.charged());
        Ok(())
    }

    /// Rows of guest memory lie as far apart as the resource's own (5.7.6.8).
    pub(super) fn transfer(
        &mut self,
        guest: &dyn Guest,
        r: &TransferToHost2d,
    ) -> Result<(), Refused> {
        let Resource { kind, backing } = self.resources.get_mut(r.resource_id)?;
        // A blob is guest memory: nothing is to be copied, and Linux asks for it all the same.
        let Kind::Surface(surface) = kind else { return Ok(()) };
        let area = Area::within(&r.r, surface.width, surface.height)?;
        if area.is_empty() {
            return Ok(());
        }
        let backing = backing.as_ref().ok_or(Refused::Parameter)?;
        let stride = surface.stride() as u64;
        let last = r.offset.checked_add(stride * (area.height as u64 - 1));
        let end = last.and_then(|at| at.checked_add((area.width * PIXEL) as u64));
        if end.is_none_or(|end| end > backing.len()) {
            return Err(Refused::Parameter);
        }
        for y in 0..area.height {
            let row = surface.row(&area, y);
            let to = &mut surface.pixels[row];
            backing.read(guest, r.offset + stride * y as u64, to, &mut self.cost)?;
        }
        Ok(())
    }

    pub(super) fn set_scanout(&mut self, r: &SetScanout) -> Result<(), Refused> {
        if r.scanout_id != 0 {
            return Err(Refused::Scanout);
        }
        if r.resource_id == 0 {
            self.turn_off();
            return Ok(());
        }
        let Kind::Surface(surface) = &self.resources.get(r.resource_id)?.kind else {
            return Err(Refused::Parameter);
        };
        let (format, size) = (surface.format, (surface.width, surface.height));
        self.bind(r.resource_id, &r.r, size, format, None)
    }

    pub(super) fn set_scanout_blob(&mut self, r: &SetScanoutBlob) -> Result<(), Refused> {
        if !self.blobs {
            return Err(Refused::Unsupported);
        }
        if r.scanout_id != 0 {
            return Err(Refused::Scanout);
        }
        if r.resource_id == 0 {
            self.turn_off();
            return Ok(());
        }
        let Kind::Blob { size } = self.resources.get(r.resource_id)?.kind else {
            return Err(Refused::Parameter);
        };
        let sides = 1..=MAX_SIDE;
        let format = Format::from_raw(r.format)
            .filter(|_| sides.contains(&r.width) && sides.contains(&r.height))
            .ok_or(Refused::Parameter)?;
        let layout = Layout { offset: r.offsets[0].into(), stride: r.strides[0].into() };
        // Nothing overflows: stride and offset have 32 bits, sides 15.
        let row = u64::from(r.width) * PIXEL as u64;
        let end = layout.offset + layout.stride * (u64::from(r.height) - 1) + row;
        if layout.stride < row || end > size {
            return Err(Refused::Parameter);
        }
        self.bind(r.resource_id, &r.r, (r.width, r.height), format, Some(layout))
    }

    /// Shows a part of a framebuffer from the next flush on. What is on the screen stays until then, if the
    /// new image has the same shape.
    fn bind(
        &mut self,
        resource: u32,
        rect: &Rect,
        size: (u32, u32),
        format: Format,
        layout: Option<Layout>,
    ) -> Result<(), Refused> {
        let area = Area::within(rect, size.0, size.1)?;
        if area.is_empty() {
            return Err(Refused::Parameter);
        }
        let mut shows = self.screen.lock();
        let alike = |f: &Front| (f.format, f.width, f.height) == (format, area.width, area.height);
        if !shows.front.as_ref().is_some_and(alike) {
            let bytes = area.width as u64 * area.height as u64 * PIXEL as u64;
            self.resources.give(self.front);
            if let Err(refused) = self.resources.take(bytes) {
                // The old image still has its place.
                self.resources.take(self.front)?;
                return Err(refused);
            }
            self.front = bytes;
            // The old image goes before the new one comes.
            shows.front = None;
            let pixels = vec![0; bytes as usize];
            let (width, height) = (area.width, area.height);
            shows.front = Some(Front { format, width, height, pixels });
        }
        self.scanout = Some(Binding { resource, size, area, layout, fresh: true });
        Ok(())
    }

    /// Whether something of it is on the screen.
    pub(super) fn flush(
        &mut self,
        guest: &dyn Guest,
        id: u32,
        rect: &Rect,
    ) -> Result<bool, Refused> {
        let resource = self.resources.get(id)?;
        let shown = self.scanout.as_mut().filter(|binding| binding.resource == id);
        let (width, height) = match (&resource.kind, &shown) {
            (_, Some(binding)) => binding.size,
            (Kind::Surface(surface), None) => (surface.width, surface.height),
            // A blob that is not shown has no shape.
            (Kind::Blob { .. }, None) => return Ok(false),
        };
        let changed = Area::within(rect, width, height)?;
        let Some(binding) = shown else { return Ok(false) };
        let area = if binding.fresh { binding.area } else { changed.intersect(&binding.area) };
        let mut shows = self.screen.lock();
        if let Some(front) = &mut shows.front {
            copy(guest, resource, binding, &area, front, &mut self.cost)?;
        }
        binding.fresh = false;
        Ok(true)
    }

    pub(super) fn update_cursor(
        &mut self,
        guest: &dyn Guest,
        r: &UpdateCursor,
    ) -> Result<(), Refused> {
        if r.pos.scanout_id != 0 {
            return Err(Refused::Scanout);
        }
        if r.resource_id == 0 {
            self.screen.lock().cursor = None;
            return Ok(());
        }
        let resource = self.resources.get(r.resource_id)?;
        let mut bytes = Box::new([0; CURSOR_BYTES]);
        let format = match (&resource.kind, &resource.backing) {
            (Kind::Surface(s), _) if (s.width, s.height) == (CURSOR_SIDE, CURSOR_SIDE) => {
                // As many bytes on both sides, by its sides.
                bytes.copy_from_slice(&s.pixels);
                self.cost += CURSOR_BYTES as u64;
                s.format
            }
            (Kind::Blob { size }, Some(backing)) if *size >= CURSOR_BYTES as u64 => {
                backing.read(guest, 0, &mut *bytes, &mut self.cost)?;
                // What DRM calls ARGB8888, the only format of Linux's cursors.
                Format::Bgra
            }
            _ => return Err(Refused::Parameter),
        };
        let (pixels, _) = bytes.as_chunks_mut::<PIXEL>();
        for pixel in pixels {
            *pixel = format.rgba_of_cursor(*pixel);
        }
        let CursorPos { x, y, .. } = r.pos;
        let (x, y) = (x.cast_signed(), y.cast_signed());
        self.screen.lock().cursor = Some(Cursor { x, y, rgba: bytes });
        Ok(())
    }

    pub(super) fn move_cursor(&mut self, pos: &CursorPos) -> Result<(), Refused> {
        if pos.scanout_id != 0 {
            return Err(Refused::Scanout);
        }
        if let Some(cursor) = &mut self.screen.lock().cursor {
            (cursor.x, cursor.y) = (pos.x.cast_signed(), pos.y.cast_signed());
        }
        Ok(())
    }
}

/// Copies `area` of what is shown, which lies inside the binding's area, to the screen.
fn copy(
    guest: &dyn Guest,
    resource: &Resource,
    binding: &Binding,
    area: &Area,
    front: &mut Front,
    cost: &mut u64,
) -> Result<(), Refused> {
    let shown = &binding.area;
    for y in 0..area.height {
        if area.width == 0 {
            break;
        }
        let start = ((area.y - shown.y + y) * front.width + area.x - shown.x) * PIXEL;
        // The front image has the size of the binding's area.
        let to = &mut front.pixels[start..start + area.width * PIXEL];
        match (&resource.kind, binding.layout) {
            (Kind::Surface(surface), _) => {
                to.copy_from_slice(&surface.pixels[surface.row(area, y)]);
                *cost += to.len() as u64 + ROW_COST;
            }
            (Kind::Blob { .. }, Some(layout)) => {
                let backing = resource.backing.as_ref().ok_or(Refused::Parameter)?;
                // Checked against the blob's size when it was bound.
                let row = (area.y + y) as u64 * layout.stride;
                let at = layout.offset + row + (area.x * PIXEL) as u64;
                backing.read(guest, at, to, cost)?;
            }
            (Kind::Blob { .. }, None) => return Err(Refused::Parameter),
        }
    }
    Ok(())
}
