//! The device models: PCI functions as a guest sees them.
//!
//! A model is state behind [`beamline_vfio_user::Device`]: it never knows whether a socket, KVM or a test
//! drives it. Calls of that trait come from one thread; what other threads of the slice need (guest
//! memory, queues, interrupts, the timing page) is handed out once, as a handle, when the model is made.
//!
//! * [`pci`]: configuration space, BARs, MSI-X.
//! * [`pacer`]: vblank interrupts, the timing page, frame markers.
//! * [`virtio`]: virtio over PCI, its queues, and the vGPU.
//! * [`signals`]: interrupts from a thread that must not wait for a peer.

pub mod eventfd;
pub mod gate;
pub mod pacer;
pub mod pci;
pub mod signals;
pub mod virtio;
