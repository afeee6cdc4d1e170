//! Turns a fuzzer's bytes into choices, from the front; when they are used up, every choice is 0.

/// The bytes that are left.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of `0..count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.u8()) % count.max(1)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    fn fixed<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.take(N)) {
            *to = *from;
        }
        bytes
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.fixed())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.fixed())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.fixed())
    }

    /// Up to `most` bytes, as many as the next byte says.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let len = usize::from(self.u8()).min(most);
        self.take(len)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        now
    }

    /// A number as interfaces have them: small, in pages, a power of two, near the end, or any.
    pub(crate) fn number(&mut self) -> u64 {
        const PAGE: u64 = 4096;
        match self.u8() {
            tag @ 0..=0xbf => u64::from(tag),
            tag @ 0xc0..=0xdf => u64::from(tag - 0xc0) * PAGE,
            tag @ 0xe0..=0xef => 1 << (u32::from(tag - 0xe0) * 4 + 3),
            tag @ 0xf0..=0xf5 => u64::MAX - u64::from(tag - 0xf0),
            0xf6 => u64::MAX - (PAGE - 1),
            0xf7 => u32::MAX.into(),
            0xf8 => u64::from(u32::MAX) - (PAGE - 1),
            0xf9 => PAGE - 1,
            0xfa | 0xfb => self.u16().into(),
            0xfc | 0xfd => self.u32().into(),
            0xfe | 0xff => self.u64(),
        }
    }

    /// [`number`](Self::number), cut to 32 bits.
    pub(crate) fn number32(&mut self) -> u32 {
        self.number() as u32
    }

    /// [`number`](Self::number), cut to 16 bits.
    pub(crate) fn number16(&mut self) -> u16 {
        self.number() as u16
    }
}
