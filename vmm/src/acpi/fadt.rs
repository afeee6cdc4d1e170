//! FADT (ACPI 6.5, section 5.2.9): power management with fixed registers, and how to reset.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::Gpa;
use crate::devices::{power, reset, rtc};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// `IAPC_BOOT_ARCH` (table 5.10): ISA devices are there; no VGA. Neither is a keyboard controller, apart
/// from its reset command.
const BOOT_ARCH: u16 = 1 | 1 << 2;

/// The table. Hardware is in ACPI mode from the start: there is no SMI command.
pub(super) fn table(facs: Gpa, dsdt: Gpa) -> FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        // Both are below 1 MiB.
        .firmware_ctrl_32(facs.0 as u32)
        .dsdt_32(dsdt.0 as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Set: there is no fixed sleep button, and no fixed wake-up by the clock. A power button there is.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = (power::SCI as u16).into();
    fadt.pm1a_evt_blk = u32::from(power::EVENT).into();
    fadt.pm1_evt_len = power::EVENT_SIZE;
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL).into();
    fadt.pm1_cnt_len = power::CONTROL_SIZE;
    fadt.pm_tmr_blk = u32::from(power::TIMER).into();
    fadt.pm_tmr_len = power::TIMER_SIZE;
    // Larger than any latency: no C2 and no C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg =
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(reset::CONTROL));
    fadt.reset_value = reset::CONTROL_RESET;
    fadt.finalize()
}
