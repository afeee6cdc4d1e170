//! The display's resources by ID, and what they take of the slice's memory on the host.

use super::backing::Backing;
use super::format::{Format, PIXEL};
use super::{Area, Refused};
use std::collections::HashMap;

/// Most resources of one display.
pub const MAX_RESOURCES: usize = 4096;
/// Largest width and height of a 2D resource in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// An image on the host.
#[derive(Debug)]
pub(super) struct Surface {
    pub(super) format: Format,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Rows from the top without padding.
    pub(super) pixels: Vec<u8>,
}

impl Surface {
    /// Bytes of a row.
    pub(super) fn stride(&self) -> usize {
        self.width as usize * PIXEL
    }

    /// The bytes of row `y` of `area`, which lies inside.
    pub(super) fn row(&self, area: &Area, y: usize) -> std::ops::Range<usize> {
        let start = (area.y + y) * self.stride() + area.x * PIXEL;
        start..start + area.width * PIXEL
    }
}

/// What a resource is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A 2D resource: the host keeps its pixels.
    Surface(Surface),
    /// A blob: its bytes are guest memory.
    Blob {
        /// Bytes.
        size: u64,
    },
}

/// A resource.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    pub(super) backing: Option<Backing>,
}

impl Resource {
    fn charge(&self) -> u64 {
        let pixels = match &self.kind {
            Kind::Surface(surface) => surface.pixels.len() as u64,
            Kind::Blob { .. } => 0,
        };
        pixels + self.backing.as_ref().map_or(0, Backing::charged)
    }
}

/// The resources of one driver.
#[derive(Debug)]
pub(super) struct Resources {
    table: HashMap<u32, Resource>,
    quota: u64,
    used: u64,
}

impl Resources {
    pub(super) fn new(quota: u64) -> Self {
        Self { table: HashMap::new(), quota, used: 0 }
    }

    /// Forgets everything, also what the table itself took.
    pub(super) fn clear(&mut self) {
        (self.table, self.used) = (HashMap::new(), 0);
    }

    pub(super) fn get(&self, id: u32) -> Result<&Resource, Refused> {
        self.table.get(&id).ok_or(Refused::Resource)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Result<&mut Resource, Refused> {
        self.table.get_mut(&id).ok_or(Refused::Resource)
    }

    /// Takes `bytes` of the quota.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), Refused> {
        let sum = self.used.checked_add(bytes).filter(|sum| *sum <= self.quota);
        self.used = sum.ok_or(Refused::Memory)?;
        Ok(())
    }

    /// Gives `bytes` of the quota back.
    pub(super) fn give(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// Whether a new resource may have this ID.
    pub(super) fn check_new(&self, id: u32) -> Result<(), Refused> {
        if id == 0 || self.table.contains_key(&id) {
            return Err(Refused::Resource);
        }
        if self.table.len() >= MAX_RESOURCES { Err(Refused::Memory) } else { Ok(()) }
    }

    /// Makes an image whose pixels are all zero.
    pub(super) fn make_surface(
        &mut self,
        id: u32,
        format: u32,
        width: u32,
        height: u32,
    ) -> Result<(), Refused> {
        self.check_new(id)?;
        let sides = 1..=MAX_SIDE;
        let format = Format::from_raw(format)
            .filter(|_| sides.contains(&width) && sides.contains(&height))
            .ok_or(Refused::Parameter)?;
        let bytes = u64::from(width) * u64::from(height) * PIXEL as u64;
        self.take(bytes)?;
        let pixels = vec![0; bytes as usize];
        let kind = Kind::Surface(Surface { format, width, height, pixels });
        self.table.insert(id, Resource { kind, backing: None });
        Ok(())
    }

    /// Makes a blob; the charge for its backing was taken.
    pub(super) fn make_blob(&mut self, id: u32, size: u64, backing: Option<Backing>) {
        self.table.insert(id, Resource { kind: Kind::Blob { size }, backing });
    }

    pub(super) fn remove(&mut self, id: u32) -> Result<(), Refused> {
        let gone = self.table.remove(&id).ok_or(Refused::Resource)?;
        self.give(gone.charge());
        Ok(())
    }

    /// Bytes of the quota in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used
    }
}
