//! Features, configuration space, requests and answers (virtio 1.3, sections 5.13.3 to 5.13.6).

use super::Mapping;
use crate::Gpa;

/// Feature bits (section 5.13.3).
pub(super) mod feature {
    /// The range of addresses that can be mapped is told.
    pub(in super::super) const INPUT_RANGE: u64 = 1 << 0;
    /// The range of domains is told.
    pub(in super::super) const DOMAIN_RANGE: u64 = 1 << 1;
    /// Mappings by request.
    pub(in super::super) const MAP_UNMAP: u64 = 1 << 2;
    /// What cannot be mapped is told by request.
    pub(in super::super) const PROBE: u64 = 1 << 4;
    /// `bypass` can be written, and domains can be made that translate nothing.
    pub(in super::super) const BYPASS_CONFIG: u64 = 1 << 6;

    pub(in super::super) const ALL: u64 =
        INPUT_RANGE | DOMAIN_RANGE | MAP_UNMAP | PROBE | BYPASS_CONFIG;
}

/// What mappings are made of: bytes.
pub(super) const PAGE: u64 = 4096;
/// Last address that can be mapped: 48 bits.
pub(super) const LAST_ADDRESS: u64 = (1 << 48) - 1;
/// Last domain.
pub(super) const LAST_DOMAIN: u32 = 0xffff;
/// Where devices write their interrupts on x86. Nothing can be mapped there.
pub(super) const DOORBELLS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// Bytes of the configuration space, and where `bypass` is in it.
pub(super) const CONFIG_SIZE: usize = 40;
pub(super) const BYPASS: u64 = 36;

/// The configuration space (section 5.13.4).
pub(super) fn config(bypass: bool) -> [u8; CONFIG_SIZE] {
    let mut bytes = [0; CONFIG_SIZE];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    // One page size: a mapping is any number of pages.
    put(0, &PAGE.to_le_bytes());
    // The input range starts at 0, and so does that of domains.
    put(16, &LAST_ADDRESS.to_le_bytes());
    put(28, &LAST_DOMAIN.to_le_bytes());
    put(32, &(PROBE_SIZE as u32).to_le_bytes());
    put(BYPASS as usize, &[u8::from(bypass)]);
    bytes
}

/// How a request ended (section 5.13.6, `virtio_iommu_req_tail`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    /// The request is not known.
    Unsupported = 2,
    /// The device is at fault.
    Device = 3,
    /// A field is wrong.
    Invalid = 4,
    /// An address or a domain is out of range, or a range cuts a mapping.
    Range = 5,
    /// There is no such domain or endpoint.
    Missing = 6,
    /// There is no room for more.
    Full = 8,
}

/// Bytes of the answer's end, which has the status.
pub(super) const TAIL: usize = 4;
/// Bytes of the longest request that is known.
pub(super) const LONGEST: usize = 72;

/// A request, checked as far as can be done without looking at domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Attach { domain: u32, endpoint: u32, bypass: bool },
    Detach { domain: u32, endpoint: u32 },
    Map { domain: u32, mapping: Mapping },
    Unmap { domain: u32, first: u64, last: u64 },
    Probe { endpoint: u32 },
}

impl Request {
    /// Request types.
    pub(super) const ATTACH: u8 = 1;
    pub(super) const DETACH: u8 = 2;
    pub(super) const MAP: u8 = 3;
    pub(super) const UNMAP: u8 = 4;
    pub(super) const PROBE: u8 = 5;

