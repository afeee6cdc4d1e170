//! Registers of the command response buffer interface (TCG PC Client Platform TPM Profile 1.05, section 6.5.3),
//! by their offset in the page of locality 0. All have 32 bits.

/// Where the page is: locality 0 of every PC's TPM.
pub const BASE: u64 = 0xfed4_0000;
/// Its bytes.
pub const SIZE: u64 = 0x1000;
/// Where the control area starts, which the ACPI table names.
pub const CONTROL_AREA: u64 = BASE + CTRL_REQ;
/// Where commands are written and answers are read: up to the end of the page.
pub(super) const BUFFER: u64 = 0x80;
/// Its bytes.
pub(super) const BUFFER_SIZE: usize = (SIZE - BUFFER) as usize;

/// `TPM_LOC_STATE`, read-only.
pub(super) const LOC_STATE: u64 = 0x00;
/// `TPM_LOC_CTRL`, write-only.
pub(super) const LOC_CTRL: u64 = 0x08;
/// `TPM_LOC_STS`, read-only.
pub(super) const LOC_STS: u64 = 0x0c;
/// `TPM_CRB_INTF_ID`, both halves read-only.
pub(super) const INTF_ID: u64 = 0x30;
pub(super) const INTF_ID_HIGH: u64 = 0x34;
/// `TPM_CRB_CTRL_REQ`: a bit is read as set until what it asks for is done.
pub(super) const CTRL_REQ: u64 = 0x40;
/// `TPM_CRB_CTRL_STS`, read-only.
pub(super) const CTRL_STS: u64 = 0x44;
/// `TPM_CRB_CTRL_CANCEL`.
pub(super) const CTRL_CANCEL: u64 = 0x48;
/// `TPM_CRB_CTRL_START`: reads as 1 while a command is carried out.
pub(super) const CTRL_START: u64 = 0x4c;
/// `TPM_CRB_CTRL_CMD_SIZE`, read-only: bytes.
pub(super) const CMD_SIZE: u64 = 0x58;
/// `TPM_CRB_CTRL_CMD_LADDR`, read-only. Its upper half is 0.
pub(super) const CMD_ADDR: u64 = 0x5c;
/// `TPM_CRB_CTRL_RSP_SIZE`, read-only: bytes.
pub(super) const RSP_SIZE: u64 = 0x64;
/// `TPM_CRB_CTRL_RSP_ADDR`, read-only. Its upper half is 0.
pub(super) const RSP_ADDR: u64 = 0x68;

/// Bits of [`LOC_STATE`]. The first is clear where a dynamic launch has happened.
pub(super) const NOT_ESTABLISHED: u32 = 1 << 0;
pub(super) const LOC_ASSIGNED: u32 = 1 << 1;
pub(super) const REG_VALID: u32 = 1 << 7;
/// Bits of [`LOC_CTRL`]. Locality 0 can neither seize another's place nor reset the bit of a dynamic launch.
pub(super) const REQUEST_ACCESS: u32 = 1 << 0;
pub(super) const RELINQUISH: u32 = 1 << 1;
/// Bit of [`LOC_STS`].
pub(super) const GRANTED: u32 = 1 << 0;
/// Bits of [`CTRL_REQ`].
pub(super) const CMD_READY: u32 = 1 << 0;
pub(super) const GO_IDLE: u32 = 1 << 1;
/// Bits of [`CTRL_STS`]: the TPM has failed for good; it is idle.
pub(super) const TPM_STS: u32 = 1 << 0;
pub(super) const TPM_IDLE: u32 = 1 << 1;
/// Bit of [`CTRL_CANCEL`].
pub(super) const CANCEL: u32 = 1 << 0;
/// Bit of [`CTRL_START`].
pub(super) const START: u32 = 1 << 0;

/// [`INTF_ID`]: a CRB of version 1, chosen for good (type 1, version 1, selector 1, lock); locality 0 only; drivers go
/// idle between commands; transfers of up to 64 bytes; no FIFO; a revision of 0.
pub(super) const INTERFACE: u32 = 1 | 1 << 4 | 0b11 << 11 | 1 << 14 | 1 << 17 | 1 << 19;
