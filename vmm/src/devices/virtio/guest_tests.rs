//! Devices of our own in a guest on KVM: kicks by ioeventfd, interrupts by irqfd.

use crate::config::{BlkDevice, Device};
use crate::devices::virtio::blk::Source;
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{ExitReason, Vm, VmError};
use beamline_abi::pci::{command, config, msix};
use beamline_abi::virtio_pci::{common, status};
use std::time::Duration;

/// Where the VMM puts the only BAR.
const BAR: u32 = 0xc000_0000;
const NOTIFY: u32 = BAR + 0x2000;
const TABLE: u32 = BAR + 0x3000;
/// Guest memory.
const DESC: u32 = 0x2_0000;
const AVAIL: u32 = 0x2_1000;
const USED: u32 = 0x2_2000;
const BUFFER: u32 = 0x2_3000;
const COUNT: u32 = 0x7000;
const VECTOR: u8 = 0x41;

impl Asm {
    /// `mov byte [at], value`
    fn store8(self, at: u32, value: u8) -> Self {
        self.raw(&[0xc6, 0x05]).raw(&at.to_le_bytes()).raw(&[value])
    }

    /// `mov word [at], value`
    fn store16(self, at: u32, value: u16) -> Self {
        self.raw(&[0x66, 0xc7, 0x05]).raw(&at.to_le_bytes()).raw(&value.to_le_bytes())
    }
}

#[test]
fn a_guest_drives_a_device_by_kicks_and_interrupts_alone() {
    if !kvm_or_skip("a_guest_drives_a_device_by_kicks_and_interrupts_alone") {
        return;
    }
    let common = |register: u32| BAR + register;
    let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    // The MSI-X capability is the last: behind common, notify, ISR and window.
    let msix_at = 0x40 + 16 + 20 + 16 + 20;
    let code = Asm::default()
        .interrupts(&[VECTOR], COUNT)
        .config_read(1, 0)
        .expect(0x1044_1af4, 2)
        .config_write(1, config::COMMAND.into(), (command::MEMORY | command::BUS_MASTER).into())
        .config_write(1, msix_at, u32::from(msix::CONTROL_ENABLE) << 16)
        .store(TABLE + 16, 0xfee0_0000)
        .store(TABLE + 20, 0)
        .store(TABLE + 24, VECTOR.into())
        .store(TABLE + 28, 0)
        .store8(common(common::DEVICE_STATUS), status::ACKNOWLEDGE | status::DRIVER)
        .store(common(common::DRIVER_FEATURE_SELECT), 1)
        .store(common(common::DRIVER_FEATURE), 1)
        .store8(common(common::DEVICE_STATUS), ok)
        .store16(common(common::QUEUE_SELECT), 0)
        .store16(common(common::QUEUE_SIZE), 4)
        .store16(common(common::QUEUE_MSIX_VECTOR), 1)
        .store(common(common::QUEUE_DESC), DESC)
        .store(common(common::QUEUE_DRIVER), AVAIL)
        .store(common(common::QUEUE_DEVICE), USED)
        .store16(common(common::QUEUE_ENABLE), 1)
        .store8(common(common::DEVICE_STATUS), ok | status::DRIVER_OK)
        .store(DESC, BUFFER)
        .store(DESC + 8, 64)
        .store(DESC + 12, 2)
        .store(AVAIL, 1 << 16)
        .store16(NOTIFY, 0)
        .halt_until(COUNT, 1)
        .load(USED)
        .expect(1 << 16, 3)
        .load(USED + 8)
        .expect(64, 4)
        .exit(0);
    let (mut config, _dir) = guest(&code);
    config.devices = vec![Device::Rng];
    let handle = Vm::new(config).unwrap().start().unwrap();
    let reason = handle.wait_timeout(Duration::from_mins(1)).expect("the guest ends");
    assert_eq!(reason, ExitReason::GuestExit(0));
}

#[test]
fn a_disk_that_cannot_be_used_is_an_error_before_the_guest_runs() {
    if !kvm_or_skip("a_disk_that_cannot_be_used_is_an_error_before_the_guest_runs") {
        return;
    }
    let (mut config, dir) = guest(&Asm::default().exit(0));
    let path = dir.path().join("disk.img");
    let source = Source { path: path.clone(), readonly: false, format: None };
    config.devices = vec![Device::Blk(BlkDevice { source, serial: String::new() })];
    let build = || Vm::with_console(config.clone(), Box::new(Recorder::default()));
    let e = build().err().expect("there is no disk");
    assert!(matches!(&e, VmError::Device(_)) && e.to_string().contains("disk.img"), "{e}");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let running = build().unwrap();
    let e = build().err().expect("two guests").to_string();
    assert!(e.contains("in use"), "{e}");
    drop(running);
    let reason = build().unwrap().start().unwrap().wait();
    assert_eq!(reason, ExitReason::GuestExit(0));
}
