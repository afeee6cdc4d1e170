//! What of the guest's memory a function sees: all of its RAM, at the same addresses, and nothing else.

use super::link::{Link, LinkError};
use crate::memory::GuestRam;
use beamline_vfio_user::DmaFlags;

/// Maps the guest's RAM for the function. The memfd is sealed: the server can map it without fearing
/// that it shrinks.
pub fn map_ram(link: &mut dyn Link, ram: &GuestRam) -> Result<(), LinkError> {
    let flags = DmaFlags { read: true, write: true };
    ram.parts().try_for_each(|p| link.dma_map(p.at.0, p.size, flags, ram.fd(), p.offset))
}
