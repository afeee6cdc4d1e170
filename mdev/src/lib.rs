//! The mediated device: what turns one GPU into slices that keep their frame contracts.

pub mod backend;
pub mod device;
pub mod memory;
pub mod renderer;
