use super::bar::BarKind;
use super::*;
use crate::device::eventfd::EventFd;
use crate::memory::sealed_memfd;
use beamline_abi::pci::{capability, msix as layout};
use std::os::fd::AsFd;
use std::sync::Arc;

fn function() -> Function {
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x1050,
        class: 0x03_80_00,
        revision: 1,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1050,
    };
    let bars = [
        Bar { index: 0, size: 1 << 14, kind: BarKind::Memory32, prefetchable: false },
        Bar::memory(2, 1 << 12),
        Bar::registers(4, 1 << 33),
    ];
    let msix = Msix { vectors: 3, bar: 0, table: 0x1000, pba: 0x2000 };
    Function::new(&identity, &bars, msix).unwrap()
}

fn read(config: &ConfigSpace, at: u16, len: usize) -> u64 {
    let mut bytes = [0; 8];
    config.read(at.into(), &mut bytes[..len]);
    u64::from_le_bytes(bytes)
}

fn find(config: &ConfigSpace, id: u8) -> Option<u16> {
    let mut at = read(config, header::CAPABILITIES, 1) as u16;
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        if read(config, at, 1) as u8 == id {
            return Some(at);
        }
        at = read(config, at + 1, 1) as u16;
    }
    panic!("the capability list loops");
}

#[test]
fn bars_answer_sizing_and_keep_their_type() {
    let mut function = function();
    let size = |function: &mut Function, register: u16| {
        let at = u64::from(header::BAR0 + 4 * register);
        let _ = function.write_config(at, &[0xff; 4]);
        read(&function.config, at as u16, 4) as u32
    };
    assert_eq!(size(&mut function, 0), 0xffff_c000);
    assert_eq!(size(&mut function, 1), 0, "no BAR there");
    assert_eq!(size(&mut function, 2), 0xffff_f00c);
    assert_eq!(size(&mut function, 3), 0xffff_ffff);
    assert_eq!(size(&mut function, 4), 0x0000_0004, "8 GiB: the low half has no writable bits");
    assert_eq!(size(&mut function, 5), 0xffff_fffe);
    let _ = function.write_config(u64::from(header::BAR0), &0xfebf_4321u32.to_le_bytes());
    assert_eq!(read(&function.config, header::BAR0, 4), 0xfebf_4000);
    function.reset();
    assert_eq!(read(&function.config, header::BAR0, 4), 0);
    assert_eq!(read(&function.config, header::BAR0 + 8, 4), 0xc);
}

#[test]
fn bad_bars_are_refused() {
    let identity =
        Identity { vendor: 1, device: 1, class: 0, revision: 0, subsystem_vendor: 0, subsystem: 0 };
    let fails = |bars: &[Bar]| ConfigSpace::new(&identity, bars).err().unwrap();
    assert!(matches!(fails(&[Bar::memory(5, 4096)]), PciError::BadBar { index: 5, .. }));
    assert!(matches!(fails(&[Bar::memory(0, 5000)]), PciError::BadBar { .. }));
    assert!(matches!(fails(&[Bar::memory(0, 16)]), PciError::BadBar { .. }));
    assert!(matches!(
        fails(&[Bar::memory(0, 4096), Bar::memory(1, 4096)]),
        PciError::BarTaken { index: 1 }
    ));
}

#[test]
fn header_is_read_only_but_for_what_a_driver_owns() {
    let mut function = function();
    for at in 0..header::EXTENDED_SIZE as u64 {
        let _ = function.write_config(at, &[0xff]);
    }
    assert_eq!(read(&function.config, header::VENDOR_ID, 4), 0x1050_1af4);
    assert_eq!(read(&function.config, header::CLASS, 3), 0x03_80_00);
    assert_eq!(read(&function.config, header::STATUS, 2) as u16, 1 << 4);
    assert_eq!(read(&function.config, header::COMMAND, 2) as u16, COMMAND_WRITABLE);
    let msix = find(&function.config, capability::MSIX).unwrap();
    assert_eq!(
        read(&function.config, msix + layout::CONTROL, 2) as u16,
        layout::CONTROL_ENABLE | layout::CONTROL_MASK_ALL | 2
    );
    assert_eq!(read(&function.config, msix + layout::TABLE, 4), 0x1000);
    assert_eq!(read(&function.config, msix + layout::PBA, 4), 0x2000);
    let mut all = [0xaa; 8];
    function.config.read(4094, &mut all);
    assert_eq!(all[2..], [0; 6], "past the end reads as zero");
    function.config.read(u64::MAX, &mut all);
    let _ = function.write_config(u64::MAX, &all);
}

