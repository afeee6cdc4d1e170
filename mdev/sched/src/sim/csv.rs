//! Recorded frame traces as CSV: one row per job, checked row by row.
//!
//! ```text
//! # Lines that begin with `#` are comments.
//! frame,job,submit_ns,gpu_ns
//! 0,0,412000,1310000
//! 0,1,1817000,402000
//! 0,latch,,310000
//! 1,0,398000,1290000
//! ```
//!
//! * `frame` counts up by one from any number.
//! * `job` counts up from 0 within a frame; the last row of a frame may be its `latch`, the late-latch job.
//! * `submit_ns`: how long after the frame's vblank the job was submitted; empty for the latch, which waits for
//!   its window.
//! * `gpu_ns`: the time the job needed on the GPU.
//!
//! All frames have the same jobs, so that a row that is missing shows.

use super::scenario::{MAX_JOBS, MIN_JOB, Trace, TraceFrame, TraceJob};
use beamline_abi::Nanos;
use std::fmt::Write;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

/// The first row that is no comment.
pub const HEAD: &str = "frame,job,submit_ns,gpu_ns";
/// Most bytes of a trace.
pub const MAX_BYTES: u64 = 64 << 20;
/// Most frames of a trace: three hours at 90 Hz.
pub const MAX_FRAMES: usize = 1_000_000;
/// Longest time in a row, ns: ten seconds.
const MAX_TIME: u64 = 10_000_000_000;

