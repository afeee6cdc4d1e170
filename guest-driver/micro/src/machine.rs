//! The driver's platform: this machine, with device memory and shared memory mapped one to one.
#![allow(unsafe_code, reason = "device registers and memory shared with devices")]

use crate::platform::{self, PortWidth, port_in, port_out};
use beamline_guest_driver::guest;
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU16, Ordering, fence};

/// PCI configuration mechanism 1: address port.
const CONFIG_ADDRESS: u16 = 0xcf8;
/// PCI configuration mechanism 1: data port.
const CONFIG_DATA: u16 = 0xcfc;
/// Bytes that devices may see.
const ARENA_BYTES: usize = 8 << 20;
/// The page tables end here.
const MAPPED: u64 = 4 << 30;

#[repr(C, align(4096))]
struct ArenaMemory(UnsafeCell<[u8; ARENA_BYTES]>);
// SAFETY: there is one CPU and one thread; all accesses go through raw pointers in this module.
unsafe impl Sync for ArenaMemory {}

static ARENA: ArenaMemory = ArenaMemory(UnsafeCell::new([0; ARENA_BYTES]));

/// The machine. There is one.
pub(crate) struct Machine {
    seen: u64,
}

impl Machine {
    pub(crate) const fn new() -> Self {
        Self { seen: 0 }
    }

    /// The memory that devices may see. To be called once.
    pub(crate) fn arena() -> Arena {
        Arena::new(Gpa(ARENA.0.get() as u64), ARENA_BYTES as u64)
    }

    /// A pointer to `len` bytes of the arena. The driver never leaves it; if it did, that would be a bug
    /// that must not become a stray write.
    fn shared(gpa: Gpa, len: usize) -> *mut u8 {
        let start = ARENA.0.get() as u64;
        let inside = gpa.0.wrapping_sub(start).checked_add(len as u64);
        assert!(inside.is_some_and(|end| end <= ARENA_BYTES as u64), "{gpa} is not in the arena");
        gpa.0 as *mut u8
    }

    /// A pointer to an aligned 16-bit word of the arena.
    fn word(gpa: Gpa) -> *mut u16 {
        assert!(gpa.0.is_multiple_of(2), "{gpa} is odd");
        Self::shared(gpa, 2);
        gpa.0 as *mut u16
    }

    fn config_port(slot: Slot, offset: u16) -> u16 {
        let address = 1 << 31 | u32::from(slot.0 & 31) << 11 | u32::from(offset & 0xfc);
        port_out(CONFIG_ADDRESS, PortWidth::Dword, address);
        CONFIG_DATA + (offset & 3)
    }
}

/// Counters of the pacer's three vectors come first, then the vGPU's: these are a new contract and quiescing.
const HOST_REQUESTS: [usize; 2] = [1, 2];

impl guest::Machine for Machine {
    fn host_requests(&self) -> u64 {
        HOST_REQUESTS.into_iter().map(platform::interrupts_of).sum()
    }
}

const fn port_width(width: Width) -> PortWidth {
    match width {
        Width::Byte => PortWidth::Byte,
        Width::Word => PortWidth::Word,
        Width::Dword | Width::Qword => PortWidth::Dword,
    }
}

impl Transport for Machine {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        port_in(Self::config_port(slot, offset), port_width(width))
    }

    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        port_out(Self::config_port(slot, offset), port_width(width), value);
    }

    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        gpa.0.checked_add(len).is_some_and(|end| end <= MAPPED)
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        // SAFETY: the driver asks `reaches` before it uses a BAR, so the address is mapped; it is aligned,
        // and no Rust object lies there.
        unsafe {
            match width {
                Width::Byte => (gpa.0 as *const u8).read_volatile().into(),
                Width::Word => (gpa.0 as *const u16).read_volatile().into(),
                Width::Dword => (gpa.0 as *const u32).read_volatile().into(),
                Width::Qword => (gpa.0 as *const u64).read_volatile(),
            }
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        // SAFETY: as for reads.
        unsafe {
            match width {
                Width::Byte => (gpa.0 as *mut u8).write_volatile(value as u8),
                Width::Word => (gpa.0 as *mut u16).write_volatile(value as u16),
                Width::Dword => (gpa.0 as *mut u32).write_volatile(value as u32),
                Width::Qword => (gpa.0 as *mut u64).write_volatile(value),
            }
        }
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        let from = Self::shared(gpa, bytes.len());
        // SAFETY: within the arena, which `bytes` is not part of: nothing borrows the arena.
        unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        let to = Self::shared(gpa, bytes.len());
        // SAFETY: within the arena, which `bytes` is not part of: nothing borrows the arena.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        // SAFETY: `word` vouches for place and alignment; devices use whole accesses as well.
        unsafe { AtomicU16::from_ptr(Self::word(gpa)) }.load(Ordering::Acquire)
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        // SAFETY: `word` vouches for place and alignment; devices use whole accesses as well.
        unsafe { AtomicU16::from_ptr(Self::word(gpa)) }.store(value, Ordering::Release);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn tsc(&self) -> u64 {
        // SAFETY: the instruction is always allowed: CR4.TSD is clear.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    fn wait(&mut self) -> Wake {
        loop {
            // Taken before anyone looks at the devices: an interrupt that comes later ends the next wait.
            let total = platform::interrupts();
            if total != self.seen {
                self.seen = total;
                return Wake::Interrupt;
            }
            platform::halt(total);
        }
    }
}
