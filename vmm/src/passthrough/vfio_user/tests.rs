//! A function attached over a real connection: used without a guest, and by a tiny guest.

use super::*;
use crate::config::{Device, VfioUserDevice};
use crate::machine::Machine;
use crate::testing::device::{EXPRESS, MSIX, PAGE_VALUE, Probe, Served, VECTORS, bar0};
use crate::testing::{Asm, Recorder, guest, kvm_or_skip, signal, take};
use crate::{ExitReason, Vm};
use std::time::Duration;

const MEMORY: u16 = beamline_abi::pci::command::MEMORY;
/// Where the VMM puts the BARs: largest first.
const BAR0: u64 = 0xc000_0000;
const BAR4: u64 = 0xc000_4000;
const BAR2: u64 = 0xc000_6000;
const TABLE: u64 = BAR0 + 0x1000;
const PBA: u64 = BAR0 + 0x2000;

/// Where the guest counts its interrupts.
const COUNT: u32 = 0x7000;
/// Bounds a wait for a guest that cannot end otherwise.
const LONG: Duration = Duration::from_mins(1);

fn build(code: &Asm) -> (Vm, Served, tempfile::TempDir) {
    let (served, link, cutter) = Served::new();
    let (config, dir) = guest(code);
    let vm = Vm::with_link(config, Box::new(Recorder::default()), link, cutter).unwrap();
    (vm, served, dir)
}

