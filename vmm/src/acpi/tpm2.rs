//! TPM2 (TCG ACPI Specification 1.3, section 8): where the TPM's control area is, and how it is started.

use super::empty;
use crate::devices::tpm;
use acpi_tables::sdt::Sdt;

/// Platform class: a client. A reserved word follows.
const CLIENT: u32 = 0;
/// Start method: the command response buffer (table 9).
const CRB: u32 = 7;
/// Its parameters: none.
const PARAMETERS: [u8; 12] = [0; 12];

/// The table. It names no log area: firmware that measures keeps its log itself and gives it to the loader by
/// `EFI_TCG2_PROTOCOL`, and without firmware there is no log. The crate's own is of revision 1, without the parameters
/// that revision 4 has.
pub(super) fn table() -> Sdt {
    let mut table = empty(*b"TPM2", 4);
    let body = [
        &CLIENT.to_le_bytes()[..],
        &tpm::CONTROL_AREA.to_le_bytes(),
        &CRB.to_le_bytes(),
        &PARAMETERS,
    ];
    table.append_slice(&body.concat());
    table
}
