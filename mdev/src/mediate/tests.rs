//! Submissions, good and hostile, against the checker.

use super::job::{Job, LatchRead, Rejected};
use super::resources::{Kind, Resources};
use beamline_abi::frame::{
    Binding, CommandHeader, CreateBuffer, CreateImage, CreatePipeline, Destroy, Dispatch, Latch,
    MAGIC, Op, Present, SubmitHeader, SubmitKind, VERSION, WriteBuffer, pad8, submit_flag,
};
use beamline_abi::{FrameId, JobIndex, Reason};
use proptest::prelude::*;
use zerocopy::{Immutable, IntoBytes};

/// Builds a submission.
struct Stream {
    header: SubmitHeader,
    body: Vec<u8>,
}

impl Stream {
    fn setup() -> Self {
        let header = SubmitHeader {
            magic: MAGIC,
            version: VERSION,
            kind: SubmitKind::Setup as u16,
            ..SubmitHeader::default()
        };
        Self { header, body: Vec::new() }
    }
    fn job(frame: u64, job: u16, jobs: u16) -> Self {
        let mut s = Self::setup();
        s.header.kind = SubmitKind::Job as u16;
        (s.header.frame, s.header.job, s.header.jobs) = (FrameId(frame), JobIndex(job), jobs);
        s
    }
    fn push(mut self, op: u32, fixed: &(impl IntoBytes + Immutable), tail: &[u8]) -> Self {
        let len = pad8(size_of::<CommandHeader>() + fixed.as_bytes().len() + tail.len());
        let end = self.body.len() + len;
        self.body.extend(CommandHeader { op, len: len as u32 }.as_bytes());
        self.body.extend(fixed.as_bytes());
        self.body.extend(tail);
        self.body.resize(end, 0);
        self.header.commands += 1;
        self.header.bytes = self.body.len() as u32;
        self
    }
    fn cmd(self, op: Op, fixed: &(impl IntoBytes + Immutable), tail: &[u8]) -> Self {
        self.push(op as u32, fixed, tail)
    }
    fn bytes(&self) -> Vec<u8> {
        [self.header.as_bytes(), &self.body].concat()
    }
    fn check(&self, resources: &mut Resources) -> Result<Job<super::job::Validated>, Rejected> {
        let job = Job::new(self.bytes()).validate(resources).map_err(|(e, _)| e)?;
        resources.commit();
        Ok(job)
    }
    fn reason(&self, resources: &mut Resources) -> Reason {
        self.check(resources).unwrap_err().reason
    }
}

fn pipeline(id: u32) -> Stream {
    let fixed = CreatePipeline { id, entry_len: 4, wgsl_len: 5, reserved: 0 };
    Stream::setup().cmd(Op::CreatePipeline, &fixed, b"mainfn {}")
}

/// Buffer 1 of 64 bytes, image 2, pipeline 3.
fn resources() -> Resources {
    let mut r = Resources::new(16, 1 << 20);
    Stream::setup()
        .cmd(Op::CreateBuffer, &CreateBuffer { id: 1, reserved: 0, size: 64 }, &[])
        .cmd(Op::CreateImage, &CreateImage { id: 2, format: 0, width: 16, height: 16 }, &[])
        .check(&mut r)
        .unwrap();
    pipeline(3).check(&mut r).unwrap();
    r
}

fn dispatch(bindings: &[(u32, u32)]) -> (Dispatch, Vec<u8>) {
    let tail: Vec<Binding> = bindings.iter().map(|&(slot, id)| Binding { slot, id }).collect();
    let fixed =
        Dispatch { pipeline: 3, groups: [1, 1, 1], bindings: tail.len() as u32, reserved: 0 };
    (fixed, tail.as_bytes().to_vec())
}

#[test]
fn a_whole_frame_job_passes() {
    let (d, tail) = dispatch(&[(0, 1), (1, 2)]);
    let latch = Latch { id: 1, len: 32, offset: 16, addr: 0x1234 };
    let mut job = Stream::job(7, 1, 2)
        .cmd(Op::WriteBuffer, &WriteBuffer { id: 1, len: 4, offset: 0 }, &[1, 2, 3, 4])
        .cmd(Op::Latch, &latch, &[])
        .cmd(Op::Dispatch, &d, &tail)
        .cmd(Op::Present, &Present { image: 2, scanout: 0 }, &[]);
    job.header.flags = submit_flag::LATE_LATCH;
    let checked = job.check(&mut resources()).unwrap();
    assert!(checked.meta().presents);
    assert_eq!(checked.meta().latches[0], Some(LatchRead { command: 1, addr: 0x1234, len: 32 }));
    assert_eq!(checked.meta().header.frame, FrameId(7));
}

#[test]
fn a_refused_setup_leaves_no_trace() {
    let mut r = resources();
    let used = r.used();
    let bad = Stream::setup()
        .cmd(Op::Destroy, &Destroy { id: 1, reserved: 0 }, &[])
        .cmd(Op::CreateBuffer, &CreateBuffer { id: 5, reserved: 0, size: 128 }, &[])
        .cmd(Op::CreateBuffer, &CreateBuffer { id: 5, reserved: 0, size: 128 }, &[]);
    assert_eq!(bad.reason(&mut r), Reason::BadId);
    assert_eq!(r.used(), used);
    assert_eq!(r.get(1), Some(Kind::Buffer { size: 64 }));
    assert_eq!(r.get(5), None);
}

