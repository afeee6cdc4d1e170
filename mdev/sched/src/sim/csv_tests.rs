//! What the trace reader takes, and what it says to what it does not take.

use super::*;
use proptest::prelude::*;

const GOOD: &str = "# a headset\nframe,job,submit_ns,gpu_ns\n7,0,412000,1310000\n7,1,1817000,402000\n\
                    7,latch,,310000\n8,0,398000,1290000\n8,1,1790000,398000\n8,latch,,305000\n";

#[test]
fn a_good_trace_is_read() {
    let trace = parse(GOOD, "headset.csv").unwrap();
    assert_eq!((trace.name.as_str(), trace.frames.len()), ("headset.csv", 2));
    let frame = &trace.frames[1];
    assert_eq!(frame.jobs[1], TraceJob { submit: Nanos(1_790_000), cost: Nanos(398_000) });
    assert_eq!(frame.late_latch, Some(Nanos(305_000)));
}

#[test]
fn every_fault_is_named_with_line_and_field() {
    let cut = &GOOD[..GOOD.len() - 4];
    let edit = |from: &str, to: &str| GOOD.replacen(from, to, 1);
    for (text, line, field, words) in [
        (String::new(), 1, "row", "the first must be"),
        ("# only this\n".into(), 1, "row", "the first must be"),
        (edit("frame,job", "frame,work"), 2, "row", "the first row must be"),
        (edit("7,0", "7;0"), 3, "gpu_ns", "is missing"),
        (edit("7,1,1817000,402000", "7,1,1817000"), 4, "gpu_ns", "is missing"),
        (edit("402000", "402000,9"), 4, "row", "more than four"),
        (edit("402000", "-402000"), 4, "gpu_ns", "whole number from 1000"),
        (edit("402000", "0"), 4, "gpu_ns", "whole number from 1000"),
        (edit("402000", "99999999999999999999"), 4, "gpu_ns", "whole number"),
        (edit("402000", "402000.5"), 4, "gpu_ns", "whole number"),
        (edit("412000", "+412000"), 3, "submit_ns", "whole number"),
        (edit("412000", "1900000"), 4, "submit_ns", "jobs must be in order"),
        (edit("7,latch,,", "7,latch,5,"), 5, "submit_ns", "leave it empty"),
        (edit("7,1,", "7,2,"), 4, "job", "job 1 of frame 7 must follow"),
        (edit("7,1,", "7,first,"), 4, "job", "or `latch`"),
        (edit("7,0,412000,1310000\n", ""), 3, "job", "job 0 of frame 7 must follow"),
        (edit("8,latch,,305000\n", "8,latch,,305000\n8,2,1,2000\n"), 9, "job", "last row"),
        (edit("7,0,412000,1310000\n7,1,1817000,402000\n", ""), 3, "job", "begins with job 0"),
        (GOOD.replace("8,", "9,"), 6, "frame", "hole; frame 8 must follow"),
        (GOOD.replace("8,", "6,"), 6, "frame", "in order"),
        (edit("7,latch,,310000\n", ""), 7, "row", "all frames must have what the first has"),
        (edit("8,latch,,305000\n", ""), 7, "row", "frame 8 has 2 jobs and no latch"),
        (cut.into(), 8, "row", "cut off"),
        ("frame,job,submit_ns,gpu_ns\n".into(), 1, "row", "at least one"),
        (GOOD.replace("\n8", "\n18446744073709551616"), 6, "frame", "whole number"),
    ] {
        let error = parse(&text, "t.csv").unwrap_err();
        let said = error.to_string();
        assert_eq!((error.line, error.field), (line, field), "{said}\nof:\n{text}");
        assert!(said.starts_with(&format!("t.csv:{line}: {field}: ")), "{said}");
        assert!(said.contains(words), "no `{words}` in: {said}");
    }
}

#[test]
fn the_last_frame_number_there_is_can_end_a_trace() {
    let text = format!("{HEAD}\n{0},0,1,1000\n{0},1,1,1000\n", u64::MAX);
    assert_eq!(parse(&text, "t.csv").unwrap().frames.len(), 1);
    let more = format!("{text}0,0,1,1000\n");
    assert_eq!(parse(&more, "t.csv").unwrap_err().field, "frame");
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        shape in (1usize..=MAX_JOBS, any::<bool>()),
        frames in prop::collection::vec(
            (prop::collection::vec((0..=MAX_TIME / 20, 1_000..=MAX_TIME), MAX_JOBS), 1_000..=MAX_TIME),
            1..20,
        ),
    ) {
        let frame = |(jobs, latch): &(Vec<(u64, u64)>, u64)| {
            let mut at = 0;
            let jobs = jobs[..shape.0].iter().map(|&(after, cost)| {
                at += after;
                TraceJob { submit: Nanos(at), cost: Nanos(cost) }
            });
            TraceFrame { jobs: jobs.collect(), late_latch: shape.1.then_some(Nanos(*latch)) }
        };
        let trace = Trace { name: "t.csv".into(), frames: frames.iter().map(frame).collect() };
        prop_assert_eq!(parse(&write(&trace), "t.csv").unwrap(), trace);
    }

    #[test]
    fn a_damaged_trace_never_panics_and_is_read_or_refused_in_its_own_lines(
        edits in prop::collection::vec((any::<u32>(), any::<u8>(), 0u8..4), 1..12),
    ) {
        let text = super::super::mutate::mutate(GOOD, &edits);
        if let Err(e) = parse(&text, "t.csv") {
            prop_assert!((1..=text.lines().count().max(1)).contains(&e.line), "{e}");
        }
    }
}
