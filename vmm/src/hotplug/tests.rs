//! Tiny guests into which devices are plugged, and which lose them.

use super::*;
use crate::pci::slot::Leaving;
use crate::testing::device::{MSIX, Served, bar0};
use crate::testing::{Asm, guest, kvm_or_skip, take};
use crate::{Config, ExitReason, Vm};
use beamline_abi::pci::{command, config};
use std::time::{Duration, Instant};

/// Bounds a wait for what cannot end otherwise.
const LONG: Duration = Duration::from_mins(1);
const ON: u32 = (command::MEMORY | command::BUS_MASTER) as u32;
/// Where a guest looks for the function behind the first port: bus 1.
const BEHIND: u32 = 1 << 5;
/// The first port's slot, and its slot control and status.
const PORT: u32 = 1;
const SLOT: u32 = 0x58;
/// Those two once something was put in and taken out, and a guest has written neither: the power indicator is off, and
/// presence and link have changed.
const OUT: u32 = 0x0108_0300;

impl Asm {
    /// Reads a register until it is `value`. `slot` counts on over the buses.
    fn config_until(self, slot: u32, offset: u32, value: u32) -> Self {
        // cmp eax, value; jne to the start of the read, which is 15 bytes long
        self.config_read(slot, offset).raw(&[0x3d]).raw(&value.to_le_bytes()).raw(&[0x75, 0xea])
    }

    /// Waits for a function behind the first port, and puts its first BAR at `bar`.
    fn wait_for_function(self, bar: u32) -> Self {
        self.config_write(PORT, config::COMMAND.into(), ON)
            .config_until(BEHIND, 0, 0x0001_bea3)
            .config_write(BEHIND, config::BAR0.into(), bar)
            .config_write(BEHIND, config::COMMAND.into(), ON)
    }

    /// Rings the doorbell at `bell` and reads the word at `word`, until that is all-ones.
    fn ring_until_gone(self, bell: u32, word: u32) -> Self {
        self.store(bell, 1).load(word).raw(&[0x3d]).raw(&[0xff; 4]).raw(&[0x75, 0xea])
    }
}

/// What the first port passes on.
fn window() -> u32 {
    *Windows::beside(0).with_ports(1).of_port(0).start() as u32
}

/// A function that this process serves.
fn served() -> Device {
    Device::VfioUser(VfioUserDevice { socket: "test".into(), timeout: Duration::ZERO })
}

fn with_port(code: &Asm, plugged: bool, device: Device) -> (Config, tempfile::TempDir) {
    let (mut config, dir) = guest(code);
    config.ports = vec![Port { name: "a".into(), plugged, device }];
    (config, dir)
}

/// A guest rings a function's doorbell without end while its vectors are signalled, and the function is taken out.
#[test]
fn a_function_is_taken_out_while_it_is_used() {
    if !kvm_or_skip("a_function_is_taken_out_while_it_is_used") {
        return;
    }
    let bar = window();
    let code = Asm::default()
        .wait_for_function(bar)
        .config_write(BEHIND, MSIX.into(), 0x8000 << 16)
        .store(bar + 0x1000, 0xfee0_0000)
        .store(bar + 0x1008, 0x41)
        .store(bar + 0x100c, 0)
        .ring_until_gone(bar + bar0::BELL, bar + bar0::ID)
        // Its server is cut off first.
        .config_until(PORT, SLOT, OUT)
        .config_read(BEHIND, 0)
        .expect(u32::MAX, 2)
        .exit(0);
    let (config, _dir) = with_port(&code, false, served());
    let handle = Vm::new(config).unwrap().start().unwrap();
    assert_eq!(handle.port(0).unwrap().state(), State::Empty);
    assert!(matches!(handle.plug(0, None), Err(PlugError::Connection)));
    assert!(matches!(handle.plug(1, None), Err(PlugError::Slot(SlotError::NoPort))));
    // Somebody who hangs up before a word is said.
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(handle.plug(0, Some(ours)), Err(PlugError::Connect(_))));
    assert_eq!(handle.port(0).unwrap().changes(), 0);

    let (mut served, stream) = Served::listening();
    handle.plug(0, Some(stream)).unwrap();
    assert_eq!(served.probe.seen().maps, [(0, 4 << 20)], "all RAM");
    let (_second, stream) = Served::listening();
    let twice = handle.plug(0, Some(stream));
    assert!(matches!(twice, Err(PlugError::Slot(SlotError::Occupied))));
    let until = Instant::now() + LONG;
    let mut rings = 0;
    while rings < 3 && Instant::now() < until {
        served.probe.trigger(0);
        rings += take(&served.probe.bell);
        std::thread::yield_now();
    }
    assert!(rings >= 3, "the guest uses the function");
    assert_eq!(handle.unplug(0, true).unwrap(), Leaving::Gone);
    assert!(served.is_cut());
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(0)));
    assert_eq!(handle.port(0).unwrap().changes(), 2);
    let (_third, stream) = Served::listening();
    assert!(matches!(handle.plug(0, Some(stream)), Err(PlugError::Ended)));
}

/// A server that does not answer keeps nobody from taking its function out.
#[test]
fn a_function_whose_server_hangs_is_taken_out() {
    if !kvm_or_skip("a_function_whose_server_hangs_is_taken_out") {
        return;
    }
    let bar = window();
    let code = Asm::default()
        .wait_for_function(bar)
        .load(bar + bar0::HANG)
        .expect(u32::MAX, 2)
        .config_until(PORT, SLOT, OUT)
        .exit(0);
    let (config, _dir) = with_port(&code, false, served());
    let handle = Vm::new(config).unwrap().start().unwrap();
    let (served, stream) = Served::listening();
    handle.plug(0, Some(stream)).unwrap();
    let until = Instant::now() + LONG;
    while !served.probe.seen().hangs && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(handle.unplug(0, true).unwrap(), Leaving::Gone);
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(0)));
}

#[test]
fn a_guest_that_is_asked_lets_a_device_go() {
    if !kvm_or_skip("a_guest_that_is_asked_lets_a_device_go") {
        return;
    }
    // Power indicator on; the button was pressed, and something is in the slot.
    let asked = 0x0041_0100;
    let code = Asm::default()
        .config_read(BEHIND, 0)
        .expect(0x1044_1af4, 2)
        .config_until(PORT, SLOT, asked)
        // The press is seen, and the indicator goes off.
        .config_write(PORT, SLOT, 0x0001_0300)
        // It is put in again: presence and link have changed.
        .config_until(PORT, SLOT, 0x0148_0300)
        .config_read(BEHIND, 0)
        .expect(0x1044_1af4, 3)
        .exit(0);
    let (config, _dir) = with_port(&code, true, Device::Rng);
    let handle = Vm::new(config).unwrap().start().unwrap();
    assert_eq!(handle.port(0).unwrap().state(), State::Plugged);
    let (_served, stream) = Served::listening();
    assert!(matches!(handle.plug(0, Some(stream)), Err(PlugError::Slot(SlotError::Occupied))));
    assert_eq!(handle.unplug(0, false).unwrap(), Leaving::Asked);
    let until = Instant::now() + LONG;
    while handle.port(0).unwrap().state() != State::Empty && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(handle.port(0).unwrap().changes(), 1);
    handle.plug(0, None).unwrap();
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(0)));
}
