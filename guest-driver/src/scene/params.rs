//! What a scene is asked to do, from a kernel command line: `scene=vr cost=4 cost2=2 width=256`.

use super::MAX_DEPTH;
use crate::gpu::SLOTS;
use beamline_abi::frame::MAX_IMAGE_SIDE;

/// Most iterations that a cost may ask for: an endless job must be asked for knowingly.
const MAX_COST: u32 = 1 << 24;

/// Which scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two eyes, then a late-latched reprojection.
    Vr,
    /// Geometry, lighting and post-processing.
    Game,
    /// Background work, as much as fits.
    Flood,
}

impl Kind {
    /// Jobs of one frame.
    pub const fn jobs(self) -> u16 {
        match self {
            Self::Vr => 2,
            Self::Game => 3,
            Self::Flood => 1,
        }
    }

    /// Whether a frame is submitted at every vblank, and not as soon as there is room.
    pub const fn is_paced(self) -> bool {
        !matches!(self, Self::Flood)
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vr => "vr",
            Self::Game => "game",
            Self::Flood => "flood",
        }
    }

    fn defaults(self) -> Params {
        let (cost, depth) = match self {
            Self::Vr => ([4, 2, 0], 2),
            Self::Game => ([8, 8, 8], 2),
            Self::Flood => ([32, 0, 0], 4),
        };
        Params { kind: self, cost, width: 256, height: 144, frames: 0, depth }
    }
}

/// A scene and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Which scene.
    pub kind: Kind,
    /// Iterations per pixel of each kind of job: GPU time grows linearly with each.
    pub cost: [u32; 3],
    /// Pixels; of one eye in VR.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How many frames to draw; 0 draws until the guest is stopped.
    pub frames: u64,
    /// Most frames in flight.
    pub depth: usize,
}

/// What is wrong with a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError<'a> {
    /// No scene, or an unknown one.
    #[error("`scene=` is missing or unknown: it is vr, game or flood")]
    Scene,
    /// A word that means nothing.
    #[error(
        "`{0}` means nothing: a word is scene, cost, cost2, cost3, width, height, frames or depth, `=`, and a value"
    )]
    Unknown(&'a str),
    /// A value that is not a number in range.
    #[error("`{word}` is out of range: the number is {min} to {max}")]
    Range {
        /// The word.
        word: &'a str,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
}

impl Params {
    /// Reads a command line. What is not named has the scene's default.
    pub fn parse(line: &str) -> Result<Self, ParamsError<'_>> {
        let words = || line.split_ascii_whitespace();
        let kind = words().rev().find_map(|word| word.strip_prefix("scene="));
        let mut params = match kind {
            Some("vr") => Kind::Vr,
            Some("game") => Kind::Game,
            Some("flood") => Kind::Flood,
            _ => return Err(ParamsError::Scene),
        }
        .defaults();
        for word in words() {
            params.set(word)?;
        }
        Ok(params)
    }

    fn set<'a>(&mut self, word: &'a str) -> Result<(), ParamsError<'a>> {
        let (key, value) = word.split_once('=').ok_or(ParamsError::Unknown(word))?;
        let number = |min: u64, max: u64| {
            let parsed = value.parse().ok().filter(|n| (min..=max).contains(n));
            parsed.ok_or(ParamsError::Range { word, min, max })
        };
        // Two eyes lie side by side in one image.
        let side = u64::from(MAX_IMAGE_SIDE / 2);
        let depth = MAX_DEPTH.min(SLOTS / usize::from(self.kind.jobs())) as u64;
        match key {
            "scene" => {}
            "cost" => self.cost[0] = number(0, MAX_COST.into())? as u32,
            "cost2" => self.cost[1] = number(0, MAX_COST.into())? as u32,
            "cost3" => self.cost[2] = number(0, MAX_COST.into())? as u32,
            "width" => self.width = number(8, side)? as u32,
            "height" => self.height = number(8, side)? as u32,
            "frames" => self.frames = number(0, u64::MAX)?,
            "depth" => self.depth = number(1, depth)? as usize,
            _ => return Err(ParamsError::Unknown(word)),
        }
        Ok(())
    }
}
