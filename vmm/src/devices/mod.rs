//! The VMM's own small devices.

pub mod exit;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
