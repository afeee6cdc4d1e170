//! The VMM's own devices: small ones at ports, and [`virtio`].

pub mod exit;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod virtio;
