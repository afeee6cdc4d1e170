//! The guest side of Beamline: what a guest needs to find its slice, render frames and be paced.
//!
//! * [`transport`]: the few things that a platform must provide; everything else is generic over it.
//! * [`pci`]: discovery, base addresses, capabilities, MSI-X.
//! * [`pacer`]: stage 9: vblanks, the timing page, frame markers.
//! * [`gpu`]: stage 1: virtio-gpu and the frame context's submissions.
//! * [`scene`]: example workloads; they are the guests of every demonstration and end-to-end test.
//! * [`guest`]: the loop around a scene, the same in the freestanding image and in a host process.
//!
//! The crate does not allocate. All buffers that a device sees come from one [`transport::Arena`], all of
//! them when a function is attached, so nothing can run out while frames are drawn. The host can stop a
//! guest at any time, so it is trusted with progress; its values are still checked before they are used.
#![no_std]
#![forbid(unsafe_code)]

pub mod gpu;
pub mod guest;
pub mod pacer;
pub mod pci;
pub mod scene;
pub mod transport;
