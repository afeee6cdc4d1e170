//! The VMM's own small devices.

pub mod exit;
pub mod serial;
