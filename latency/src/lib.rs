//! What happened to every frame: stamps, clocks, distributions, causes and verdicts.
//!
//! | part | files |
//! |---|---|
//! | recording, on the frame's path | [`stamp`], [`recorder`], [`clock`] |
//! | the log file | [`log`], [`meta`] |
//! | joining stamps to frames | [`frames`], [`timeline`] |
//! | judging | [`analysis`], [`slots`], [`cause`], [`dist`], [`verdict`] |
//! | showing | [`report`], [`table`], [`stages`], [`svg`], [`trace`], [`csv`], [`noise`] |
//!
//! [`Analysis`] goes from a log to a report. Durations are integer nanoseconds; what was not
//! measured is `None`, never 0. Every result carries one of the words of [`meta::Label`].

pub mod analysis;
pub mod cause;
pub mod clock;
pub mod csv;
pub mod dist;
pub mod frames;
pub mod log;
pub mod meta;
pub mod noise;
pub mod recorder;
pub mod report;
pub mod slots;
pub mod stages;
pub mod stamp;
pub mod svg;
pub mod table;
pub mod timeline;
pub mod trace;
mod tsc;
pub mod verdict;

pub use analysis::{Analysis, Options};
pub use clock::{Clock, FakeClock, GuestTsc, MonotonicClock, TscMap};
pub use log::{Log, LogWriter};
pub use meta::{ContractMeta, Label, Meta, SliceMeta};
pub use recorder::{Collector, Recorder, Registry};
pub use report::{RunReport, SliceReport};
pub use stamp::{JobKey, SliceIndex, Stage, Stamp};

#[cfg(test)]
mod testkit;
