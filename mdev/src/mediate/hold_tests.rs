use super::*;
use crate::device::virtio::gpu::Fence;
use crate::device::virtio::queue::Reply;
use proptest::prelude::*;

/// Request `n`, whose fence is `n`.
fn request(n: u64, order: u64) -> Pending {
    let fence = Fence { id: Some(n), ctx: 0, ring: None };
    Pending { reply: Reply::default(), fence, epoch: 1, queue: 0, order }
}

/// No fence.
const NONE: [u64; 0] = [];

const OK: Short = Short::Plain(0x1100);

/// The fences that leave.
fn out(hold: &mut Hold, first: Option<(Pending, Short)>) -> Vec<u64> {
    let mut all: Vec<_> = first.into_iter().collect();
    all.extend(std::iter::from_fn(|| hold.take()));
    all.iter().filter_map(|(pending, _)| pending.fence.id).collect()
}

fn answer(hold: &mut Hold, n: u64, order: u64, flushed: Option<u64>) -> Vec<u64> {
    let first = hold.answer(request(n, order), OK, flushed.map(Nanos));
    out(hold, first)
}

fn work(hold: &mut Hold, n: u64, order: u64) -> Vec<u64> {
    let first = hold.work(request(n, order), OK);
    out(hold, first)
}

fn vblank(hold: &mut Hold, time: u64) -> Vec<u64> {
    hold.vblank(Nanos(time));
    out(hold, None)
}

#[test]
fn a_flush_waits_for_the_first_vblank_after_it_and_later_answers_behind_it() {
    let mut hold = Hold::default();
    assert_eq!(answer(&mut hold, 1, 0, None), [1]);
    assert_eq!(answer(&mut hold, 2, 0, Some(100)), NONE);
    assert_eq!(answer(&mut hold, 3, 0, None), NONE);
    assert_eq!(vblank(&mut hold, 99), NONE, "that vblank was before the flush");
    assert_eq!(answer(&mut hold, 4, 0, Some(150)), NONE);
    assert_eq!(vblank(&mut hold, 110), [2, 3]);
    assert_eq!(vblank(&mut hold, 210), [4]);
    assert!(hold.is_empty());
}

#[test]
fn answers_off_the_timeline_never_wait() {
    let mut hold = Hold::default();
    assert_eq!(answer(&mut hold, 1, 0, Some(100)), NONE);
    let mut plain = request(2, 0);
    plain.fence.id = None;
    assert!(hold.answer(plain, OK, Some(Nanos(100))).is_some(), "no fence");
    let mut ring = request(3, 0);
    ring.fence.ring = Some(1);
    assert!(hold.work(ring, OK).is_some(), "a context's ring");
    let cursor = Pending { queue: 1, ..request(4, 0) };
    assert!(hold.answer(cursor, OK, None).is_some(), "the cursor queue");
    assert_eq!(vblank(&mut hold, 100), [1]);
}

#[test]
fn a_flush_waits_for_earlier_work_and_later_work_for_it() {
    let mut hold = Hold::default();
    // Jobs 1 and 2, a flush, job 3.
    assert_eq!(answer(&mut hold, 10, 2, Some(100)), NONE);
    assert_eq!(work(&mut hold, 3, 3), NONE, "behind the flush");
    assert_eq!(work(&mut hold, 2, 2), [2], "in front of it");
    assert_eq!(vblank(&mut hold, 100), NONE, "job 1 runs");
    assert_eq!(work(&mut hold, 1, 1), [1, 10, 3]);
}

#[test]
fn too_many_push_the_oldest_out_and_lose_none() {
    let mut hold = Hold::default();
    let mut left = Vec::new();
    for n in 0..3 * MAX_HELD as u64 {
        left.extend(answer(&mut hold, n, 0, Some(1)));
    }
    assert_eq!(left.len(), 2 * MAX_HELD);
    left.extend(vblank(&mut hold, 1));
    assert!(left.iter().copied().eq(0..3 * MAX_HELD as u64));
}

#[test]
fn a_new_life_forgets_all() {
    let mut hold = Hold::default();
    assert_eq!(answer(&mut hold, 1, 5, Some(1)), NONE);
    assert_eq!(work(&mut hold, 2, 1), [2]);
    hold.clear();
    assert_eq!(vblank(&mut hold, 9), NONE);
    assert_eq!(answer(&mut hold, 1, 0, None), [1]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Flush,
    Short,
    Job,
    /// One of the jobs that run ends.
    End(usize),
    Vblank,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Flush),
        2 => Just(Step::Short),
        3 => Just(Step::Job),
        3 => any::<usize>().prop_map(Step::End),
        2 => Just(Step::Vblank),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// In any order of events: every request is answered once; none before its work is over or its vblank
    /// has come; and what Linux concludes from each answer is true: all earlier requests are done.
    #[test]
    fn no_answer_says_too_much(steps in steps()) {
        let mut hold = Hold::default();
        let (mut next, mut handed) = (0u64, 0u64);
        let mut running: Vec<(u64, u64)> = Vec::new();
        // Flushes that no vblank has come for.
        let mut unseen: Vec<u64> = Vec::new();
        let mut answered: Vec<u64> = Vec::new();
        let mut shorts: Vec<u64> = Vec::new();
        for (time, step) in steps.iter().enumerate() {
            let time = time as u64;
            let left = match step {
                Step::Flush => {
                    next += 1;
                    unseen.push(next);
                    shorts.push(next);
                    answer(&mut hold, next, handed, Some(time))
                }
                Step::Short => {
                    next += 1;
                    shorts.push(next);
                    answer(&mut hold, next, handed, None)
                }
                Step::Job => {
                    (next, handed) = (next + 1, handed + 1);
                    running.push((next, handed));
                    Vec::new()
                }
                Step::End(_) if running.is_empty() => Vec::new(),
                Step::End(n) => {
                    let (n, order) = running.remove(n % running.len());
                    work(&mut hold, n, order)
                }
                Step::Vblank => {
                    unseen.clear();
                    vblank(&mut hold, time)
                }
            };
            for fence in left {
                prop_assert!(!running.iter().any(|(n, _)| *n == fence));
                // Jobs among themselves end as the GPU ends them.
                let done = |n: &u64| *n >= fence || answered.contains(n) || !shorts.contains(n);
                prop_assert!(!unseen.iter().any(|n| *n <= fence), "{fence} before a vblank");
                prop_assert!(shorts.iter().all(done), "{fence} before an earlier answer");
                if shorts.contains(&fence) {
                    prop_assert!(running.iter().all(|(n, _)| *n > fence), "{fence} before a job");
                }
                answered.push(fence);
            }
        }
        while let Some((n, order)) = running.pop() {
            answered.extend(work(&mut hold, n, order));
        }
        answered.extend(vblank(&mut hold, u64::MAX));
        answered.sort_unstable();
        prop_assert!(answered.iter().copied().eq(1..=next));
    }
}
