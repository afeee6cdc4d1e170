//! What a slice's frame context owns on the GPU, as far as mediation must know it: IDs, kinds and sizes.

/// A resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A buffer.
    Buffer {
        /// Bytes.
        size: u64,
    },
    /// An `rgba8unorm` image.
    Image {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// A compute pipeline.
    Pipeline,
}

impl Kind {
    /// Bytes charged to the slice's quota.
    fn memory(self) -> u64 {
        match self {
            Self::Buffer { size } => size,
            Self::Image { width, height } => u64::from(width) * u64::from(height) * 4,
            // Code is not counted by size; the number of resources bounds it.
            Self::Pipeline => 0,
        }
    }
}

/// Why an ID is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceError {
    /// Zero, too large, in use already, or not in use.
    BadId,
    /// The slice's memory is used up.
    Quota,
}

/// The resources of one context.
#[derive(Debug)]
pub struct Resources {
    table: Vec<Option<Kind>>,
    used: u64,
    quota: u64,
    /// Changes since [`Resources::begin`], newest last: the ID and what it was before.
    undo: Vec<(u32, Option<Kind>)>,
    /// Bytes made since then.
    made: u64,
}

impl Resources {
    /// An empty table for IDs 1 to `max - 1`, with `quota` bytes of GPU memory.
    pub fn new(max: u32, quota: u64) -> Self {
        Self {
            table: vec![None; max as usize],
            used: 0,
            quota,
            undo: Vec::with_capacity(16),
            made: 0,
        }
    }

    /// The resource with this ID.
    pub fn get(&self, id: u32) -> Option<Kind> {
        *self.table.get(id as usize)?
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.table.fill(None);
        self.used = 0;
        self.undo.clear();
    }

    /// A submission begins: from here on changes can be taken back.
    pub fn begin(&mut self) {
        self.undo.clear();
        self.made = 0;
    }

    /// Keeps the submission's changes.
    pub fn commit(&mut self) {
        self.undo.clear();
    }

    /// Takes the submission's changes back.
    pub fn roll_back(&mut self) {
        while let Some((id, before)) = self.undo.pop() {
            self.set(id, before);
        }
    }

    /// Bytes of what the submission makes, also where it destroys them again.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Enters a new resource.
    pub fn insert(&mut self, id: u32, kind: Kind) -> Result<(), ResourceError> {
        match self.table.get(id as usize) {
            Some(None) if id != 0 => {}
            _ => return Err(ResourceError::BadId),
        }
        if self.used.checked_add(kind.memory()).is_none_or(|sum| sum > self.quota) {
            return Err(ResourceError::Quota);
        }
        self.undo.push((id, None));
        self.made = self.made.saturating_add(kind.memory());
        self.set(id, Some(kind));
        Ok(())
    }

    /// Forgets a resource.
    pub fn remove(&mut self, id: u32) -> Result<(), ResourceError> {
        let before = self.get(id).ok_or(ResourceError::BadId)?;
        self.undo.push((id, Some(before)));
        self.set(id, None);
        Ok(())
    }

    /// `id` is inside the table: every caller has looked it up.
    fn set(&mut self, id: u32, to: Option<Kind>) {
        let entry = &mut self.table[id as usize];
        self.used -= entry.map_or(0, Kind::memory);
        self.used += to.map_or(0, Kind::memory);
        *entry = to;
    }
}
