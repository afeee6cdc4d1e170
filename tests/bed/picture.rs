//! Pictures, compared by their pixels.

/// Width, height and pixels, three bytes each.
#[derive(PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) size: (u32, u32),
    pub(crate) rgb: Vec<u8>,
}

impl Picture {
    pub(crate) fn parse(png: &[u8]) -> Self {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(png));
        decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        bytes.truncate(info.buffer_size());
        let samples = info.color_type.samples();
        assert!(samples >= 3, "the picture has no colours: {:?}", info.color_type);
        let rgb = bytes.chunks_exact(samples).flat_map(|pixel| pixel[..3].to_vec()).collect();
        Self { size: (info.width, info.height), rgb }
    }

    /// Pixels that are not black.
    pub(crate) fn lit(&self) -> usize {
        self.rgb.chunks_exact(3).filter(|pixel| pixel.iter().any(|byte| *byte != 0)).count()
    }

    /// Pixels that differ from another's of the same size.
    pub(crate) fn different(&self, other: &Self) -> usize {
        assert_eq!(self.size, other.size);
        let pairs = self.rgb.chunks_exact(3).zip(other.rgb.chunks_exact(3));
        pairs.filter(|(a, b)| a != b).count()
    }
}
