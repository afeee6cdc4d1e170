//! PCI configuration space and MSI-X, as far as both sides use them (PCI 3.0, PCI Express base 5.0).

/// Offsets in the configuration header, type 0.
pub mod config {
    /// Vendor ID, 16 bits.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command, 16 bits, see [`super::command`].
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits, see [`super::status`].
    pub const STATUS: u16 = 0x06;
    /// Revision, 8 bits.
    pub const REVISION: u16 = 0x08;
    /// Class code, 24 bits.
    pub const CLASS: u16 = 0x09;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First base address register; six of 32 bits.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// Bytes of conventional configuration space.
    pub const SIZE: usize = 256;
    /// Bytes of extended configuration space.
    pub const EXTENDED_SIZE: usize = 4096;
}

/// Bits of the command register.
pub mod command {
    /// I/O space decoded.
    pub const IO: u16 = 1 << 0;
    /// Memory space decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may do DMA and send MSIs.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// INTx disabled.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
pub mod status {
    /// There is a capability list.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// Capability IDs.
pub mod capability {
    /// Vendor specific: virtio's structures.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// MSI-X capability and table (PCI 3.0, section 6.8.2).
pub mod msix {
    /// Offset of message control in the capability, 16 bits.
    pub const CONTROL: u16 = 2;
    /// Offset of table offset and BAR, 32 bits.
    pub const TABLE: u16 = 4;
    /// Offset of pending-bit offset and BAR, 32 bits.
    pub const PBA: u16 = 8;
    /// Bytes of the capability.
    pub const CAP_SIZE: u16 = 12;
    /// Bit of message control: MSI-X enabled.
    pub const CONTROL_ENABLE: u16 = 1 << 15;
    /// Bit of message control: all vectors masked.
    pub const CONTROL_MASK_ALL: u16 = 1 << 14;
    /// Bytes of a table entry: address low, address high, data, vector control.
    pub const ENTRY_SIZE: u32 = 16;
    /// Bit of vector control: masked.
    pub const ENTRY_MASKED: u32 = 1;
}
