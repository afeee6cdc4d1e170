//! Everything that a guest's exits reach: ports, memory that is not RAM, and the lines between.

use crate::boot::firmware::Firmware;
use crate::devices::power::{self, Power};
use crate::devices::rtc::{self, Rtc};
use crate::devices::serial::{self, SerialPort};
use crate::devices::tpm::{self, Tpm};
use crate::devices::{exit, fw_cfg, reset};
use crate::interrupt::Gsi;
use crate::memory::{DirtyError, DirtyLog, GuestRam, WrittenPages};
use crate::pci::slot::{Leaving, SlotError};
use crate::pci::{Bus, nothing};
use crate::platform::Platform;
use crate::vm::ExitReason;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

/// The devices, the bus and KVM's side of the machine.
pub(crate) struct Machine {
    pub(crate) bus: Bus,
    pub(crate) serial: SerialPort,
    power: Power,
    rtc: Rtc,
    firmware: Option<Firmware>,
    tpm: Option<Tpm>,
    /// When it was switched on.
    start: Instant,
    /// The level that KVM was told last.
    sci: bool,
    pub(crate) platform: Platform,
    log: DirtyLog,
    /// RAM outlives everything that refers to it.
    ram: GuestRam,
}

/// The machine, as its vCPUs share it.
pub(crate) struct SharedMachine(Mutex<Machine>);

impl SharedMachine {
    pub(crate) fn new(machine: Machine) -> Self {
        Self(Mutex::new(machine))
    }

    /// A thread that panics ends the guest, and the others do not mind what it left.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine, where nobody runs it yet.
    #[cfg(test)]
    pub(crate) fn get_mut(&mut self) -> &mut Machine {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    pub(crate) fn new(
        bus: Bus,
        serial: SerialPort,
        platform: Platform,
        ram: GuestRam,
        log: DirtyLog,
        firmware: Option<Firmware>,
        tpm: Option<Tpm>,
    ) -> Self {
        Self {
            bus,
            serial,
            power: Power::default(),
            rtc: Rtc::default(),
            firmware,
            tpm,
            start: Instant::now(),
            sci: false,
            platform,
            log,
            ram,
        }
    }

    /// A read of `port`.
    pub(crate) fn io_read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            serial::PORT..=serial::PORT_END => self.serial.read(port, data),
            rtc::INDEX | rtc::DATA => self.rtc.read(port, data, SystemTime::now()),
            _ if power::PORTS.contains(&port) => self.power.read(port, data, self.start.elapsed()),
            _ if self.bus.io_read(port, data) => {}
            _ if fw_cfg::PORTS.contains(&port)
                && let Some(firmware) = &mut self.firmware =>
            {
                firmware.config.read(port, data);
            }
            // The keyboard controller is empty and idle: guests wait for that before they reset. Firmware would
            // wait for a keyboard, for seconds, where anything answers.
            reset::KEYBOARD if self.firmware.is_none() => data.fill(0),
            _ => nothing(data),
        }
    }

    /// A write of `port`; why the guest ends, if it does.
    pub(crate) fn io_write(&mut self, port: u16, data: &[u8]) -> Option<ExitReason> {
        match port {
            exit::PORT => return Some(ExitReason::GuestExit(exit::code(data))),
            _ if reset::resets(port, data) => return Some(ExitReason::Reset),
            serial::PORT..=serial::PORT_END => self.serial.write(port, data),
            rtc::INDEX | rtc::DATA => self.rtc.write(port, data),
            _ if power::PORTS.contains(&port) => {
                let effect = self.power.write(port, data);
                self.update_sci();
                if effect == power::Effect::Off {
                    return Some(ExitReason::Shutdown);
                }
            }
            _ if fw_cfg::PORTS.contains(&port)
                && let Some(firmware) = &mut self.firmware =>
            {
                firmware.config.write(port, data, self.ram.memory());
            }
            _ => {
                // Writes to ports where nothing is are dropped.
                let _ = self.bus.io_write(&mut self.platform, port, data);
            }
        }
        None
    }

    /// A read of guest-physical memory that is not RAM.
    pub(crate) fn mmio_read(&mut self, at: u64, data: &mut [u8]) {
        if let (Some(tpm), Some(offset)) = (&self.tpm, tpm::offset(at)) {
            return tpm.read(offset, data);
        }
        self.bus.mmio_read(at, data);
    }

    /// A write of guest-physical memory that is not RAM.
    pub(crate) fn mmio_write(&mut self, at: u64, data: &[u8]) {
        if let (Some(tpm), Some(offset)) = (&self.tpm, tpm::offset(at)) {
            return tpm.write(offset, data);
        }
        if self.firmware.as_mut().is_some_and(|firmware| firmware.flash.write(at, data)) {
            return;
        }
        self.bus.mmio_write(&mut self.platform, at, data);
    }

    /// Has what is behind the root port in `slot` taken out.
    pub(crate) fn unplug(&mut self, slot: usize, forced: bool) -> Result<Leaving, SlotError> {
        self.bus.unplug(&mut self.platform, slot, forced)
    }

    /// Has KVM log which pages of the RAM are written.
    pub(crate) fn start_dirty_log(&mut self) -> Result<(), DirtyError> {
        self.log.start(&mut self.platform)
    }

    /// Those that were since the last look.
    pub(crate) fn written_pages(&mut self) -> Result<WrittenPages, DirtyError> {
        self.log.take(&mut self.platform)
    }

    /// Ends the log.
    pub(crate) fn stop_dirty_log(&mut self) -> Result<(), DirtyError> {
        self.log.stop(&mut self.platform)
    }

    /// The guest's RAM.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> vm_memory::GuestMemoryMmap {
        self.ram.memory().clone()
    }

    /// Someone pressed the power button.
    pub(crate) fn press_power_button(&mut self) {
        self.power.press();
        self.update_sci();
    }

    fn update_sci(&mut self) {
        let level = self.power.level();
        if level != self.sci {
            self.sci = level;
            if let Err(e) = self.platform.set_line(Gsi::pin(power::SCI), level) {
                tracing::warn!("the guest misses a power event: {e}");
            }
        }
    }
}