impl Machine {
    fn config(&mut self, offset: u16) -> u32 {
        let mut word = [0; 4];
        self.bus.config_read(1, offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn set_config(&mut self, offset: u16, value: u32) {
        self.bus.config_write(&mut self.platform, 1, offset, &value.to_le_bytes());
    }

    fn read(&mut self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.bus.mmio_read(at, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, at: u64, value: u32) {
        self.bus.mmio_write(&mut self.platform, at, &value.to_le_bytes());
    }

    fn decode_on(&mut self) {
        self.set_config(config::COMMAND, MEMORY.into());
    }
}

#[test]
fn attaching_maps_ram_and_tells_the_pacer_the_tsc() {
    if !kvm_or_skip("attaching_maps_ram_and_tells_the_pacer_the_tsc") {
        return;
    }
    let (_vm, served, _dir) = build(&Asm::default());
    let seen = served.probe.seen();
    assert_eq!(seen.maps, [(0, 4 << 20)]);
    let registers: Vec<u64> = seen.writes.iter().map(|w| w.0).collect();
    assert_eq!(registers, [0x40, 0x44, 0x48, 0x4c, 0x50]);
    assert_eq!(seen.writes[4].1, 1, "commit");
    assert_eq!((seen.writes[2].1, seen.writes[3].1), (0, 0), "scale");
}

#[test]
fn bars_are_sized_and_moved() {
    if !kvm_or_skip("bars_are_sized_and_moved") {
        return;
    }
    let (mut vm, _served, _dir) = build(&Asm::default());
    let m = vm.machine();
    let bars: Vec<u32> = (0..6).map(|b| m.config(config::BAR0 + 4 * b)).collect();
    assert_eq!(bars, [BAR0 as u32, 0, BAR2 as u32, 0, BAR4 as u32 | 0xc, 0]);
    for b in 0..6 {
        m.set_config(config::BAR0 + 4 * b, u32::MAX);
    }
    let sizes: Vec<u32> = (0..6).map(|b| m.config(config::BAR0 + 4 * b)).collect();
    assert_eq!(sizes, [0xffff_c000, 0, 0xffff_f000, 0, 0xffff_e00c, u32::MAX]);
    // Decode with addresses outside every window reaches nothing and harms nothing.
    m.decode_on();
    assert_eq!(m.read(0xffff_c000 + u64::from(bar0::ID)), u32::MAX);
    let id = u64::from(bar0::ID);
    for base in [0xd000_0000u32, 0xe000_0000] {
        m.set_config(config::BAR0, base);
        assert_eq!(m.read(u64::from(base) + id), 0x1234_5678);
    }
    assert_eq!(m.read(0xd000_0000 + id), u32::MAX, "moved away");
    m.set_config(config::COMMAND, 0);
    assert_eq!(m.read(0xe000_0000 + id), u32::MAX, "decode off");
    m.set_config(0x30, u32::MAX);
    assert_eq!(m.config(0x30), 0, "no expansion ROM");
    assert_eq!(m.config(config::COMMAND) & 0xffff, 0);
    let mut byte = [1];
    m.bus.config_read(1, config::INTERRUPT_PIN, &mut byte);
    assert_eq!(byte, [0], "no INTx");
}

#[test]
fn a_masked_signal_is_pending_and_delivered_once() {
    if !kvm_or_skip("a_masked_signal_is_pending_and_delivered_once") {
        return;
    }
    let (mut vm, served, _dir) = build(&Asm::default());
    let m = vm.machine();
    m.decode_on();
    assert!(!served.probe.trigger(0), "no eventfds while disabled");
    m.set_config(MSIX, 0x8000 << 16);
    assert_eq!(m.config(MSIX) >> 16, 0x8000 | (VECTORS - 1));
    m.write(TABLE, 0xfee0_0000);
    m.write(TABLE + 8, 0x40);
    assert_eq!([m.read(TABLE), m.read(TABLE + 8), m.read(TABLE + 12)], [0xfee0_0000, 0x40, 1]);
    // Masked since reset: pending, and only this one.
    assert!(served.probe.trigger(0) && served.probe.trigger(0));
    assert_eq!(m.read(PBA), 1);
    m.write(TABLE + 12, 0);
    assert_eq!(m.read(PBA), 0, "delivered");
    m.write(TABLE + 12, 1);
    assert_eq!(m.read(PBA), 0, "and not pending again: a second unmask delivers nothing");
    // Live: the signal goes to KVM at once.
    m.write(TABLE + 12, 0);
    assert!(served.probe.trigger(0));
    m.write(TABLE + 12, 1);
    assert_eq!(m.read(PBA), 0);
    // The function mask does the same to all.
    m.write(TABLE + 12, 0);
    m.write(TABLE + 16 + 12, 0);
    m.set_config(MSIX, 0xc000 << 16);
    assert!(served.probe.trigger(0) && served.probe.trigger(1));
    assert_eq!(m.read(PBA), 0b11);
    m.set_config(MSIX, 0x8000 << 16);
    assert_eq!(m.read(PBA), 0);
    m.set_config(MSIX, 0);
    assert!(!served.probe.trigger(0), "eventfds are taken back");
    assert_eq!(m.read(PBA), 0);
}

#[test]
fn odd_accesses_to_the_table_do_no_harm() {
    if !kvm_or_skip("odd_accesses_to_the_table_do_no_harm") {
        return;
    }
    let (mut vm, served, _dir) = build(&Asm::default());
    let m = vm.machine();
    m.decode_on();
    m.set_config(MSIX, 0x8000 << 16);
    for at in 0..64 {
        for length in [1, 2, 3, 4, 8] {
            let mut data = [0xa5; 8];
            m.bus.mmio_write(&mut m.platform, TABLE + at, &data[..length]);
            m.bus.mmio_write(&mut m.platform, PBA + at, &data[..length]);
            m.bus.mmio_read(TABLE + at, &mut data[..length]);
            m.bus.mmio_read(PBA + at, &mut data[..length]);
        }
    }
    m.bus.mmio_write(&mut m.platform, TABLE + 8, &[1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!((m.read(TABLE + 8), m.read(TABLE + 12)), (1, 1), "8 bytes are two fields");
    let table = 0x1000..0x1000 + u64::from(VECTORS) * 16;
    assert!(
        !served.probe.seen().writes.iter().any(|(at, _)| table.contains(at)),
        "never forwarded"
    );
    m.bus.mmio_write(&mut m.platform, BAR0 + 0x3ffe, &[0; 4]);
    m.bus.mmio_read(u64::MAX - 1, &mut [0; 8]);
}

#[test]
fn a_function_level_reset_brings_the_defaults_back() {
    if !kvm_or_skip("a_function_level_reset_brings_the_defaults_back") {
        return;
    }
    let (mut vm, served, _dir) = build(&Asm::default());
    let m = vm.machine();
    m.decode_on();
    m.set_config(MSIX, 0x8000 << 16);
    m.write(TABLE + 12, 0);
    m.set_config(EXPRESS + 8, 0x8000);
    assert_eq!(m.config(MSIX) >> 16, VECTORS - 1);
    assert_eq!(m.config(config::BAR0), 0);
    assert_eq!(m.config(config::COMMAND) & 0xffff, 0);
    assert_eq!(m.read(TABLE), u32::MAX, "nothing decoded");
    assert!(!served.probe.trigger(0));
    let commits = served.probe.seen().writes.iter().filter(|w| **w == (0x50, 1)).count();
    assert_eq!(commits, 2, "the pacer is told the TSC again");
}

#[test]
fn a_lost_server_reads_all_ones() {
    if !kvm_or_skip("a_lost_server_reads_all_ones") {
        return;
    }
    let (mut vm, mut served, _dir) = build(&Asm::default());
    let m = vm.machine();
    m.decode_on();
    m.set_config(MSIX, 0x8000 << 16);
    m.write(TABLE + 12, 0);
    served.die();
    assert!(!served.probe.seen().connected);
    assert_eq!(m.config(0), u32::MAX);
    assert_eq!(m.read(BAR0 + u64::from(bar0::ID)), u32::MAX);
    m.write(BAR0, 1);
    m.set_config(MSIX, 0);
    m.set_config(MSIX, 0x8000 << 16);
    m.set_config(EXPRESS + 8, 0x8000);
    m.set_config(config::COMMAND, 0);
}

#[test]
fn stop_does_not_wait_for_a_silent_server() {
    if !kvm_or_skip("stop_does_not_wait_for_a_silent_server") {
        return;
    }
    let code = Asm::default().config_write(1, 4, 2).load(BAR0 as u32 + bar0::HANG).exit(0);
    let (vm, mut served, _dir) = build(&code);
    let handle = vm.start().unwrap();
    while !served.probe.seen().hangs {
        assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
    }
    assert_eq!(handle.stop(), ExitReason::Stopped);
    assert!(served.is_cut(), "the server never answered");
    signal(&served.probe.gate);
}

/// One guest that uses everything: trapped registers, a read-only page, a shared page, doorbells, vectors.
#[test]
fn a_guest_uses_the_function() {
    if !kvm_or_skip("a_guest_uses_the_function") {
        return;
    }
    let (bar0, bar2, bar4) = (BAR0 as u32, BAR2 as u32, BAR4 as u32);
    let (table, pba) = (TABLE as u32, PBA as u32);
    let code = Asm::default()
        .interrupts(&[0x40, 0x41], COUNT)
        .config_read(1, 0)
        .expect(0x0001_bea3, 1)
        .config_write(1, 4, 6)
        .load(bar0 + bar0::ID)
        .expect(0x1234_5678, 2)
        // The read-only page: reads do not exit, writes are dropped.
        .load(bar2)
        .expect(PAGE_VALUE, 3)
        .store(bar2, 1)
        .load(bar2)
        .expect(PAGE_VALUE, 4)
        .store(bar4 + 8, 0x5eed)
        .load(bar4 + 8)
        .expect(0x5eed, 5)
        // Doorbells, before and after BAR0 moves.
        .store(bar0 + bar0::BELL, 1)
        .store(bar0 + bar0::MATCH, 5)
        .store(bar0 + bar0::MATCH, 6)
        .config_write(1, 0x10, 0xd000_0000)
        .store(0xd000_0000 + bar0::BELL, 1)
        .config_write(1, 0x10, bar0)
        // Vector 0 masked, vector 1 live.
        .config_write(1, u32::from(MSIX), 0x8000 << 16)
        .store(table, 0xfee0_0000)
        .store(table + 8, 0x40)
        .store(table + 16, 0xfee0_0000)
        .store(table + 24, 0x41)
        .store(table + 28, 0)
        .store(bar0 + bar0::TRIGGER, 0)
        .load(pba)
        .expect(1, 6)
        .store(bar0 + bar0::TRIGGER, 1)
        .halt_until(COUNT + 4, 1)
        .load(COUNT)
        .expect(0, 7)
        .store(table + 12, 0)
        .halt_until(COUNT, 1)
        // Masking and unmasking again delivers nothing more; vector 1 is the fence.
        .store(table + 12, 1)
        .load(pba)
        .expect(0, 8)
        .store(table + 12, 0)
        .store(bar0 + bar0::TRIGGER, 1)
        .halt_until(COUNT + 4, 2)
        .load(COUNT)
        .expect(1, 9)
        .exit(0);
    let (vm, served, _dir) = build(&code);
    let handle = vm.start().unwrap();
    let reason = handle.wait_timeout(LONG);
    let probe = &served.probe;
    assert_eq!(reason, Some(ExitReason::GuestExit(0)), "exits: {:?}", handle.exits());
    assert_eq!(take(&probe.bell), 2);
    assert_eq!(take(&probe.matched), 1);
    let bells = [u64::from(bar0::BELL), u64::from(bar0::MATCH)];
    let trapped: Vec<_> =
        probe.seen().writes.iter().filter(|w| bells.contains(&w.0)).copied().collect();
    assert_eq!(trapped, [(u64::from(bar0::MATCH), 6)], "only the value that does not match traps");
    assert_eq!(Probe::word(&probe.page, 0), PAGE_VALUE);
    assert_eq!(Probe::word(&probe.shared, 8), 0x5eed);
}

#[test]
fn an_iommu_comes_behind_the_functions() {
    if !kvm_or_skip("an_iommu_comes_behind_the_functions") {
        return;
    }
    let (served, link, cutter) = Served::new();
    let (mut config, _dir) = guest(&Asm::default());
    config.iommu.enabled = true;
    // What the tables tell of; the test connects to it.
    let device = VfioUserDevice { socket: "test".into(), timeout: Duration::ZERO };
    config.devices = vec![Device::VfioUser(device)];
    let mut vm = Vm::with_link(config, Box::new(Recorder::default()), link, cutter).unwrap();
    let mut id = [0; 4];
    vm.machine().bus.config_read(2, config::VENDOR_ID, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x1057_1af4);
    assert_eq!(served.probe.seen().maps, [(0, 4 << 20)], "all RAM before a driver comes");

    // The tables were made for another bus.
    let (_served, link, cutter) = Served::new();
    let (mut config, _dir) = guest(&Asm::default());
    config.iommu.enabled = true;
    let built = Vm::with_link(config, Box::new(Recorder::default()), link, cutter);
    assert!(matches!(built.err(), Some(crate::VmError::Misplaced { slot: 2, .. })));
}