#[test]
fn flr_is_offered_and_self_clearing() {
    let mut function = function();
    let at = find(&function.config, capability::EXPRESS).unwrap();
    assert_ne!(read(&function.config, at + 4, 4) & 1 << 28, 0);
    let effect = function.write_config(u64::from(at) + 8, &0x8010u16.to_le_bytes());
    assert!(effect.reset);
    assert_eq!(read(&function.config, at + 8, 2), 0x0010);
    assert!(!function.write_config(0x10, &[0; 4]).reset);
}

#[test]
fn interrupts_need_a_wire_and_bus_mastering() {
    let mut function = function();
    let wire = EventFd::new().unwrap();
    let fd = || wire.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(function.irqs.signal(1), Ok(false));
    function.set_irqs(IrqIndex::MSIX, 1, 1, IrqAction::SetEventFds(vec![fd()])).unwrap();
    assert_eq!(function.irqs.signal(1), Ok(false), "bus mastering is off");
    let on = command::BUS_MASTER.to_le_bytes();
    let effect = function.write_config(header::COMMAND.into(), &on);
    assert_eq!(effect, ConfigEffect { bus_master: Some(true), reset: false });
    assert_eq!(function.irqs.signal(1), Ok(true));
    assert!(wire.take());
    assert_eq!(function.irqs.signal(0), Ok(false));
    assert_eq!(function.irqs.signal(3), Err(msix::IrqError::NoSuchVector { vector: 3, count: 3 }));
    function.set_irqs(IrqIndex::MSIX, 1, 1, IrqAction::Trigger).unwrap();
    assert!(wire.take());
    function.set_irqs(IrqIndex::MSIX, 0, 0, IrqAction::Clear).unwrap();
    assert_eq!(function.irqs.signal(1), Ok(false));

    assert!(function.set_irqs(IrqIndex::MSIX, 2, 2, IrqAction::Clear).is_err());
    assert!(function.set_irqs(IrqIndex::MSIX, u32::MAX, 2, IrqAction::Clear).is_err());
    assert!(function.set_irqs(IrqIndex::MSIX, 0, 2, IrqAction::SetEventFds(vec![fd()])).is_err());
    assert!(function.set_irqs(IrqIndex::INTX, 0, 1, IrqAction::Trigger).is_err());
    assert_eq!(function.irq(IrqIndex::INTX).count, 0);
    assert_eq!(function.irq(IrqIndex::MSIX).count, 3);
}

#[test]
fn a_full_eventfd_is_a_pending_interrupt() {
    let table = IrqTable::new(1);
    let wire = EventFd::new().unwrap();
    // The largest value that an eventfd holds: one more would block.
    rustix::io::write(wire.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let fd = wire.as_fd().try_clone_to_owned().unwrap();
    table.set(0, 1, IrqAction::SetEventFds(vec![fd])).unwrap();
    table.set_enabled(true);
    assert_eq!(table.signal(0), Ok(true));
}

/// A peer can make the last close of an eventfd wait: whoever signals it must not be the one.
#[test]
fn who_signals_never_closes() {
    let table = IrqTable::new(1);
    table.set_enabled(true);
    let wire = || {
        let fd = EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap();
        IrqAction::SetEventFds(vec![fd])
    };
    table.set(0, 1, wire()).unwrap();
    let held = table.wired(0).unwrap();
    let watch = Arc::downgrade(&held);
    table.set(0, 1, wire()).unwrap();
    drop(held);
    assert_eq!(watch.strong_count(), 1, "it is still open");
    table.set(0, 1, IrqAction::Clear).unwrap();
    assert_eq!(watch.strong_count(), 0, "closed by the next one who rewires");
    assert!(table.wired(0).is_none());
}

#[test]
fn an_interrupt_takes_an_eventfd_only() {
    let table = IrqTable::new(1);
    let file = sealed_memfd("no eventfd", 4096, rustix::fs::SealFlags::empty()).unwrap();
    let error = table.set(0, 1, IrqAction::SetEventFds(vec![file])).unwrap_err();
    assert!(error.to_string().contains("no eventfd") && error.to_string().contains("has to be"));
}

#[test]
fn the_table_page_reads_back_and_stops_at_its_end() {
    let mut pages = MsixPages::new(2);
    let mut entry = [0; 16];
    pages.read_table(16, &mut entry);
    assert_eq!(entry[12], 1, "masked after reset");
    pages.write_table(16, &[7; 16]);
    pages.write_table(32, &[9; 16]);
    pages.write_table(u64::MAX, &[9; 16]);
    let mut wide = [0; 64];
    pages.read_table(16, &mut wide);
    assert_eq!(wide[..16], [7; 16]);
    assert_eq!(wide[16..], [0; 48]);
}
