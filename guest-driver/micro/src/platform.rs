//! What the privileged stubs do for the rest of the image.
#![allow(unsafe_code, reason = "the call gate, the stubs' counters and the loader's memory")]

use crate::boot::{VECTORS, call, irq_counts, irq_total, start_info};
use core::arch::asm;
use core::fmt;

/// I/O port of the serial line.
const SERIAL: u16 = 0x3f8;
/// I/O port that ends the guest.
const EXIT: u16 = 0xf4;
/// `magic` of the PVH start info.
const START_MAGIC: u32 = 0x336e_c578;
/// Offset of `cmdline_paddr` in the start info.
const START_CMDLINE: usize = 24;
/// Longest command line, in bytes.
const MAX_CMDLINE: usize = 1024;

/// The three widths of a port access.
#[derive(Clone, Copy)]
pub(crate) enum PortWidth {
    Byte = 0,
    Word = 1,
    Dword = 2,
}

fn gate(what: u64, seen: u64, port: u16, value: u32) -> u64 {
    let answer;
    // SAFETY: the gate's stub changes rax and the flags only, and pushes nothing onto this stack.
    unsafe {
        asm!("int3", inout("rax") what => answer, in("rdi") seen, in("edx") u32::from(port),
            in("ecx") value);
    }
    answer
}

/// Reads an I/O port.
pub(crate) fn port_in(port: u16, width: PortWidth) -> u32 {
    gate(call::IN[width as usize], 0, port, 0) as u32
}

/// Writes an I/O port.
pub(crate) fn port_out(port: u16, width: PortWidth, value: u32) {
    gate(call::OUT[width as usize], 0, port, value);
}

/// How many interrupts there were.
pub(crate) fn interrupts() -> u64 {
    // SAFETY: aligned, always mapped; the stubs write it behind the compiler's back.
    unsafe { (&raw const irq_total).read_volatile() }
}

/// How many interrupts there were of one vector, from 0.
pub(crate) fn interrupts_of(vector: usize) -> u64 {
    // SAFETY: within the array, aligned, always mapped; the stubs write it behind the compiler's back.
    unsafe { (&raw const irq_counts).cast::<u64>().add(vector % VECTORS).read_volatile() }
}

/// Halts until there were more than `seen` interrupts. May return early.
pub(crate) fn halt(seen: u64) {
    gate(call::HALT, seen, 0, 0);
}

/// Ends the guest.
pub(crate) fn exit(code: u8) -> ! {
    loop {
        port_out(EXIT, PortWidth::Byte, code.into());
        halt(interrupts());
    }
}

/// The serial line: each byte is an exit, so it is for a few lines only.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| port_out(SERIAL, PortWidth::Byte, byte.into()));
        Ok(())
    }
}

/// Writes a line to the serial port.
macro_rules! line {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        // Writing to the serial line cannot fail.
        let _ = writeln!($crate::platform::Serial, $($arg)*);
    }};
}
pub(crate) use line;

/// The command line that the loader passed, up to [`MAX_CMDLINE`] bytes; empty without one.
pub(crate) fn command_line() -> &'static str {
    // SAFETY: the entry code wrote it before any Rust ran.
    let info = unsafe { (&raw const start_info).read_volatile() } as usize;
    if info == 0 || !info.is_multiple_of(4) {
        return "";
    }
    let read = |address: usize| {
        // SAFETY: the first 4 GiB are mapped, and `info` is 4-byte aligned and below 4 GiB; a read beyond
        // memory answers ones.
        unsafe { (address as *const u32).read_volatile() }
    };
    let (low, high) = (read(info + START_CMDLINE) as usize, read(info + START_CMDLINE + 4));
    let fits = low != 0 && high == 0 && low < u32::MAX as usize - MAX_CMDLINE;
    if read(info) != START_MAGIC || !fits {
        return "";
    }
    // SAFETY: mapped as above; the loader's page is not written by anyone while the guest runs.
    let bytes = unsafe { core::slice::from_raw_parts(low as *const u8, MAX_CMDLINE) };
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(0);
    core::str::from_utf8(&bytes[..len]).unwrap_or("")
}
