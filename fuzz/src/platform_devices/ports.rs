//! What is at ports: serial port, clock, power management, resets, and the end of a guest.

use crate::input::Input;
use beamline_vmm::Console;
use beamline_vmm::devices::power::{self, Effect, Power};
use beamline_vmm::devices::rtc::{self, Rtc};
use beamline_vmm::devices::serial::{self, SerialPort};
use beamline_vmm::devices::{exit, reset};
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most bytes that wait for the guest: those of the port's own buffer too.
const MOST_WAITING: usize = 4096 + 64;
/// Most bytes of a line: each of the guest's 1024 may be escaped.
const MOST_LINE: usize = 1024 * 10;
/// Most bytes of one access, which string instructions have.
const WIDTH: usize = 16;

/// Looks at what the guest prints.
struct Reader {
    terminal: Option<Broken>,
}

/// A terminal that has gone away.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

impl Console for Reader {
    fn line(&mut self, guest: &str, line: &str) {
        assert_eq!(guest, "fuzz");
        assert!(self.terminal.is_none(), "a terminal gets bytes");
        assert!(line.len() <= MOST_LINE && !line.contains(|c: char| c.is_control() && c != '\t'));
    }
    fn terminal(&mut self) -> Option<&mut dyn Write> {
        self.terminal.as_mut().map(|terminal| terminal as &mut dyn Write)
    }
}

pub(super) struct Ports {
    serial: SerialPort,
    /// Bytes that the port took, and that the guest may have read.
    typed: usize,
    read: usize,
    rtc: Rtc,
    power: Power,
}

impl Ports {
    pub(super) fn new(terminal: bool) -> Self {
        let reader = Reader { terminal: terminal.then_some(Broken) };
        let serial = SerialPort::new("fuzz", Box::new(reader)).expect("an eventfd can be made");
        Self { serial, typed: 0, read: 0, rtc: Rtc::default(), power: Power::default() }
    }

    pub(super) fn step(&mut self, input: &mut Input<'_>) {
        let mut data = [0; WIDTH];
        let len = input.below(WIDTH + 1);
        let step = input.below(8);
        if !matches!(step, 0 | 2 | 4 | 6) {
            data[..len].iter_mut().for_each(|byte| *byte = input.u8());
        }
        let data = &mut data[..len];
        let port = input.u16();
        match step {
            0 => {
                let port = serial::PORT + port % 8;
                self.serial.read(port, data);
                self.read += if port == serial::PORT { len } else { 0 };
            }
            1 => self.serial.write(serial::PORT + port % 8, data),
            2 => self.type_in(&vec![0x41; usize::from(port % 6000)]),
            3 => self.rtc.write(rtc::INDEX + port % 2, data),
            4 => self.clock(data, port, input),
            5 => self.power_write(*power::PORTS.start() + port % 12, data),
            6 => self.power_read(*power::PORTS.start() + port % 12, data, input.number()),
            _ => {
                self.power.press();
                let port = [reset::KEYBOARD, reset::CONTROL, reset::KEYBOARD_DATA, port];
                let port = port[input.below(4)];
                let resets = reset::resets(port, data);
                assert!(!resets || port == reset::CONTROL && len == 1 || port == reset::KEYBOARD);
                let low = data.iter().rev().skip(len.saturating_sub(4));
                let code = low.fold(0, |code, byte| code << 8 | u32::from(*byte));
                assert_eq!(exit::code(data), code);
            }
        }
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let taken = self.serial.type_in(bytes);
        assert!(taken <= bytes.len());
        self.typed += taken;
        assert!(self.typed <= self.read + MOST_WAITING, "{} bytes wait", self.typed - self.read);
    }

    /// A read of the clock at any time: each register is what a calendar can say.
    fn clock(&mut self, data: &mut [u8], index: u16, input: &mut Input<'_>) {
        let since = Duration::from_secs(input.number());
        let now = UNIX_EPOCH.checked_add(since).or_else(|| UNIX_EPOCH.checked_sub(since));
        let now = now.unwrap_or_else(SystemTime::now);
        let index = index as u8 & 0x7f;
        self.rtc.write(rtc::INDEX, &[index]);
        self.rtc.read(rtc::DATA, data, now);
        let Some(value) = data.first() else { return };
        assert!(data.iter().all(|byte| byte == value), "a string of one register");
        let (low, most) = match index {
            0 | 2 => (0, 0x59),
            4 => (0, 0x23),
            6 => (1, 7),
            7 => (1, 0x31),
            8 => (1, 0x12),
            9 | rtc::CENTURY => (0, 0x99),
            _ => return,
        };
        assert!((low..=most).contains(value) && value & 0xf <= 9, "register {index}: {value:#x}");
    }

    fn half(&self, port: u16) -> u16 {
        let mut bytes = [0; 2];
        self.power.read(port, &mut bytes, Duration::ZERO);
        u16::from_le_bytes(bytes)
    }

    fn power_write(&mut self, port: u16, data: &[u8]) {
        const OFF: u8 = 1 << 5;
        let effect = self.power.write(port, data);
        let switches = (power::CONTROL..power::CONTROL + 2).any(|control| {
            let place = control.checked_sub(port).map(usize::from).filter(|place| *place < 4);
            place.and_then(|place| data.get(place)).is_some_and(|byte| byte & OFF != 0)
        });
        assert!(effect == Effect::None || switches, "only its enable switches off");
        self.check_power();
    }

    fn power_read(&mut self, port: u16, data: &mut [u8], on: u64) {
        self.power.read(port, data, Duration::from_nanos(on));
        let behind = usize::from(*power::PORTS.end() - port) + 1;
        assert!(data.iter().skip(behind).all(|byte| *byte == 0xff), "nothing is behind");
        self.check_power();
    }

    fn check_power(&self) {
        let (status, enable) = (self.half(power::EVENT), self.half(power::EVENT + 2));
        assert_eq!(self.power.level(), status & enable != 0);
        assert_eq!(enable & !0x521, 0, "the bits that there are");
        let control = self.half(power::CONTROL);
        assert!(control & 1 != 0 && control & 1 << 13 == 0, "ACPI mode, and no enable is kept");
    }
}
