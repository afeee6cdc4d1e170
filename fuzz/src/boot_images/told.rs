//! What a guest is told, as a kernel reads it.

use beamline_vmm::Gpa;
use beamline_vmm::memory::GuestRam;
use beamline_vmm::pci::layout::Windows;
use vm_memory::Bytes;

/// Start, bytes and kind of a range.
type Range = (u64, u64, u32);
/// The kind that the guest may use as it likes.
const USABLE: u32 = 1;

/// What it is told.
pub(super) struct Story {
    pub(super) cmdline: u64,
    pub(super) rsdp: u64,
    /// Where the initrd is, and its bytes.
    pub(super) initrd: Option<(u64, u64)>,
    map: Vec<Range>,
}

/// Guest memory from one place on.
struct Page<'a>(&'a GuestRam, Gpa);

impl Page<'_> {
    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let read = self.0.memory().read_slice(&mut bytes, Gpa(self.1.0 + at));
        read.expect("a guest is told of its own RAM");
        bytes
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    fn long(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    /// Entries of `stride` bytes from `at` on.
    fn map(&self, at: u64, count: u32, stride: u64) -> Vec<Range> {
        assert!(count <= 16, "{count} ranges");
        let places = (0..u64::from(count)).map(|n| at + n * stride);
        places.map(|at| (self.long(at), self.long(at + 8), self.word(at + 16))).collect()
    }
}

/// Linux: Documentation/arch/x86/zero-page.rst.
pub(super) fn by_zero_page(ram: &GuestRam, at: Gpa) -> Story {
    let page = Page(ram, at);
    let [count] = page.get(0x1e8);
    let (at, size) = (page.word(0x218), page.word(0x21c));
    Story {
        cmdline: page.word(0x228).into(),
        rsdp: page.long(0x70),
        initrd: (at != 0).then_some((at.into(), size.into())),
        map: page.map(0x2d0, count.into(), 20),
    }
}

/// Xen: the x86/HVM direct boot ABI, `hvm_start_info`.
pub(super) fn by_start_info(ram: &GuestRam, at: Gpa) -> Story {
    let page = Page(ram, at);
    assert_eq!((page.word(0), page.word(4)), (0x336e_c578, 1), "magic and version");
    let modules = page.word(12);
    assert!(modules <= 1);
    let initrd = (modules == 1).then(|| {
        let module = Page(ram, Gpa(page.long(16)));
        (module.long(0), module.long(8))
    });
    let map = Page(ram, Gpa(page.long(40))).map(0, page.word(48), 24);
    Story { cmdline: page.long(24), rsdp: page.long(32), initrd, map }
}

impl Story {
    /// No two ranges meet, what is usable is RAM, and the window of configuration space is not.
    pub(super) fn check_map(&self, ram: &GuestRam, windows: Windows) {
        let end = |(at, size, _): &Range| at.checked_add(*size).expect("a range ends");
        for pair in self.map.windows(2) {
            assert!(end(&pair[0]) <= pair[1].0, "{:x?}", self.map);
        }
        let inside = |range: &Range| {
            ram.parts().any(|part| part.at.0 <= range.0 && end(range) <= part.at.0 + part.size)
        };
        let usable: Vec<&Range> = self.map.iter().filter(|range| range.2 == USABLE).collect();
        assert!(usable.iter().all(|range| inside(range)), "{:x?}", self.map);
        let high = ram.parts().skip(1).map(|part| (part.at.0, part.size, USABLE));
        assert!(high.into_iter().all(|part| self.map.contains(&part)), "all RAM is told");
        let window = (windows.ecam(), windows.ecam_size());
        assert!(self.map.iter().any(|range| (range.0, range.1) == window && range.2 != USABLE));
    }
}