#[test]
fn quotas_and_ids_are_kept() {
    let mut r = Resources::new(4, 1024);
    let buffer = |id, size| {
        Stream::setup().cmd(Op::CreateBuffer, &CreateBuffer { id, reserved: 0, size }, &[])
    };
    assert_eq!(buffer(1, 2048).reason(&mut r), Reason::Quota);
    assert_eq!(buffer(1, u64::MAX - 15).reason(&mut r), Reason::Quota);
    assert_eq!(buffer(0, 16).reason(&mut r), Reason::BadId);
    assert_eq!(buffer(4, 16).reason(&mut r), Reason::BadId);
    assert_eq!(buffer(1, 24).reason(&mut r), Reason::Malformed);
    buffer(1, 1024).check(&mut r).unwrap();
    Stream::setup().cmd(Op::Destroy, &Destroy { id: 1, reserved: 0 }, &[]).check(&mut r).unwrap();
    assert_eq!(r.used(), 0);
}

#[test]
fn jobs_cannot_leave_their_resources() {
    let mut r = resources();
    let write = |id, len, offset| {
        Stream::job(1, 0, 1).cmd(Op::WriteBuffer, &WriteBuffer { id, len, offset }, &[0; 64])
    };
    write(1, 64, 0).check(&mut r).unwrap();
    assert_eq!(write(1, 64, 4).reason(&mut r), Reason::OutOfBounds);
    assert_eq!(write(1, 4, u64::MAX - 3).reason(&mut r), Reason::OutOfBounds);
    assert_eq!(write(1, 68, 0).reason(&mut r), Reason::Malformed, "fewer bytes follow");
    assert_eq!(write(2, 4, 0).reason(&mut r), Reason::BadId, "an image is no buffer");
    let (mut d, tail) = dispatch(&[(0, 1), (0, 2)]);
    assert_eq!(Stream::job(1, 0, 1).cmd(Op::Dispatch, &d, &tail).reason(&mut r), Reason::Malformed);
    d.bindings = u32::MAX;
    assert_eq!(Stream::job(1, 0, 1).cmd(Op::Dispatch, &d, &tail).reason(&mut r), Reason::Malformed);
    let present = Present { image: 1, scanout: 0 };
    assert_eq!(Stream::job(1, 0, 1).cmd(Op::Present, &present, &[]).reason(&mut r), Reason::BadId);
}

#[test]
fn reserved_fields_are_zero() {
    let mut r = resources();
    let buffer = CreateBuffer { id: 9, reserved: 1, size: 16 };
    let destroy = Destroy { id: 1, reserved: 1 };
    let shader = CreatePipeline { id: 9, entry_len: 4, wgsl_len: 5, reserved: 1 };
    let (d, tail) = dispatch(&[(0, 1), (1, 2)]);
    let d = Dispatch { reserved: 1, ..d };
    for stream in [
        Stream::setup().cmd(Op::CreateBuffer, &buffer, &[]),
        Stream::setup().cmd(Op::Destroy, &destroy, &[]),
        Stream::setup().cmd(Op::CreatePipeline, &shader, b"mainfn {}"),
        Stream::job(1, 0, 1).cmd(Op::Dispatch, &d, &tail),
    ] {
        assert_eq!(stream.reason(&mut r), Reason::Malformed);
    }
    assert_eq!((r.get(9), r.get(1)), (None, Some(Kind::Buffer { size: 64 })));
}

#[test]
fn setup_and_jobs_do_not_mix_and_versions_are_checked() {
    let mut r = resources();
    let buffer = CreateBuffer { id: 9, reserved: 0, size: 16 };
    assert_eq!(
        Stream::job(1, 0, 1).cmd(Op::CreateBuffer, &buffer, &[]).reason(&mut r),
        Reason::Malformed
    );
    assert_eq!(Stream::setup().push(99, &buffer, &[]).reason(&mut r), Reason::Unsupported);
    let mut s = pipeline(9);
    s.header.version = 2;
    assert_eq!(s.reason(&mut r), Reason::Unsupported);
    let mut s = Stream::job(0, 0, 1).cmd(Op::Present, &Present { image: 2, scanout: 0 }, &[]);
    assert_eq!(s.reason(&mut r), Reason::Malformed, "a job has a frame");
    s.header.frame = FrameId(1);
    s.header.job = JobIndex(1);
    assert_eq!(s.reason(&mut r), Reason::Malformed, "job 1 of 1");
}

proptest! {
    /// Whatever arrives: no panic, and a refusal changes nothing.
    #[test]
    fn garbage_is_refused_without_a_trace(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut r = resources();
        let before = format!("{r:?}");
        if Job::new(bytes).validate(&mut r).is_err() {
            prop_assert_eq!(before, format!("{r:?}"));
        }
    }

    /// A good stream with one word changed: no panic, and no job that names what is not there.
    #[test]
    fn a_changed_word_never_slips_through(at in 0usize..64, word: u32) {
        let (d, tail) = dispatch(&[(0, 1), (1, 2)]);
        let stream = Stream::job(1, 0, 1)
            .cmd(Op::WriteBuffer, &WriteBuffer { id: 1, len: 8, offset: 8 }, &[7; 8])
            .cmd(Op::Dispatch, &d, &tail)
            .cmd(Op::Present, &Present { image: 2, scanout: 0 }, &[]);
        let mut bytes = stream.bytes();
        let at = at * 4 % bytes.len();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        let _ = Job::new(bytes).validate(&mut resources());
    }
}