/// Why a trace is refused: where, what is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {field}: {problem}")]
pub struct TraceError {
    /// The file, as it was named.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column's name, or `row` where the row as a whole is wrong.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// A problem with a row: the column, and what is wrong with it.
type Wrong = (&'static str, String);

/// Reads `text`, the content of the file named `file`.
///
/// # Errors
/// [`TraceError`] at the first row that is truncated, out of order, out of range, or that leaves a hole.
pub fn parse(text: &str, file: &str) -> Result<Trace, TraceError> {
    let at = |line: usize| {
        move |(field, problem): Wrong| TraceError { file: file.to_string(), line, field, problem }
    };
    let lines = text.lines().count().max(1);
    if !text.is_empty() && !text.ends_with('\n') {
        let problem = "does not end with a line break: the file may have been cut off; add the rest, or the break";
        return Err(at(lines)(("row", problem.into())));
    }
    let mut rows = text.lines().enumerate().filter(|(_, row)| !row.starts_with('#'));
    match rows.next() {
        Some((_, HEAD)) => {}
        Some((i, other)) => {
            let problem =
                format!("`{}` is not the head; the first row must be `{HEAD}`", short(other));
            return Err(at(i + 1)(("row", problem)));
        }
        None => {
            return Err(at(lines)(("row", format!("there is none; the first must be `{HEAD}`"))));
        }
    }
    let mut reader = Reader::default();
    for (i, row) in rows {
        Row::parse(row).and_then(|row| reader.add(&row)).map_err(at(i + 1))?;
    }
    let frames = reader.end().map_err(at(lines))?;
    Ok(Trace { name: file.to_string(), frames })
}

/// A row by itself.
struct Row {
    frame: u64,
    what: What,
    gpu: Nanos,
}

enum What {
    /// Its place in the frame, and when it was submitted.
    Job(u64, Nanos),
    LateLatch,
}

impl Row {
    fn parse(text: &str) -> Result<Self, Wrong> {
        let mut cells = text.split(',').map(str::trim);
        let mut cell = |name| {
            cells.next().ok_or_else(|| {
                let row = short(text);
                (name, format!("is missing in `{row}`; a row has four values: {HEAD}"))
            })
        };
        let (frame, job) = (cell("frame")?, cell("job")?);
        let (submit, gpu) = (cell("submit_ns")?, cell("gpu_ns")?);
        if cells.next().is_some() {
            return Err(("row", format!("`{}` has more than four values: {HEAD}", short(text))));
        }
        let frame = number("frame", frame, 0, u64::MAX)?;
        let what = if job != "latch" {
            let job = number("job", job, 0, MAX_JOBS as u64 - 1)?;
            What::Job(job, Nanos(number("submit_ns", submit, 0, MAX_TIME)?))
        } else if submit.is_empty() {
            What::LateLatch
        } else {
            let problem = format!("`{}` stands at a latch; leave it empty there", short(submit));
            return Err(("submit_ns", problem));
        };
        Ok(Self { frame, what, gpu: Nanos(number("gpu_ns", gpu, MIN_JOB.0, MAX_TIME)?) })
    }
}

fn number(name: &'static str, cell: &str, least: u64, most: u64) -> Result<u64, Wrong> {
    // `parse` alone would take a sign.
    let value = if cell.starts_with('+') { None } else { cell.parse().ok() };
    value.filter(|v| (least..=most).contains(v)).ok_or_else(|| {
        let or = if name == "job" { ", or `latch`" } else { "" };
        (name, format!("`{}` is no whole number from {least} to {most}{or}", short(cell)))
    })
}

/// The frames so far.
#[derive(Default)]
struct Reader {
    frames: Vec<TraceFrame>,
    /// Number of the last one.
    number: u64,
}

impl Reader {
    fn add(&mut self, row: &Row) -> Result<(), Wrong> {
        if self.frames.is_empty() {
            self.begin(row.frame)?;
        } else if row.frame != self.number {
            self.like_the_first()?;
            let (last, number) = (self.number, row.frame);
            let problem = match last.checked_add(1) {
                Some(next) if number == next => {
                    return self.begin(number).and_then(|()| self.job(row));
                }
                Some(next) if number > next => {
                    format!("is {number} after {last}: there is a hole; frame {next} must follow")
                }
                _ => format!("is {number} after {last}; frames must be in order, each once"),
            };
            return Err(("frame", problem));
        }
        self.job(row)
    }

    fn begin(&mut self, number: u64) -> Result<(), Wrong> {
        if self.frames.len() == MAX_FRAMES {
            return Err(("frame", format!("is one more than {MAX_FRAMES}; split the trace")));
        }
        self.number = number;
        self.frames.push(TraceFrame { jobs: vec![], late_latch: None });
        Ok(())
    }

    fn job(&mut self, row: &Row) -> Result<(), Wrong> {
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        if frame.late_latch.is_some() {
            return Err(("job", "follows the latch, which must be a frame's last row".into()));
        }
        let next = frame.jobs.len() as u64;
        match row.what {
            What::Job(job, _) if job != next => {
                Err(("job", format!("is {job}; job {next} of frame {} must follow", row.frame)))
            }
            What::Job(_, submit) => {
                let before = frame.jobs.last().map_or(Nanos::ZERO, |j| j.submit);
                if submit < before {
                    let problem = format!(
                        "is {}, before the job before it ({}); jobs must be in order",
                        submit.0, before.0
                    );
                    return Err(("submit_ns", problem));
                }
                frame.jobs.push(TraceJob { submit, cost: row.gpu });
                Ok(())
            }
            What::LateLatch if next == 0 => {
                Err(("job", "is a latch; a frame begins with job 0".into()))
            }
            What::LateLatch => {
                frame.late_latch = Some(row.gpu);
                Ok(())
            }
        }
    }

    /// Whether the last frame has the jobs that the first one has.
    fn like_the_first(&self) -> Result<(), Wrong> {
        let (Some(first), Some(last)) = (self.frames.first(), self.frames.last()) else {
            return Err(("row", "there is no frame; a trace has at least one".into()));
        };
        let shape = |f: &TraceFrame| {
            let latch = if f.late_latch.is_some() { "a latch" } else { "no latch" };
            (f.jobs.len(), latch)
        };
        let (wanted, is) = (shape(first), shape(last));
        if wanted == is {
            return Ok(());
        }
        let problem = format!(
            "frame {} has {} jobs and {}; all frames must have what the first has: {} and {}",
            self.number, is.0, is.1, wanted.0, wanted.1
        );
        Err(("row", problem))
    }

    fn end(self) -> Result<Vec<TraceFrame>, Wrong> {
        self.like_the_first()?;
        Ok(self.frames)
    }
}

/// What a message quotes: the beginning of a long or strange text.
fn short(text: &str) -> String {
    let mut out: String =
        text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(40).is_some() {
        out += "…";
    }
    out
}

/// A trace as CSV: what [`parse`] reads.
pub fn write(trace: &Trace) -> String {
    let mut out = format!("{HEAD}\n");
    for (k, frame) in trace.frames.iter().enumerate() {
        for (i, job) in frame.jobs.iter().enumerate() {
            let _ = writeln!(out, "{k},{i},{},{}", job.submit.0, job.cost.0);
        }
        if let Some(cost) = frame.late_latch {
            let _ = writeln!(out, "{k},latch,,{}", cost.0);
        }
    }
    out
}

#[cfg(test)]
#[path = "csv_tests.rs"]
mod tests;
