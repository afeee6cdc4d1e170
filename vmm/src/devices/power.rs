//! Power management with fixed registers (ACPI 6.5, section 4.8): the power button, switching off, and the
//! power management timer.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Its interrupt, level-triggered: a pin of the I/O APIC.
pub const SCI: u32 = 9;
/// First port of the PM1 event registers: status, then enable.
pub const EVENT: u16 = 0x600;
/// Their bytes.
pub const EVENT_SIZE: u8 = 4;
/// First port of the PM1 control register.
pub const CONTROL: u16 = 0x604;
/// Its bytes.
pub const CONTROL_SIZE: u8 = 2;
/// First port of the timer.
pub const TIMER: u16 = 0x608;
/// Its bytes.
pub const TIMER_SIZE: u8 = 4;
/// All ports.
pub const PORTS: RangeInclusive<u16> = EVENT..=TIMER + TIMER_SIZE as u16 - 1;
/// The sleep type that `_S5` names: off. Firmware for PCs knows it by this number.
pub const SLEEP_OFF: u8 = 0;

/// `PWRBTN_STS` and `PWRBTN_EN` (tables 4.11 and 4.12).
const POWER_BUTTON: u16 = 1 << 8;
/// Enable bits that hold what is written: timer, global lock, button, clock. Kernels check that they do; only
/// the button's status is ever set.
const ENABLES: u16 = 1 | 1 << 5 | POWER_BUTTON | 1 << 10;
/// `SCI_EN` (table 4.13): ACPI mode, always.
const SCI_ENABLE: u16 = 1;
/// `SLP_EN`, and where `SLP_TYP` is.
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
/// Ticks per second (section 4.8.2.1).
const TIMER_HZ: u128 = 3_579_545;
const NANOS: u128 = 1_000_000_000;

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing that others must know, except perhaps the interrupt's level.
    None,
    /// The guest switched off.
    Off,
}

/// The registers.
#[derive(Debug, Default)]
pub struct Power {
    status: u16,
    enable: u16,
    control: u16,
}

impl Power {
    /// The level of [`SCI`].
    pub fn level(&self) -> bool {
        self.status & self.enable != 0
    }

    /// Someone pressed the power button.
    pub fn press(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// All ports' bytes, `on` after the machine was switched on.
    fn bytes(&self, on: Duration) -> [u8; 12] {
        let mut all = [0; 12];
        all[0..2].copy_from_slice(&self.status.to_le_bytes());
        all[2..4].copy_from_slice(&self.enable.to_le_bytes());
        all[4..6].copy_from_slice(&(self.control | SCI_ENABLE).to_le_bytes());
        all[8..12].copy_from_slice(&ticks(on).to_le_bytes());
        all
    }

    /// A read of `port`, which is one of [`PORTS`], `on` after the machine was switched on.
    pub fn read(&self, port: u16, data: &mut [u8], on: Duration) {
        let all = self.bytes(on);
        let from = usize::from(port.wrapping_sub(EVENT));
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = all.get(from + i).copied().unwrap_or(0xff);
        }
    }

    /// A write of `port`, which is one of [`PORTS`]. The timer cannot be written.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Effect {
        let mut effect = Effect::None;
        let from = usize::from(port.wrapping_sub(EVENT));
        // A string instruction's further data is dropped.
        for (at, byte) in (from..).zip(data.iter().take(4)) {
            let shift = 8 * (at & 1);
            let value = u16::from(*byte) << shift;
            let kept = !(0xff << shift);
            match at {
                // Writing 1 clears.
                0 | 1 => self.status &= !value,
                2 | 3 => self.enable = (self.enable & kept | value) & ENABLES,
                4 | 5 => {
                    let control = self.control & kept | value;
                    // It reads back as 0.
                    self.control = control & !SLEEP_ENABLE;
                    let kind = (control >> SLEEP_TYPE_SHIFT) & 7;
                    if control & SLEEP_ENABLE != 0 && kind == u16::from(SLEEP_OFF) {
                        effect = Effect::Off;
                    }
                }
                _ => {}
            }
        }
        effect
    }
}

/// The timer's 32 bits.
fn ticks(on: Duration) -> u32 {
    (on.as_nanos() * TIMER_HZ / NANOS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(p: &Power, port: u16) -> u16 {
        let mut bytes = [0; 2];
        p.read(port, &mut bytes, Duration::ZERO);
        u16::from_le_bytes(bytes)
    }

    #[test]
    fn the_button_interrupts_where_it_is_enabled_until_it_is_cleared() {
        let mut p = Power::default();
        p.press();
        assert!(!p.level() && half(&p, EVENT) == POWER_BUTTON);
        assert_eq!(p.write(EVENT + 2, &u16::MAX.to_le_bytes()), Effect::None);
        assert_eq!(half(&p, EVENT + 2), ENABLES);
        assert!(p.level());
        assert_eq!(p.write(EVENT, &[0xff]), Effect::None);
        assert!(p.level(), "the other byte");
        assert_eq!(p.write(EVENT, &POWER_BUTTON.to_le_bytes()), Effect::None);
        assert!(!p.level());
    }

    #[test]
    fn only_s5_with_its_enable_switches_off() {
        let mut p = Power::default();
        let off = u16::from(SLEEP_OFF) << SLEEP_TYPE_SHIFT;
        assert_eq!(p.write(CONTROL, &off.to_le_bytes()), Effect::None);
        assert_eq!(p.write(CONTROL, &(SLEEP_ENABLE | 1 << 10).to_le_bytes()), Effect::None);
        assert_eq!(half(&p, CONTROL), SCI_ENABLE | 1 << 10, "the enable is not kept");
        assert_eq!(p.write(CONTROL, &(SLEEP_ENABLE | off).to_le_bytes()), Effect::Off);
    }

    #[test]
    fn the_timer_counts_and_wraps() {
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        let wrapped = ticks(Duration::from_secs(1 << 20));
        assert_eq!(u128::from(wrapped), (TIMER_HZ << 20) % (1 << 32));
        let mut p = Power::default();
        assert_eq!(p.write(TIMER, &[1; 4]), Effect::None);
        let mut byte = [0; 6];
        p.read(TIMER, &mut byte, Duration::ZERO);
        assert_eq!(byte, [0, 0, 0, 0, 0xff, 0xff], "and nothing behind");
        assert_eq!(p.write(u16::MAX, &[0; 4]), Effect::None);
    }
}
