//! The first serial port (16550A at 0x3f8), whose output becomes lines with the guest's name.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vm_superio::{Serial, Trigger};

/// First port.
pub const PORT: u16 = 0x3f8;
/// Last port.
pub const PORT_END: u16 = 0x3ff;
/// Its interrupt: a pin of the I/O APIC.
pub const IRQ: u32 = 4;
/// Longest line: bytes. A longer one is split.
const MAX_LINE: usize = 1024;
/// Most bytes that wait for the guest to read them.
const MAX_INPUT: usize = 4096;

/// Takes what guests print.
pub trait Console: Send {
    /// `guest` printed `line`: at most 1024 bytes of the guest's text, without its line end. Control
    /// characters are escaped, so that it can go to a terminal.
    fn line(&mut self, guest: &str, line: &str);

    /// Where the guest's bytes go as they come, escape sequences included: a person's terminal. There are no
    /// lines then.
    fn terminal(&mut self) -> Option<&mut dyn Write> {
        None
    }
}

/// A [`Console`] that logs at level `info`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogConsole;

impl Console for LogConsole {
    fn line(&mut self, guest: &str, line: &str) {
        tracing::info!(target: "guest", "{guest}: {line}");
    }
}

/// Gathers bytes into lines.
struct Lines {
    guest: String,
    console: Box<dyn Console>,
    line: Vec<u8>,
}

impl Lines {
    fn push(&mut self, byte: u8) {
        match byte {
            b'\n' => self.emit(),
            b'\r' => {}
            _ => {
                self.line.push(byte);
                if self.line.len() == MAX_LINE {
                    self.emit();
                }
            }
        }
    }

    fn emit(&mut self) {
        let mut text = String::with_capacity(self.line.len());
        for c in String::from_utf8_lossy(&self.line).chars() {
            if c.is_control() && c != '\t' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        self.line.clear();
        self.console.line(&self.guest, &text);
    }
}

impl Write for Lines {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Some(terminal) = self.console.terminal() {
            // A terminal that has gone away takes no output; the guest goes on.
            let _ = terminal.write_all(data).and_then(|()| terminal.flush());
            return Ok(data.len());
        }
        for byte in data {
            self.push(*byte);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Signals the port's interrupt.
struct Interrupt(OwnedFd);

impl Trigger for Interrupt {
    type E = rustix::io::Errno;

    fn trigger(&self) -> Result<(), Self::E> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).map(drop)
    }
}

/// The port.
pub struct SerialPort {
    serial: Serial<Interrupt, vm_superio::serial::NoEvents, Lines>,
    /// What was typed and does not fit into the port's own buffer.
    input: VecDeque<u8>,
}

impl SerialPort {
    /// A port whose lines go to `console` under the name `guest`.
    pub fn new(guest: &str, console: Box<dyn Console>) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let lines = Lines { guest: guest.to_owned(), console, line: Vec::with_capacity(MAX_LINE) };
        Ok(Self { serial: Serial::new(Interrupt(event), lines), input: VecDeque::new() })
    }

    /// The eventfd behind [`IRQ`].
    pub fn interrupt(&self) -> BorrowedFd<'_> {
        self.serial.interrupt_evt().0.as_fd()
    }

    /// Someone typed `bytes`. Returns how many were taken: a guest that does not read loses what follows.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(MAX_INPUT - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.refill();
        taken
    }

    /// Moves input to the port's own buffer, as far as it has room.
    fn refill(&mut self) {
        // In loop mode the port is not connected to the outside.
        while let Some(byte) = self.input.front().copied()
            && self.serial.fifo_capacity() > 0
            && matches!(self.serial.enqueue_raw_bytes(&[byte]), Ok(1))
        {
            self.input.pop_front();
        }
    }

    /// A read of `port`, which is one of this device's. A string instruction reads the port repeatedly.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        for byte in data {
            *byte = self.serial.read(port.wrapping_sub(PORT) as u8 & 7);
        }
        if port == PORT && !self.input.is_empty() {
            self.refill();
        }
    }

    /// A write of `port`, which is one of this device's.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        for byte in data {
            // Fails only where the interrupt's eventfd is full, and then the interrupt is pending.
            let _ = self.serial.write(port.wrapping_sub(PORT) as u8 & 7, *byte);
        }
    }
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        let lines = self.serial.writer_mut();
        if !lines.line.is_empty() {
            lines.emit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recorder;

    #[test]
    fn lines_are_named_bounded_and_harmless() {
        let seen = Recorder::default();
        let mut port = SerialPort::new("vr", Box::new(seen.clone())).unwrap();
        port.write(PORT, b"one\r\ntwo \x1b[31m\n");
        port.write(PORT, &[b'x'; MAX_LINE + 1]);
        drop(port);
        let lines = seen.lines();
        assert_eq!(lines[0], "vr: one");
        assert_eq!(lines[1], "vr: two \\u{1b}[31m");
        assert_eq!(lines[2].len(), "vr: ".len() + MAX_LINE);
        assert_eq!(lines[3], "vr: x");
    }

    #[test]
    fn what_is_typed_is_read_in_order_and_bounded() {
        let mut port = SerialPort::new("vr", Box::new(LogConsole)).unwrap();
        let typed: Vec<u8> = (0..MAX_INPUT + 500).map(|i| i as u8).collect();
        let taken = port.type_in(&typed);
        assert!((MAX_INPUT..typed.len()).contains(&taken), "{taken}");
        let mut seen = Vec::new();
        loop {
            let mut status = [0];
            port.read(PORT + 5, &mut status);
            if status[0] & 1 == 0 {
                break;
            }
            let mut byte = [0];
            port.read(PORT, &mut byte);
            seen.push(byte[0]);
        }
        assert_eq!(seen, typed[..taken]);
        assert_eq!(port.type_in(b"x"), 1, "there is room again");
    }

    #[test]
    fn a_terminal_gets_bytes_as_they_come() {
        #[derive(Clone, Default)]
        struct Terminal(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl Write for Terminal {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(data)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        impl Console for Terminal {
            fn line(&mut self, _: &str, _: &str) {
                panic!("a terminal gets no lines");
            }
            fn terminal(&mut self) -> Option<&mut dyn Write> {
                Some(self)
            }
        }
        let terminal = Terminal::default();
        let mut port = SerialPort::new("vr", Box::new(terminal.clone())).unwrap();
        port.write(PORT, b"login: \x1b[1m");
        assert_eq!(*terminal.0.lock().unwrap(), b"login: \x1b[1m");
    }

    #[test]
    fn the_transmitter_is_ready() {
        let mut port = SerialPort::new("vr", Box::new(LogConsole)).unwrap();
        let mut status = [0];
        port.read(PORT + 5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
    }
}