    /// Reads a request; `bypass` says whether domains that translate nothing were agreed on.
    pub(super) fn parse(bytes: &[u8], bypass: bool) -> Result<Self, Status> {
        let [kind, 0, 0, 0, ..] = *bytes else { return Err(Status::Invalid) };
        let mut rest = Fields(&bytes[4..]);
        match kind {
            Self::ATTACH => {
                let (domain, endpoint) = (rest.domain()?, rest.word()?);
                let flags = rest.word()?;
                rest.zeros(4)?;
                let known = if bypass { ATTACH_BYPASS } else { 0 };
                if flags & !known != 0 {
                    return Err(Status::Invalid);
                }
                Ok(Self::Attach { domain, endpoint, bypass: flags & ATTACH_BYPASS != 0 })
            }
            Self::DETACH => {
                let request = Self::Detach { domain: rest.domain()?, endpoint: rest.word()? };
                rest.zeros(8)?;
                Ok(request)
            }
            Self::MAP => {
                let domain = rest.domain()?;
                let (first, last, to) = (rest.long()?, rest.long()?, rest.long()?);
                let mapping = mapping(first, last, to, rest.word()?)?;
                Ok(Self::Map { domain, mapping })
            }
            Self::UNMAP => {
                let domain = rest.domain()?;
                let (first, last) = (rest.long()?, rest.long()?);
                rest.zeros(4)?;
                if last < first {
                    return Err(Status::Invalid);
                }
                Ok(Self::Unmap { domain, first, last })
            }
            Self::PROBE => {
                let endpoint = rest.word()?;
                rest.zeros(64)?;
                Ok(Self::Probe { endpoint })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

/// `VIRTIO_IOMMU_ATTACH_F_BYPASS`.
const ATTACH_BYPASS: u32 = 1;
/// `VIRTIO_IOMMU_MAP_F_READ` and `_WRITE`. `_MMIO` takes a feature that is not offered.
const MAP_READ: u32 = 1;
const MAP_WRITE: u32 = 2;

fn mapping(first: u64, last: u64, to: u64, flags: u32) -> Result<Mapping, Status> {
    if flags & !(MAP_READ | MAP_WRITE) != 0 || flags == 0 {
        return Err(Status::Invalid);
    }
    let whole = first.is_multiple_of(PAGE) && last % PAGE == PAGE - 1 && to.is_multiple_of(PAGE);
    if !whole || last < first || last > LAST_ADDRESS || to.checked_add(last - first).is_none() {
        return Err(Status::Range);
    }
    if first <= *DOORBELLS.end() && last >= *DOORBELLS.start() {
        return Err(Status::Invalid);
    }
    let (read, write) = (flags & MAP_READ != 0, flags & MAP_WRITE != 0);
    Ok(Mapping { at: first, last, to: Gpa(to), read, write })
}

/// The rest of a request.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Status> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Status::Invalid)?;
        self.0 = rest;
        Ok(*field)
    }

    fn word(&mut self) -> Result<u32, Status> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Result<u64, Status> {
        self.take().map(u64::from_le_bytes)
    }

    fn domain(&mut self) -> Result<u32, Status> {
        self.word().and_then(
            |domain| {
                if domain <= LAST_DOMAIN { Ok(domain) } else { Err(Status::Range) }
            },
        )
    }

    /// Reserved bytes.
    fn zeros(&mut self, count: usize) -> Result<(), Status> {
        let (field, rest) = self.0.split_at_checked(count).ok_or(Status::Invalid)?;
        self.0 = rest;
        if field.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Status::Invalid) }
    }
}

/// Bytes of a probe's properties: one reserved range.
pub(super) const PROBE_SIZE: usize = 24;

/// What a probe says of every endpoint (section 5.13.6.7): where its interrupts go.
pub(super) fn properties() -> [u8; PROBE_SIZE] {
    const RESERVED_MEMORY: u16 = 1;
    const INTERRUPTS: u8 = 1;
    let mut bytes = [0; PROBE_SIZE];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &RESERVED_MEMORY.to_le_bytes());
    // Without these first 4 bytes.
    put(2, &(PROBE_SIZE as u16 - 4).to_le_bytes());
    put(4, &[INTERRUPTS]);
    put(8, &DOORBELLS.start().to_le_bytes());
    put(16, &DOORBELLS.end().to_le_bytes());
    bytes
}
