use super::*;
use beamline_abi::{Generation, JobIndex};
use zerocopy::IntoBytes;

const LIMITS: SliceLimits = SliceLimits { memory: 1 << 20, max_resources: 16 };

fn key(index: u16) -> SliceKey {
    SliceKey { index, generation: Generation(1) }
}

fn header(job: u16) -> SubmitHeader {
    SubmitHeader { job: JobIndex(job), ..SubmitHeader::default() }
}

fn gpu(service: Service, slices: u16) -> ModelGpu {
    let table = CostTable::new(Nanos(1000)).with(1, 0, Nanos(300));
    let mut gpu = ModelGpu::new(service, table);
    for index in 0..slices {
        gpu.attach(key(index), LIMITS).unwrap();
    }
    gpu.poll(Nanos::ZERO, &mut |_| {});
    gpu
}

fn submit(gpu: &mut ModelGpu, now: u64, slice: u16, ticket: u32) {
    let job = header(0);
    gpu.submit(Nanos(now), Grant::unchecked(key(slice), Ticket(ticket), job.as_bytes(), &[]))
        .unwrap();
}

/// (ticket, start, end) of what is done by `now`.
fn done(gpu: &mut ModelGpu, now: u64) -> Vec<(u32, u64, u64)> {
    let mut seen = Vec::new();
    gpu.poll(Nanos(now), &mut |event| {
        if let Event::Done { ticket, gpu_start, gpu_end, result, .. } = event {
            result.unwrap();
            seen.push((ticket.0, gpu_start.0, gpu_end.0));
        }
    });
    seen
}

#[test]
fn fifo_serves_one_after_the_other() {
    let mut gpu = gpu(Service::Fifo, 2);
    submit(&mut gpu, 100, 0, 7);
    submit(&mut gpu, 200, 1, 8);
    assert_eq!(gpu.next_event(), Some(Nanos(1100)));
    assert_eq!(done(&mut gpu, 1099), []);
    assert_eq!(done(&mut gpu, 1100), [(7, 100, 1100)]);
    assert_eq!(gpu.next_event(), Some(Nanos(1400)));
    // A late poll changes no time.
    assert_eq!(done(&mut gpu, 9000), [(8, 1100, 1400)]);
    assert_eq!(gpu.next_event(), None);
    submit(&mut gpu, 10_000, 1, 9);
    assert_eq!(done(&mut gpu, 20_000), [(9, 10_000, 10_300)]);
}

#[test]
fn shared_jobs_slow_each_other_down() {
    let mut gpu = gpu(Service::Shared, 2);
    submit(&mut gpu, 0, 0, 1);
    submit(&mut gpu, 400, 1, 2);
    // From 400 both run at half speed: 300 of service take 600, and then 300 of the first are left.
    assert_eq!(gpu.next_event(), Some(Nanos(1000)));
    assert_eq!(done(&mut gpu, 5000), [(2, 400, 1000), (1, 0, 1300)]);
}

#[test]
fn sharing_among_three_loses_no_time() {
    let mut gpu = gpu(Service::Shared, 4);
    for (ticket, slice) in [0, 2, 3].into_iter().enumerate() {
        submit(&mut gpu, 0, slice, ticket as u32);
    }
    // Polling in between must not change the result.
    for now in (1..3000).step_by(7) {
        assert_eq!(done(&mut gpu, now), []);
    }
    assert_eq!(done(&mut gpu, 3000), [(0, 0, 3000), (1, 0, 3000), (2, 0, 3000)]);
}

#[test]
fn detach_ends_the_running_job_and_its_events() {
    let mut gpu = gpu(Service::Fifo, 2);
    submit(&mut gpu, 0, 0, 1);
    submit(&mut gpu, 0, 1, 2);
    assert_eq!(done(&mut gpu, 500), []);
    gpu.configure(key(0), 5, header(0).as_bytes()).unwrap();
    gpu.detach(key(0));
    assert_eq!(gpu.next_event(), Some(Nanos(800)));
    let mut seen = 0;
    gpu.poll(Nanos(800), &mut |event| {
        assert_eq!(event.slice(), key(1));
        seen += 1;
    });
    assert_eq!(seen, 1);
    assert!(matches!(
        gpu.configure(key(0), 6, header(0).as_bytes()),
        Err(GpuError::NotAttached(_))
    ));
    let next = SliceKey { index: 0, generation: Generation(2) };
    gpu.attach(next, LIMITS).unwrap();
    assert!(matches!(gpu.attach(key(0), LIMITS), Err(GpuError::InUse { .. })));
}

#[test]
fn jitter_repeats_for_the_same_seed() {
    let run = |seed| {
        let mut table = CostTable::new(Nanos(1_000_000)).jitter(100, seed);
        (0..50).map(|_| table.cost(key(0), &header(0))).collect::<Vec<_>>()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
    assert!(run(3).iter().all(|cost| (1_000_000..=1_100_000).contains(&cost.0)));
}

#[test]
fn bad_orders_are_refused() {
    let mut gpu = gpu(Service::Fifo, 1);
    let long = vec![0; MAX_SUBMIT_BYTES + 8];
    assert!(matches!(
        gpu.submit(Nanos(0), Grant::unchecked(key(0), Ticket(0), &long, &[])),
        Err(GpuError::TooLong { .. })
    ));
    gpu.submit(Nanos(0), Grant::unchecked(key(0), Ticket(1), &[1, 2, 3], &[])).unwrap();
    let mut reasons = Vec::new();
    gpu.poll(Nanos(0), &mut |event| {
        if let Event::Done { result, .. } = event {
            reasons.push(result);
        }
    });
    assert_eq!(reasons, [Err(Reason::Malformed)]);
    for ticket in 0..MAX_QUEUED_JOBS as u32 {
        submit(&mut gpu, 0, 0, ticket);
    }
    assert!(matches!(
        gpu.submit(Nanos(0), Grant::unchecked(key(0), Ticket(99), header(0).as_bytes(), &[])),
        Err(GpuError::Busy(_))
    ));
    assert!(matches!(gpu.capture(key(0)), Err(GpuError::Unsupported(_))));
}
