//! The mediated device: what turns one GPU into slices that keep their frame contracts.

pub mod backend;
pub mod config;
pub mod device;
pub mod host;
pub mod mediate;
pub mod memory;
pub mod renderer;
pub mod vblank;
