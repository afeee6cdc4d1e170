//! The VMM's own devices: small ones at ports, and [`virtio`].

pub mod exit;
pub mod flash;
pub mod fw_cfg;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod tpm;
pub mod virtio;
