//! The real-time clock with its CMOS memory (Motorola MC146818A): the host's time, which the guest reads
//! and cannot set. It raises no interrupts: there is no alarm and no periodic tick.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// First port: which register. The second is its value.
pub const INDEX: u16 = 0x70;
/// The value's port.
pub const DATA: u16 = INDEX + 1;
/// The register with the century, as the FADT names it.
pub const CENTURY: u8 = 0x32;

/// Registers (data sheet, "Address map").
mod register {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const HOURS: u8 = 4;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const A: u8 = 10;
    pub(super) const B: u8 = 11;
    pub(super) const C: u8 = 12;
    pub(super) const D: u8 = 13;
}

/// Register A: the time base runs. No update is ever in progress: a read takes the time as a whole.
const RUNNING: u8 = 0x26;
/// Register B: 24 hours, numbers in BCD.
const HOURS_24: u8 = 2;
/// Register D: time and memory are valid.
const VALID: u8 = 0x80;
const MEMORY: usize = 128;
const DAY: u64 = 86_400;

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    memory: [u8; MEMORY],
}

impl Default for Rtc {
    fn default() -> Self {
        Self { index: 0, memory: [0; MEMORY] }
    }
}

impl Rtc {
    /// A read of `port`, [`INDEX`] or [`DATA`], at `now`.
    pub fn read(&self, port: u16, data: &mut [u8], now: SystemTime) {
        let value = if port == DATA { self.register(now) } else { 0xff };
        data.fill(value);
    }

    /// A write of `port`, [`INDEX`] or [`DATA`]. The time stays the host's.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        let Some(value) = data.first() else { return };
        // The index' highest bit masks the NMI, of which there is none.
        if port == INDEX {
            self.index = value & (MEMORY as u8 - 1);
        } else if !matches!(self.index, 0..=register::D | CENTURY) {
            self.memory[usize::from(self.index)] = *value;
        }
    }

    fn register(&self, now: SystemTime) -> u8 {
        let date = Date::of(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        match self.index {
            register::SECONDS => bcd(date.second),
            register::MINUTES => bcd(date.minute),
            register::HOURS => bcd(date.hour),
            register::WEEKDAY => bcd(date.weekday),
            register::DAY => bcd(date.day),
            register::MONTH => bcd(date.month),
            register::YEAR => bcd(date.year % 100),
            CENTURY => bcd(date.year / 100),
            register::A => RUNNING,
            register::B => HOURS_24,
            // Reading it clears the interrupts' flags, which are never set.
            register::C => 0,
            register::D => VALID,
            i => self.memory.get(usize::from(i)).copied().unwrap_or(0),
        }
    }
}

fn bcd(n: u64) -> u8 {
    (n / 10 % 10 * 16 + n % 10) as u8
}

/// A moment in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Date {
    /// `since` 1970, in the Gregorian calendar.
    fn of(since: Duration) -> Self {
        let (days, time) = (since.as_secs() / DAY, since.as_secs() % DAY);
        // Count years from March on, so that the leap day is the last of a year: then month lengths repeat
        // every five months, and a cycle of 400 years has 146,097 days.
        let day = days + 719_468;
        let (cycle, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        Self {
            year: cycle * 400 + year + u64::from(month >= 10),
            month: (month + 2) % 12 + 1,
            day: day - (153 * month + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: time / 3_600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(secs: u64) -> [u64; 7] {
        let d = Date::of(Duration::from_secs(secs));
        [d.year, d.month, d.day, d.weekday, d.hour, d.minute, d.second]
    }

    #[test]
    fn dates() {
        assert_eq!(date(0), [1970, 1, 1, 5, 0, 0, 0]);
        assert_eq!(date(951_782_400), [2000, 2, 29, 3, 0, 0, 0]);
        assert_eq!(date(951_868_799), [2000, 2, 29, 3, 23, 59, 59]);
        assert_eq!(date(1_709_164_800), [2024, 2, 29, 5, 0, 0, 0]);
        assert_eq!(date(4_107_542_399), [2100, 2, 28, 1, 23, 59, 59]);
        assert_eq!(date(4_107_542_400), [2100, 3, 1, 2, 0, 0, 0]);
    }

    /// Month lengths by the calendar's own rules, every day of 500 years.
    #[test]
    fn every_day_follows_the_one_before() {
        let leap = |y: u64| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for n in 0..500 * 365 {
            let [y, m, d, ..] = date(n * DAY);
            assert_eq!([y, m, d], [year, month, day]);
            let length = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn registers_are_bcd_and_the_time_cannot_be_set() {
        let now = UNIX_EPOCH + Duration::from_secs(951_868_799);
        let mut rtc = Rtc::default();
        let read = |rtc: &mut Rtc, index: u8| {
            rtc.write(INDEX, &[index]);
            let mut byte = [0];
            rtc.read(DATA, &mut byte, now);
            byte[0]
        };
        let shown = [0, 2, 4, 7, 8, 9, CENTURY, 10, 11, 13].map(|i| read(&mut rtc, i));
        assert_eq!(shown, [0x59, 0x59, 0x23, 0x29, 0x02, 0x00, 0x20, 0x26, 2, 0x80]);
        for index in 0..=u8::MAX {
            rtc.write(INDEX, &[index]);
            rtc.write(DATA, &[0x77]);
        }
        rtc.write(DATA, &[]);
        assert_eq!([0, 9, CENTURY, 14].map(|i| read(&mut rtc, i)), [0x59, 0x00, 0x20, 0x77]);
    }
}
