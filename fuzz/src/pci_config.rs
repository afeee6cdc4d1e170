//! A hostile driver and VMM on the PCI side of both functions: configuration space, BARs, MSI-X, interrupts.

use crate::fds::{eventfd, was_signalled};
use crate::input::Input;
use beamline_abi::pci::{capability, command, config as header, msix};
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_mdev::device::pacer::{Pacer, PacerConfig, PacerHandle, SliceState};
use beamline_mdev::device::virtio::gpu::{GpuConfig, GpuHandle, VirtioGpu};
use beamline_vfio_user::{Device, IrqAction, IrqIndex, RegionIndex};
use std::os::fd::OwnedFd;
use std::sync::Arc;

const MAX_STEPS: usize = 64;
const VECTORS: u16 = 3;
/// Where the vGPU's window into its BAR is: after Express, MSI-X, and virtio's of 16, 16, 16 and 20 bytes.
const PCI_CFG: usize = 0x40 + 0x3c + 12 + 3 * 16 + 20;
const CONFIG: RegionIndex = RegionIndex::CONFIG;

/// Runs one life of one function.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bench = Bench::new(input.flag());
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
        bench.check();
    }
    bench.check_all();
    bench.device().reset();
    assert_eq!(bench.config(), bench.fresh, "a reset brings configuration space back");
}

/// The function, behind what its other threads hold.
enum Function {
    Pacer(Box<Pacer>, Box<PacerHandle>),
    Gpu(Box<VirtioGpu>, GpuHandle),
}

struct Bench {
    function: Function,
    /// Configuration space after power-up.
    fresh: Vec<u8>,
    /// Bits of it that a driver may write, worked out from the specifications and not from the code.
    writable: Vec<u8>,
    /// BARs with a size: index and bytes.
    bars: Vec<(u32, u64)>,
    /// The MSI-X table's BAR and offset.
    table: (u32, u64),
    /// Our ends of the wired vectors.
    wires: [Option<OwnedFd>; VECTORS as usize],
}

impl Bench {
    fn new(pacer: bool) -> Self {
        let function = if pacer {
            let config = PacerConfig {
                slice: SliceId([7; 16]),
                generation: Generation(1),
                now: Arc::new(|| Nanos(5)),
            };
            let (pacer, _, handle) = Pacer::new(config).expect("a pacer can be made");
            Function::Pacer(Box::new(pacer), Box::new(handle))
        } else {
            let (gpu, handle) =
                VirtioGpu::new(GpuConfig { contexts: true }).expect("a vGPU can be made");
            Function::Gpu(Box::new(gpu), handle)
        };
        let mut bench = Self {
            function,
            fresh: Vec::new(),
            writable: vec![0; header::EXTENDED_SIZE],
            bars: Vec::new(),
            table: (0, 0),
            wires: [None, None, None],
        };
        bench.fresh = bench.config();
        bench.bars = (0..6).map(|n| (n, bench.device().region(RegionIndex::bar(n)).size)).collect();
        bench.bars.retain(|(_, size)| *size > 0);
        bench.learn();
        bench
    }

    fn device(&mut self) -> &mut dyn Device {
        match &mut self.function {
            Function::Pacer(pacer, _) => pacer.as_mut(),
            Function::Gpu(gpu, _) => gpu.as_mut(),
        }
    }

    fn config(&mut self) -> Vec<u8> {
        let mut bytes = vec![0xaa; header::EXTENDED_SIZE];
        // In two parts: a look at the vGPU's window into its BAR must not count as an access to it.
        let window = self.window();
        let device = self.device();
        device.region_read(CONFIG, 0, &mut bytes[..window]).expect("configuration space is there");
        let rest = &mut bytes[window + 4..];
        device.region_read(CONFIG, window as u64 + 4, rest).expect("configuration space is there");
        bytes[window..window + 4].fill(0);
        bytes
    }

    /// Where the data of the vGPU's window is; past all capabilities where there is none.
    fn window(&self) -> usize {
        match &self.function {
            Function::Pacer(..) => 0xf0,
            // The last of its capabilities, 16 bytes in.
            Function::Gpu(..) => PCI_CFG + 16,
        }
    }

