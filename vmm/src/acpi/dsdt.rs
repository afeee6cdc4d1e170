//! DSDT: the devices, in AML (ACPI 6.5, chapter 20).

use super::{Board, empty};
use crate::devices::{power, rtc, serial, tpm};
use crate::pci::layout;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, ResourceTemplate, Scope,
};
use acpi_tables::{Aml, sdt::Sdt};

/// Ports of configuration mechanism 1, which the bridge itself decodes.
const CONFIG_PORTS: (u16, u8) = (0xcf8, 8);

/// The table.
pub(super) fn table(board: &Board) -> Sdt {
    let mut code = Vec::new();
    for part in
        [sleep(), processors(board.apic_ids.len() as u32), root_bridge(board), small_devices()]
    {
        code.extend_from_slice(&part);
    }
    if board.tpm {
        code.extend_from_slice(&security_device());
    }
    let mut dsdt = empty(*b"DSDT", 2);
    dsdt.append_slice(&code);
    dsdt
}

fn aml(object: &dyn Aml) -> Vec<u8> {
    super::bytes(object)
}

/// A device with the identity `id`, unit 0, and `more` named objects.
fn device(path: &str, id: &str, more: &[(&str, &dyn Aml)]) -> Vec<u8> {
    let mut names =
        vec![Name::new("_HID".into(), &EISAName::new(id)), Name::new("_UID".into(), &0u8)];
    names.extend(more.iter().map(|(name, value)| Name::new((*name).into(), *value)));
    aml(&Device::new(path.into(), names.iter().map(|n| n as &dyn Aml).collect()))
}

/// `_S5` (section 7.4.2): what to write to switch off.
fn sleep() -> Vec<u8> {
    let kind = power::SLEEP_OFF;
    aml(&Name::new("_S5_".into(), &Package::new(vec![&kind, &kind, &0u8, &0u8])))
}

/// One `ACPI0007` for each vCPU (section 8.4), by the UID that the MADT has for it.
fn processors(vcpus: u32) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uids: Vec<Name> = (0..vcpus).map(|uid| Name::new("_UID".into(), &uid)).collect();
    let devices: Vec<Device<'_>> = (0..vcpus)
        .zip(&uids)
        .map(|(uid, name)| Device::new(format!("C{uid:03}").as_str().into(), vec![&hid, name]))
        .collect();
    let list = devices.iter().map(|d| d as &dyn Aml).collect();
    aml(&Scope::new("_SB_".into(), list))
}

/// The PCI Express root bridge with the windows that it decodes. Functions have no INTx, so that there is
/// no `_PRT`. Its configuration space is reserved by a device of its own, as the PCI Firmware
/// Specification wants it.
fn root_bridge(board: &Board) -> Vec<u8> {
    let high = board.windows.high().0;
    let (config, config_size) = CONFIG_PORTS;
    let uncached = AddressSpaceCacheable::NotCacheable;
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let config_ports = IO::new(config, config, 1, config_size);
    let ports_below = AddressSpace::new_io(0u16, config - 1, None);
    let ports_above = AddressSpace::new_io(config + u16::from(config_size), u16::MAX, None);
    let low = AddressSpace::new_memory(
        uncached,
        true,
        board.windows.low().0 as u32,
        (board.windows.ecam() - 1) as u32,
        None,
    );
    let high = AddressSpace::new_memory(
        AddressSpaceCacheable::Cacheable,
        true,
        high,
        layout::HIGH_END - 1,
        None,
    );
    let mut windows: Vec<&dyn Aml> = vec![&bus, &config_ports, &ports_below, &ports_above, &low];
    if board.windows.high().0 < layout::HIGH_END {
        windows.push(&high);
    }
    let bridge = device(
        "_SB_.PCI0",
        "PNP0A08",
        &[
            ("_CID", &EISAName::new("PNP0A03")),
            ("_SEG", &0u8),
            ("_BBN", &0u8),
            // Devices keep their caches coherent.
            ("_CCA", &1u8),
            ("_CRS", &ResourceTemplate::new(windows)),
        ],
    );
    let ecam = Memory32Fixed::new(true, board.windows.ecam() as u32, layout::ECAM_SIZE as u32);
    let reserved = device("_SB_.MBRD", "PNP0C02", &[("_CRS", &ResourceTemplate::new(vec![&ecam]))]);
    [bridge, reserved].concat()
}

/// Serial port and clock. The clock raises no interrupt, so that it names none.
fn small_devices() -> Vec<u8> {
    let size = (serial::PORT_END - serial::PORT + 1) as u8;
    let ports = IO::new(serial::PORT, serial::PORT, 1, size);
    // Edge-triggered, active high, not shared: an ISA interrupt.
    let interrupt = Interrupt::new(true, true, false, false, serial::IRQ);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let serial = device("_SB_.COM1", "PNP0501", &[("_CRS", &resources)]);
    let ports = IO::new(rtc::INDEX, rtc::INDEX, 1, 2);
    let resources = ResourceTemplate::new(vec![&ports]);
    let clock = device("_SB_.RTC0", "PNP0B00", &[("_CRS", &resources)]);
    [serial, clock].concat()
}

/// The TPM (TCG ACPI Specification 1.3, section 8): `MSFT0101` is no identity of EISA's form.
fn security_device() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"MSFT0101");
    let uid = Name::new("_UID".into(), &0u8);
    let page = Memory32Fixed::new(true, tpm::BASE as u32, tpm::SIZE as u32);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&page]));
    aml(&Device::new("_SB_.TPM0".into(), vec![&hid, &uid, &resources]))
}
