//! Why the host refused, dropped or ended something, as a number that both sides know.

/// A reason code, as read from [`crate::pacer::reg::REASON`], [`crate::pacer::reg::ANSWER_REASON`] and from the host's reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Nothing is wrong.
    None = 0,
    /// A command stream is shorter than it says, or a field is out of range.
    Malformed = 1,
    /// The command or its version is not known.
    Unsupported = 2,
    /// An ID is not in use, or in use already, or of another kind.
    BadId = 3,
    /// An offset or a length leaves the resource.
    OutOfBounds = 4,
    /// A quota of the slice is used up: memory, resources, pipelines or queued jobs.
    Quota = 5,
    /// The shader does not compile.
    Shader = 6,
    /// A guest address is not mapped for this device.
    Dma = 7,
    /// The job ran longer than the contract's `max_job` and its renderer was ended.
    JobTooLong = 8,
    /// The renderer is gone: every context of the slice is lost.
    DeviceLost = 9,
    /// The slice is being drained or reset; the work was dropped.
    Draining = 10,
    /// The frame's number is not above that of the frame before.
    StaleFrame = 11,
    /// The guest of this slice may not choose its contract.
    Fixed = 12,
    /// Whoever runs the host allows this slice no more.
    Ceiling = 13,
    /// What others are promised leaves no more.
    NoRoom = 14,
    /// Other changes were under way for too long: ask again.
    Busy = 15,
}

impl Reason {
    /// The reason with this number, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::None,
            1 => Self::Malformed,
            2 => Self::Unsupported,
            3 => Self::BadId,
            4 => Self::OutOfBounds,
            5 => Self::Quota,
            6 => Self::Shader,
            7 => Self::Dma,
            8 => Self::JobTooLong,
            9 => Self::DeviceLost,
            10 => Self::Draining,
            11 => Self::StaleFrame,
            12 => Self::Fixed,
            13 => Self::Ceiling,
            14 => Self::NoRoom,
            15 => Self::Busy,
            _ => return None,
        })
    }

    /// A short name for logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::BadId => "bad-id",
            Self::OutOfBounds => "out-of-bounds",
            Self::Quota => "quota",
            Self::Shader => "shader",
            Self::Dma => "dma",
            Self::JobTooLong => "job-too-long",
            Self::DeviceLost => "device-lost",
            Self::Draining => "draining",
            Self::StaleFrame => "stale-frame",
            Self::Fixed => "fixed",
            Self::Ceiling => "ceiling",
            Self::NoRoom => "no-room",
            Self::Busy => "busy",
        }
    }
}
