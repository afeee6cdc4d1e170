//! DSDT: the devices, in AML (ACPI 6.5, chapter 20).

use super::{Board, empty};
use crate::devices::{power, rtc, serial, tpm};
use crate::pci::layout;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, Path,
    ResourceTemplate, Return, Scope, Store, Uuid,
};
use acpi_tables::{Aml, AmlSink, sdt::Sdt};

/// Ports of configuration mechanism 1, which the bridge itself decodes.
const CONFIG_PORTS: (u16, u8) = (0xcf8, 8);

/// What the operating system asks for by `_OSC` (PCI Firmware Specification 3.3, section 4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What it may have: hot-plug by the root ports' own registers, and the PCI Express capabilities.
const OSC_GRANTED: u8 = 1 << 0 | 1 << 4;
/// Answers of `_OSC` (ACPI 6.5, section 6.2.12).
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_MASKED: u8 = 1 << 4;

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
    device_with(path, id, more, None)
}

/// The same with a method.
fn device_with(
    path: &str,
    id: &str,
    more: &[(&str, &dyn Aml)],
    method: Option<&dyn Aml>,
) -> Vec<u8> {
    let mut names =
        vec![Name::new("_HID".into(), &EISAName::new(id)), Name::new("_UID".into(), &0u8)];
    names.extend(more.iter().map(|(name, value)| Name::new((*name).into(), *value)));
    let all = names.iter().map(|n| n as &dyn Aml).chain(method);
    aml(&Device::new(path.into(), all.collect()))
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
    let bus = AddressSpace::new_bus_number(0u16, u16::from(board.windows.last_bus()));
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
    // A kernel drives hot-plug only where it is let. Without ports there is nothing to be let.
    let control = (board.windows.last_bus() > 0).then(operating_system_control);
    let bridge = device_with(
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
        control.as_ref().map(|code| code as &dyn Aml),
    );
    let (at, size) = (board.windows.ecam() as u32, board.windows.ecam_size() as u32);
    let ecam = Memory32Fixed::new(true, at, size);
    let reserved = device("_SB_.MBRD", "PNP0C02", &[("_CRS", &ResourceTemplate::new(vec![&ecam]))]);
    [bridge, reserved].concat()
}

/// Code that was put together before.
struct Code(Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `_OSC`: of what the operating system asks for, it may have [`OSC_GRANTED`].
fn operating_system_control() -> Code {
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    // The buffer's first word is about the answer, the third one about what is asked for.
    let fields = [(&status, 0u8), (&control, 8)];
    let [first, third] = [0, 1].map(|i| CreateDWordField::new(fields[i].0, &Arg(3), &fields[i].1));
    let uuid = Uuid::new(OSC_UUID);
    let ours = Equal::new(&Arg(0), &uuid);
    let asked = Store::new(&Local(0), &control);
    let grant = And::new(&control, &Local(0), &OSC_GRANTED);
    let less = NotEqual::new(&Local(0), &control);
    let masked = Or::new(&status, &status, &OSC_MASKED);
    let tell = If::new(&less, vec![&masked]);
    let unknown = Or::new(&status, &status, &OSC_UNKNOWN_UUID);
    let (grants, refuses) =
        (If::new(&ours, vec![&third, &asked, &grant, &tell]), Else::new(vec![&unknown]));
    let answer = Return::new(&Arg(3));
    let body: Vec<&dyn Aml> = vec![&first, &grants, &refuses, &answer];
    Code(aml(&Method::new("_OSC".into(), 4, true, body)))
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
