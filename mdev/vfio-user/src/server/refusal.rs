//! Why a command is refused, and the errno that says so to the client.

use rustix::io::Errno;

use crate::DeviceError;
use crate::check::CheckError;
use crate::wire::command;

use super::maps::Cut;

/// Why a command is refused; the connection goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The payload is shorter than the command's fields, or its counts do not fit it.
    #[error("the payload of {got} bytes does not fit: {wanted} are needed")]
    Payload { got: usize, wanted: u64 },
    /// `argsz` leaves no room for the reply.
    #[error("argsz {got} leaves no room for the fixed fields of {wanted} bytes")]
    ArgSize { got: u32, wanted: u32 },
    /// Too many, too few or unexpected descriptors.
    #[error("{got} fds came{more}, {wanted} are needed", more = if *surplus { " and more" } else { "" })]
    Fds { got: usize, surplus: bool, wanted: u32 },
    /// An index, a range or flags are out of bounds.
    #[error("{what} {value:#x} is out of range, the bound is {bound:#x}")]
    Range { what: &'static str, value: u64, bound: u64 },
    /// Flags that contradict each other or are unknown.
    #[error("flags {0:#x} are not a valid combination")]
    Flags(u32),
    /// The region may not be read or written.
    #[error("region {region} may not be {verb}")]
    Access { region: u32, verb: &'static str },
    /// A second `VERSION`.
    #[error("the version is negotiated already")]
    VersionAgain,
    /// A part of a mapping cannot be unmapped.
    #[error("the range cuts the mapping from {:#x} to {:#x}: unmap the whole of it", .0.start, .0.last)]
    Cut(Cut),
    /// No room for one more mapping.
    #[error("there are {0} mappings already, that is the most")]
    TooManyMaps(u32),
    /// A descriptor or a range did not pass.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The command is not served.
    #[error("{name} ({0}) is not served", name = command::name(*.0))]
    Command(u16),
    /// The action is not served.
    #[error("{0} is not served")]
    Unsupported(&'static str),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Refusal {
    /// What the reply carries.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Command(_) | Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::TooManyMaps(_) => Errno::NOSPC,
            Self::Device(e) => match e {
                DeviceError::Invalid(_) => Errno::INVAL,
                DeviceError::Unsupported(_) => Errno::OPNOTSUPP,
                DeviceError::Exists(_) => Errno::EXIST,
                DeviceError::NotFound(_) => Errno::NOENT,
                DeviceError::Limit(_) => Errno::NOSPC,
            },
            _ => Errno::INVAL,
        }
    }
}
