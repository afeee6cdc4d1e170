//! virtio over PCI: the transport, its queues, and the vGPU that rides on them.

pub mod gpu;
pub mod queue;
#[cfg(test)]
mod queue_tests;
pub mod transport;
#[cfg(test)]
mod transport_tests;
