//! virtio over PCI: virtio 1.3, section 4.1, modern interface only.

/// PCI vendor ID of virtio devices.
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device ID of a modern virtio device: this plus the device type.
pub const DEVICE_ID_BASE: u16 = 0x1040;
/// No vector: interrupts of this source are off.
pub const NO_VECTOR: u16 = 0xffff;

/// `cfg_type` of a virtio vendor capability (4.1.4).
pub mod cap {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device-specific configuration.
    pub const DEVICE: u8 = 4;
    /// Offset of `cfg_type` in the capability.
    pub const CFG_TYPE: u16 = 3;
    /// Offset of `bar`.
    pub const BAR: u16 = 4;
    /// Offset of `offset`, 32 bits.
    pub const OFFSET: u16 = 8;
    /// Offset of `length`, 32 bits.
    pub const LENGTH: u16 = 12;
    /// Offset of `notify_off_multiplier`, 32 bits, in the notify capability.
    pub const NOTIFY_MULTIPLIER: u16 = 16;
}

/// Offsets in the common configuration structure (4.1.4.3).
pub mod common {
    /// RW, 32 bits.
    pub const DEVICE_FEATURE_SELECT: u32 = 0x00;
    /// RO, 32 bits.
    pub const DEVICE_FEATURE: u32 = 0x04;
    /// RW, 32 bits.
    pub const DRIVER_FEATURE_SELECT: u32 = 0x08;
    /// RW, 32 bits.
    pub const DRIVER_FEATURE: u32 = 0x0c;
    /// RW, 16 bits.
    pub const CONFIG_MSIX_VECTOR: u32 = 0x10;
    /// RO, 16 bits.
    pub const NUM_QUEUES: u32 = 0x12;
    /// RW, 8 bits.
    pub const DEVICE_STATUS: u32 = 0x14;
    /// RO, 8 bits.
    pub const CONFIG_GENERATION: u32 = 0x15;
    /// RW, 16 bits.
    pub const QUEUE_SELECT: u32 = 0x16;
    /// RW, 16 bits.
    pub const QUEUE_SIZE: u32 = 0x18;
    /// RW, 16 bits.
    pub const QUEUE_MSIX_VECTOR: u32 = 0x1a;
    /// RW, 16 bits.
    pub const QUEUE_ENABLE: u32 = 0x1c;
    /// RO, 16 bits.
    pub const QUEUE_NOTIFY_OFF: u32 = 0x1e;
    /// RW, 64 bits.
    pub const QUEUE_DESC: u32 = 0x20;
    /// RW, 64 bits.
    pub const QUEUE_DRIVER: u32 = 0x28;
    /// RW, 64 bits.
    pub const QUEUE_DEVICE: u32 = 0x30;
    /// Bytes of the structure.
    pub const SIZE: u32 = 0x38;
}

/// Bits of the device status (2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u8 = 8;
    /// The device needs a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// Feature bits of every device (6).
pub mod feature {
    /// The device is a modern one.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Split virtqueues (2.7).
pub mod ring {
    /// Bytes of a descriptor: address, length, flags, next.
    pub const DESC_SIZE: u64 = 16;
    /// Flag: `next` is valid.
    pub const DESC_NEXT: u16 = 1;
    /// Flag: the device writes.
    pub const DESC_WRITE: u16 = 2;
    /// Flag: the buffer is a table of descriptors.
    pub const DESC_INDIRECT: u16 = 4;
    /// Flag in the driver area: the driver wants no interrupt.
    pub const AVAIL_NO_INTERRUPT: u16 = 1;
}
