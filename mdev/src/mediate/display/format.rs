//! Pixel formats of scanouts and cursors (virtio 1.3, section 5.7.6.8).

use beamline_abi::virtio_gpu::format;

/// Bytes of a pixel, in every format.
pub const PIXEL: usize = 4;

/// A format that a driver may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Blue, green, red, alpha.
    Bgra,
    /// Blue, green, red, unused.
    Bgrx,
    /// Alpha, red, green, blue.
    Argb,
    /// Unused, red, green, blue.
    Xrgb,
    /// Red, green, blue, alpha.
    Rgba,
    /// Unused, blue, green, red.
    Xbgr,
    /// Alpha, blue, green, red.
    Abgr,
    /// Red, green, blue, unused.
    Rgbx,
}

impl Format {
    /// The format with this number.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            format::B8G8R8A8_UNORM => Self::Bgra,
            format::B8G8R8X8_UNORM => Self::Bgrx,
            format::A8R8G8B8_UNORM => Self::Argb,
            format::X8R8G8B8_UNORM => Self::Xrgb,
            format::R8G8B8A8_UNORM => Self::Rgba,
            format::X8B8G8R8_UNORM => Self::Xbgr,
            format::A8B8G8R8_UNORM => Self::Abgr,
            format::R8G8B8X8_UNORM => Self::Rgbx,
            _ => return None,
        })
    }

    /// A pixel as red, green, blue and alpha; without alpha it is opaque.
    pub const fn rgba(self, pixel: [u8; PIXEL]) -> [u8; PIXEL] {
        let [r, g, b, a] = self.rgba_of_cursor(pixel);
        match self {
            Self::Bgrx | Self::Xrgb | Self::Xbgr | Self::Rgbx => [r, g, b, 0xff],
            Self::Bgra | Self::Argb | Self::Rgba | Self::Abgr => [r, g, b, a],
        }
    }

    /// A cursor's pixel: the unused byte is its alpha, because Linux makes cursors like any other buffer,
    /// in the format of its screens.
    pub const fn rgba_of_cursor(self, pixel: [u8; PIXEL]) -> [u8; PIXEL] {
        let [p, q, r, s] = pixel;
        match self {
            Self::Bgra | Self::Bgrx => [r, q, p, s],
            Self::Argb | Self::Xrgb => [q, r, s, p],
            Self::Rgba | Self::Rgbx => [p, q, r, s],
            Self::Abgr | Self::Xbgr => [s, r, q, p],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_gives_the_same_colour() {
        let (r, g, b, a) = (1, 2, 3, 4);
        for (raw, pixel, opaque) in [
            (1, [b, g, r, a], false),
            (2, [b, g, r, a], true),
            (3, [a, r, g, b], false),
            (4, [a, r, g, b], true),
            (67, [r, g, b, a], false),
            (68, [a, b, g, r], true),
            (121, [a, b, g, r], false),
            (134, [r, g, b, a], true),
        ] {
            let format = Format::from_raw(raw).unwrap();
            let alpha = if opaque { 0xff } else { a };
            assert_eq!(format.rgba(pixel), [r, g, b, alpha], "format {raw}");
            assert_eq!(format.rgba_of_cursor(pixel), [r, g, b, a], "format {raw}");
        }
        assert_eq!(Format::from_raw(0), None);
        assert_eq!(Format::from_raw(5), None);
    }
}