    /// Walks the header and the capabilities.
    fn learn(&mut self) {
        let mut allow = |at: usize, bits: &[u8]| {
            self.writable[at..at + bits.len()].copy_from_slice(bits);
        };
        let commands = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        allow(header::COMMAND.into(), &commands.to_le_bytes());
        allow(header::INTERRUPT_LINE.into(), &[0xff]);
        for (index, size) in &self.bars {
            let at = usize::from(header::BAR0) + 4 * *index as usize;
            allow(at, &(!(size - 1)).to_le_bytes());
        }
        let mut at = usize::from(self.fresh[usize::from(header::CAPABILITIES)]);
        let mut seen = 0;
        while at != 0 {
            match self.fresh[at] {
                // Device control (PCIe 5.0, 7.5.3.4); its reset bit reads as 0.
                capability::EXPRESS => allow(at + 8, &0x7fff_u16.to_le_bytes()),
                capability::MSIX => {
                    let bits = msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL;
                    allow(at + 2, &bits.to_le_bytes());
                    let word = u32::from_le_bytes(self.fresh[at + 4..at + 8].try_into().unwrap());
                    self.table = (word & 7, u64::from(word & !7));
                }
                // Access through configuration space (virtio 1.3, 4.1.4.9).
                capability::VENDOR if self.fresh[at + 3] == 5 => {
                    assert_eq!(at, PCI_CFG, "the window is elsewhere");
                    allow(at + 4, &[0xff]);
                    allow(at + 8, &[0xff; 12]);
                }
                _ => {}
            }
            at = usize::from(self.fresh[at + 1]);
            seen += 1;
            assert!(seen < 16 && at.is_multiple_of(4), "the capabilities are a list");
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(12) {
            0 | 1 => {
                let data = input.bytes(64);
                let at = u64::from(input.u8());
                self.write(CONFIG, at, data);
            }
            2 => {
                let at = u64::from(input.u16()) % header::EXTENDED_SIZE as u64;
                let data = input.bytes(255);
                self.write(CONFIG, at, data);
            }
            3 => self.read_anywhere(input),
            4 => self.size_bar(input.below(6) as u32),
            5 => {
                let (index, size) = self.bars[input.below(self.bars.len())];
                let at = input.number() % size;
                let data = input.bytes(64);
                self.write(RegionIndex::bar(index), at, data);
            }
            6 => self.table_entry(input),
            7 | 8 => self.set_irqs(input),
            9 => self.signal(input),
            10 => self.window_access(input),
            _ => self.end(input),
        }
    }

    fn write(&mut self, region: RegionIndex, at: u64, data: &[u8]) {
        let size = self.device().region(region).size;
        let room = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
        let data = &data[..data.len().min(room)];
        if !data.is_empty() {
            self.device().region_write(region, at, data).expect("the region is there");
        }
    }

    /// A read in one piece; of configuration space, the same as byte by byte.
    fn read_anywhere(&mut self, input: &mut Input<'_>) {
        let region = RegionIndex(input.below(9) as u32);
        let size = self.device().region(region).size;
        if size == 0 {
            let read = self.device().region_read(region, 0, &mut [0]);
            assert!(read.is_err(), "{region:?} is not there");
            return;
        }
        let at = input.number() % size;
        let len = usize::from(input.u8()).min((size - at) as usize);
        let mut whole = vec![0xaa; len];
        self.device().region_read(region, at, &mut whole).expect("the region is there");
        if region == CONFIG {
            let window = self.window();
            for (n, byte) in whole.iter().enumerate().map(|(n, byte)| (n + at as usize, byte)) {
                let mut one = [0xaa];
                if !(window..window + 4).contains(&n) {
                    self.device().region_read(CONFIG, n as u64, &mut one).expect("it is there");
                    assert_eq!(one[0], *byte, "byte {n:#x}");
                }
            }
        }
    }

    /// PCI 3.0, 6.2.5.1: all ones read back as the size, and the address comes back.
    fn size_bar(&mut self, index: u32) {
        let size = self.bars.iter().find(|(n, _)| *n == index).map(|(_, size)| *size);
        let upper = index > 0 && self.bars.iter().any(|(n, _)| n + 1 == index);
        let at = u64::from(header::BAR0) + 4 * u64::from(index);
        let mut before = [0; 4];
        self.device().region_read(CONFIG, at, &mut before).expect("it is there");
        self.write(CONFIG, at, &[0xff; 4]);
        let mut ones = [0; 4];
        self.device().region_read(CONFIG, at, &mut ones).expect("it is there");
        let ones = u32::from_le_bytes(ones);
        match size {
            Some(size) => {
                assert_eq!(u64::from(ones & !0xf), !(size - 1) & 0xffff_ffff);
                assert_eq!(ones & 0b111, 0b100, "a 64-bit memory BAR");
            }
            None if upper => assert_eq!(ones, u32::MAX),
            None => assert_eq!(ones, 0),
        }
        self.write(CONFIG, at, &before);
        let mut after = [0; 4];
        self.device().region_read(CONFIG, at, &mut after).expect("it is there");
        assert_eq!(before, after);
    }

    /// What is written to an entry is read back; the pending bits are the client's.
    fn table_entry(&mut self, input: &mut Input<'_>) {
        let (bar, table) = self.table;
        let region = RegionIndex::bar(bar);
        let at = table + u64::from(input.u8() % (VECTORS as u8 * 16)) / 4 * 4;
        let value = input.u32().to_le_bytes();
        self.write(region, at, &value);
        let mut back = [0; 4];
        self.device().region_read(region, at, &mut back).expect("the table is there");
        assert_eq!(back, value);
        let mut pending = [0xaa; 8];
        self.device().region_read(region, table + 0x1000, &mut pending).expect("they are there");
        assert_eq!(pending, [0; 8]);
    }

    fn set_irqs(&mut self, input: &mut Input<'_>) {
        let index =
            if input.u8() < 0xf0 { IrqIndex::MSIX } else { IrqIndex(input.below(5) as u32) };
        let start = if input.flag() { input.number32() } else { input.below(3) as u32 };
        let count = if input.flag() { input.number32() } else { input.below(4) as u32 };
        let inside = index == IrqIndex::MSIX
            && start.checked_add(count).is_some_and(|end| end <= VECTORS.into());
        let range = || start as usize..(start + count) as usize;
        match input.below(3) {
            0 => {
                let fds: Vec<OwnedFd> = (0..count.min(4)).map(|_| eventfd()).collect();
                let fits = inside && fds.len() == count as usize;
                let mut ours = fds.iter().map(|fd| fd.try_clone().expect("it can be copied"));
                if fits {
                    self.wires[range()].fill_with(|| ours.next());
                }
                drop(ours);
                let result =
                    self.device().set_irqs(index, start, count, IrqAction::SetEventFds(fds));
                assert_eq!(result.is_ok(), fits);
            }
            1 => {
                let result = self.device().set_irqs(index, start, count, IrqAction::Clear);
                assert_eq!(result.is_ok(), inside);
                if inside {
                    let cleared = if count == 0 { 0..VECTORS.into() } else { range() };
                    self.wires[cleared].fill_with(|| None);
                }
            }
            _ => {
                let result = self.device().set_irqs(index, start, count, IrqAction::Trigger);
                assert_eq!(result.is_ok(), inside);
                if inside {
                    let on = self.bus_master();
                    for vector in range() {
                        if let Some(wire) = &self.wires[vector] {
                            assert_eq!(was_signalled(wire), on, "vector {vector}");
                        }
                    }
                }
            }
        }
        self.silent();
    }

    /// The host signals: the interrupt comes exactly where bus mastering is on and somebody listens.
    fn signal(&mut self, input: &mut Input<'_>) {
        let on = self.bus_master();
        match &self.function {
            Function::Pacer(_, handle) => {
                handle.shared().set_state(SliceState::Lost);
                let vector = input.below(4) as u16;
                let wire = self.wires.get(usize::from(vector)).map(Option::as_ref);
                match handle.signal(vector) {
                    Ok(sent) => {
                        let wire = wire.expect("the vector exists");
                        assert_eq!(sent, on && wire.is_some());
                        assert_eq!(sent, wire.is_some_and(was_signalled));
                    }
                    Err(_) => assert!(wire.is_none()),
                }
            }
            Function::Gpu(_, handle) => {
                let sent = handle.fail().expect("our own eventfds take a signal");
                let came = self.wires.iter().flatten().filter(|wire| was_signalled(wire)).count();
                assert_eq!(came, usize::from(sent));
                assert!(!sent || on);
            }
        }
        self.silent();
    }

    /// Nobody else was signalled.
    fn silent(&self) {
        assert!(self.wires.iter().flatten().all(|wire| !was_signalled(wire)));
    }

    /// The vGPU's window into its BAR.
    fn window_access(&mut self, input: &mut Input<'_>) {
        let Function::Gpu(..) = &self.function else { return };
        let at = PCI_CFG as u64;
        let bar = if input.flag() { 4 } else { input.u8() };
        self.write(CONFIG, at + 4, &[bar]);
        self.write(CONFIG, at + 8, &input.number32().to_le_bytes());
        self.write(CONFIG, at + 12, &input.number32().to_le_bytes());
        if input.flag() {
            self.write(CONFIG, at + 16, &input.number32().to_le_bytes());
        } else {
            let mut data = [0; 4];
            self.device().region_read(CONFIG, at + 16, &mut data).expect("it is there");
        }
    }

    fn end(&mut self, input: &mut Input<'_>) {
        if input.flag() {
            self.device().reset();
        } else {
            // What is left in an eventfd of ours is taken back, so that the next client starts afresh.
            self.device().disconnected();
            self.wires.fill_with(|| None);
        }
        assert!(!self.bus_master());
    }

    fn bus_master(&mut self) -> bool {
        let mut bits = [0; 2];
        let at = header::COMMAND.into();
        self.device().region_read(CONFIG, at, &mut bits).expect("it is there");
        u16::from_le_bytes(bits) & command::BUS_MASTER != 0
    }

    /// Nothing changes in the header and the capabilities that a driver may not write.
    fn check(&mut self) {
        let window = self.window();
        let mut now = [0; header::SIZE];
        let device = self.device();
        device.region_read(CONFIG, 0, &mut now[..window]).expect("configuration space is there");
        self.compare(&now[..window]);
    }

    /// The same of all configuration space.
    fn check_all(&mut self) {
        let now = self.config();
        self.compare(&now);
    }

    fn compare(&self, now: &[u8]) {
        for (at, (now, fresh)) in now.iter().zip(&self.fresh).enumerate() {
            let changed = (now ^ fresh) & !self.writable[at];
            assert_eq!(changed, 0, "byte {at:#x} went from {fresh:#x} to {now:#x}");
        }
    }
}
