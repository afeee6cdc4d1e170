//! The card's configuration space (virtio 1.3, section 5.1.4), feature bits (5.1.3) and address.

use std::fmt;
use std::str::FromStr;
use virtio_bindings::virtio_net as spec;

/// Feature bits.
pub(super) mod feature {
    use super::spec;

    pub(in super::super) const CSUM: u64 = 1 << spec::VIRTIO_NET_F_CSUM;
    pub(in super::super) const GUEST_CSUM: u64 = 1 << spec::VIRTIO_NET_F_GUEST_CSUM;
    pub(in super::super) const GUEST_TSO4: u64 = 1 << spec::VIRTIO_NET_F_GUEST_TSO4;
    pub(in super::super) const GUEST_TSO6: u64 = 1 << spec::VIRTIO_NET_F_GUEST_TSO6;
    pub(in super::super) const HOST_TSO4: u64 = 1 << spec::VIRTIO_NET_F_HOST_TSO4;
    pub(in super::super) const HOST_TSO6: u64 = 1 << spec::VIRTIO_NET_F_HOST_TSO6;
    pub(in super::super) const MERGE: u64 = 1 << spec::VIRTIO_NET_F_MRG_RXBUF;
    /// What only configuration space is needed for.
    pub(in super::super) const REGISTERS: u64 =
        1 << spec::VIRTIO_NET_F_MAC | 1 << spec::VIRTIO_NET_F_STATUS;
    /// All that are offered.
    pub(in super::super) const OFFERED: u64 =
        REGISTERS | CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MERGE;

    /// Segments need checksums, in each direction (5.1.3.1).
    pub(in super::super) fn are_consistent(features: u64) -> bool {
        let needs = |any: u64, other: u64| features & any == 0 || features & other != 0;
        needs(HOST_TSO4 | HOST_TSO6, CSUM) && needs(GUEST_TSO4 | GUEST_TSO6, GUEST_CSUM)
    }
}

/// Bytes: address and status.
pub(super) const SIZE: usize = 8;

/// `up`: frames can go both ways.
pub(super) fn registers(mac: Mac, up: bool) -> [u8; SIZE] {
    let mut r = [0; SIZE];
    r[..6].copy_from_slice(&mac.0);
    let status = if up { spec::VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
    r[6..].copy_from_slice(&status.to_le_bytes());
    r
}

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// A locally administered address that depends on the guest's name and the card's number alone, so
    /// that it is the same at each start.
    pub fn derived(guest: &str, index: usize) -> Self {
        // FNV-1a, 64 bits: it has to spread, not to be secret.
        let bytes = guest.bytes().chain([0]).chain((index as u64).to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut octets = [0x02; 6];
        octets[1..].copy_from_slice(&(hash ^ hash >> 24).to_le_bytes()[..5]);
        Self(octets)
    }
}

/// A text that is no address of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a card's address: use six bytes such as \"02:00:00:00:00:01\", not a multicast one"
)]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(MacError)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacError)?;
        }
        let multicast = octets[0] & 1 != 0;
        if parts.next().is_some() || multicast || octets == [0; 6] {
            return Err(MacError);
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, octet) in self.0.iter().enumerate() {
            let colon = if n > 0 { ":" } else { "" };
            write!(f, "{colon}{octet:02x}")?;
        }
        Ok(())
    }
}
