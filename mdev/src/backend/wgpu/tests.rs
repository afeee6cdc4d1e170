//! Against a real Vulkan device, with real renderer processes. Where there is no device, each test says so.

use super::*;
use crate::backend::{Latched, Ticket};
use crate::renderer::writer::Writer;
use beamline_abi::Reason;
use beamline_abi::frame::{MAX_LATCH_BYTES, SubmitKind};
use rustix::event::{PollFd, PollFlags};

const LIMITS: SliceLimits = SliceLimits { memory: 16 << 20, max_resources: 64 };

/// Fills an image with a pattern of the pixel's place and a colour from a uniform.
const PATTERN: &str = "
    struct Colour { blue: u32 }
    @group(0) @binding(0) var<uniform> colour: Colour;
    @group(0) @binding(1) var image: texture_storage_2d<rgba8unorm, write>;
    @compute @workgroup_size(8, 8) fn paint(@builtin(global_invocation_id) id: vec3<u32>) {
        let rgb = vec3(f32(id.x), f32(id.y), f32(colour.blue)) / 255.0;
        textureStore(image, id.xy, vec4(rgb, 1.0));
    }";

/// As many rounds as the buffer says.
const SPIN: &str = "
    @group(0) @binding(0) var<storage, read_write> rounds: array<u32>;
    @compute @workgroup_size(64) fn spin(@builtin(global_invocation_id) id: vec3<u32>) {
        var x = id.x;
        for (var i = 0u; i < rounds[0]; i++) { x = x * 1664525u + 1013904223u; }
        rounds[1u + id.x] = x;
    }";

/// Never ends by itself where it is dispatched in great numbers. One dispatch would not do: Mesa's llvmpipe
/// leaves a shader's loops after 65,535 rounds.
const ENDLESS: &str = "
    @group(0) @binding(0) var<storage, read_write> a: array<u32>;
    @compute @workgroup_size(1) fn hang() { loop { a[0] += 1u; if a[1] == 1u { break; } } }";

/// Writes and reads far outside its buffer.
const OUTSIDE: &str = "
    @group(0) @binding(0) var<storage, read_write> a: array<u32>;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        for (var i = 0u; i < 1000u; i++) {
            a[id.x * 7919u * i] = a[0xffffff0u + id.x * 4096u * i] + 1u;
        }
    }";

fn key(index: u16, life: u32) -> SliceKey {
    SliceKey { index, generation: Generation(life) }
}

/// Names the command `beamline`, to have these tests judge its renderers, which are in a sandbox.
const COMMAND: &str = "BEAMLINE_RENDERER";

/// This test program as a renderer, or the command.
fn launcher() -> Launcher {
    if let Some(command) = std::env::var_os(COMMAND) {
        return Launcher { exe: command.into(), ..Launcher::this_program() };
    }
    Launcher {
        exe: std::env::current_exe().unwrap(),
        args: ["renderer::tests::child", "--exact", "--ignored", "--nocapture"]
            .map(Into::into)
            .into(),
        ..Launcher::this_program()
    }
}

fn next(gpu: &mut WgpuGpu) -> Vec<Event> {
    let mut fds = Vec::new();
    gpu.register(&mut |fd| fds.push(fd.try_clone_to_owned().unwrap()));
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    rustix::event::poll(&mut polled, None).unwrap();
    let mut events = Vec::new();
    gpu.poll(crate::renderer::now(), &mut |event| events.push(event));
    events
}

/// Waits for an event that `want` takes; any loss on the way ends the test.
fn wait<T>(gpu: &mut WgpuGpu, mut want: impl FnMut(&Event) -> Option<T>) -> T {
    loop {
        for event in next(gpu) {
            if let Some(found) = want(&event) {
                return found;
            }
            assert!(!matches!(event, Event::Lost { .. }), "{event:?}");
        }
    }
}

/// A slice that is ready, or `None` where there is no Vulkan device.
fn attach(gpu: &mut WgpuGpu, key: SliceKey) -> Option<()> {
    gpu.attach(key, LIMITS).unwrap();
    let lost = wait(gpu, |event| match event {
        Event::Ready { slice, description } => {
            assert_eq!(*slice, key);
            assert!(!description.is_empty());
            Some(None)
        }
        Event::Lost { reason, .. } => Some(Some(reason.clone())),
        _ => None,
    });
    let Some(reason) = lost else {
        return Some(());
    };
    assert!(reason.contains("no Vulkan device"), "{reason}");
    eprintln!("skip: {}: no Vulkan device", std::thread::current().name()?);
    None
}

fn ready() -> Option<WgpuGpu> {
    let mut gpu = WgpuGpu::new(launcher()).unwrap();
    attach(&mut gpu, key(0, 1))?;
    Some(gpu)
}

fn setup(gpu: &mut WgpuGpu, key: SliceKey, stream: &[u8]) -> Result<(), Reason> {
    gpu.configure(key, 77, stream).unwrap();
    wait(gpu, |event| match event {
        Event::Configured { token, result, .. } => {
            assert_eq!(*token, 77);
            Some(*result)
        }
        _ => None,
    })
}

/// The job's start, end and busy time, and its result.
fn run(
    gpu: &mut WgpuGpu,
    key: SliceKey,
    stream: &[u8],
    latched: &[Latched],
) -> (Nanos, Nanos, Nanos, Result<(), Reason>) {
    let before = crate::renderer::now();
    gpu.submit(before, Grant::unchecked(key, Ticket(5), stream, latched)).unwrap();
    wait(gpu, |event| match event {
        Event::Done { ticket, gpu_start, gpu_end, busy, result, .. } => {
            assert_eq!(*ticket, Ticket(5));
            assert!(before <= *gpu_start && gpu_start <= gpu_end);
            assert!(*busy <= *gpu_end - *gpu_start);
            Some((*gpu_start, *gpu_end, *busy, *result))
        }
        _ => None,
    })
}

fn job() -> Writer {
    Writer::new(SubmitKind::Job)
}

fn make() -> Writer {
    Writer::new(SubmitKind::Setup)
}

fn image(gpu: &mut WgpuGpu, key: SliceKey) -> (u32, u32, Vec<u8>) {
    gpu.capture(key).unwrap();
    wait(gpu, |event| match event {
        Event::Image { width, height, rgba, .. } => Some((*width, *height, rgba.clone())),
        _ => None,
    })
}

#[test]
fn an_image_is_painted_presented_and_captured() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    assert_eq!(image(&mut gpu, slice), (0, 0, Vec::new()));
    let (width, height) = (50, 30);
    let stream =
        make().buffer(1, 16).image(2, width, height).pipeline(3, "paint", PATTERN).finish();
    setup(&mut gpu, slice, &stream).unwrap();

    let mut data = [0; MAX_LATCH_BYTES];
    data[0] = 200;
    let latched = Latched { command: 1, len: 4, data };
    let stream = job()
        .write(1, 0, &[9, 0, 0, 0])
        .latch(1, 0, 4)
        .dispatch(3, [7, 4, 1], &[(0, 1), (1, 2)])
        .present(2)
        .finish();
    let (_, _, _, result) = run(&mut gpu, slice, &stream, &[latched]);
    result.unwrap();
    // The bind group is the cached one the second time.
    run(&mut gpu, slice, &stream, &[latched]).3.unwrap();

    let (seen_width, seen_height, rgba) = image(&mut gpu, slice);
    assert_eq!((seen_width, seen_height), (width, height));
    for y in 0..height {
        for x in 0..width {
            let at = 4 * (y * width + x) as usize;
            assert_eq!(rgba[at..at + 4], [x as u8, y as u8, 200, 255], "{x} {y}");
        }
    }

    // Without its latched bytes the job is refused, and the renderer goes on.
    assert_eq!(run(&mut gpu, slice, &stream, &[]).3, Err(Reason::Malformed));
    run(&mut gpu, slice, &stream, &[latched]).3.unwrap();
}

#[test]
fn what_a_guest_gets_wrong_is_answered_and_survived() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    let mut refuse = |stream: Writer, reason| {
        assert_eq!(setup(&mut gpu, slice, &stream.finish()), Err(reason));
    };
    refuse(make().pipeline(1, "main", "not a shader"), Reason::Shader);
    refuse(make().pipeline(1, "other", SPIN), Reason::Shader);
    refuse(make().pipeline(1, "main", &"(".repeat(60_000)), Reason::Shader);
    refuse(make().buffer(0, 16), Reason::BadId);
    refuse(make().buffer(64, 16), Reason::Quota);
    refuse(make().buffer(1, 8 << 20).buffer(2, 9 << 20), Reason::Quota);
    refuse(make().buffer(1, 1 << 60), Reason::Quota);
    refuse(make().buffer(1, 16).buffer(1, 16), Reason::BadId);
    refuse(make().destroy(1), Reason::BadId);
    refuse(make().buffer(1, 17), Reason::Malformed);
    // Nothing of a refused setup has taken effect.
    let stream = make().buffer(1, 64).image(2, 8, 8).pipeline(3, "paint", PATTERN).finish();
    setup(&mut gpu, slice, &stream).unwrap();

    let good = job().dispatch(3, [1, 1, 1], &[(0, 1), (1, 2)]).finish();
    let mut refuse = |stream: Vec<u8>, reason| {
        assert_eq!(run(&mut gpu, slice, &stream, &[]).3, Err(reason));
        // The fault is not charged to the job after it.
        run(&mut gpu, slice, &good, &[]).3.unwrap();
    };
    refuse(vec![1, 2, 3], Reason::Malformed);
    refuse(vec![0; 64], Reason::Unsupported);
    refuse(good[..good.len() - 8].to_vec(), Reason::Malformed);
    refuse(job().write(9, 0, &[0; 4]).finish(), Reason::BadId);
    refuse(job().write(2, 0, &[0; 4]).finish(), Reason::BadId);
    refuse(job().write(1, 64, &[0; 4]).finish(), Reason::OutOfBounds);
    refuse(job().write(1, u64::MAX - 3, &[0; 4]).finish(), Reason::OutOfBounds);
    refuse(job().present(1).finish(), Reason::BadId);
    refuse(job().dispatch(1, [1, 1, 1], &[]).finish(), Reason::BadId);
    // Bindings that are missing, of the wrong kind, and twice in one place.
    for bindings in [&[][..], &[(0, 1)], &[(0, 2), (1, 1)], &[(0, 1), (0, 1)]] {
        let stream = job().dispatch(3, [1, 1, 1], bindings).finish();
        refuse(stream, Reason::Malformed);
    }
    // A destroyed resource is gone, also from the bind groups.
    setup(&mut gpu, slice, &make().destroy(2).finish()).unwrap();
    assert_eq!(run(&mut gpu, slice, &good, &[]).3, Err(Reason::BadId));
}

#[test]
fn a_shader_cannot_leave_its_buffer() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    let stream = make().buffer(1, 256).pipeline(2, "main", OUTSIDE).finish();
    setup(&mut gpu, slice, &stream).unwrap();
    let stream = job().dispatch(2, [16, 1, 1], &[(0, 1)]).finish();
    run(&mut gpu, slice, &stream, &[]).3.unwrap();
    run(&mut gpu, slice, &stream, &[]).3.unwrap();
}

#[test]
fn an_endless_shader_ends_with_its_slice_alone() {
    let Some(mut gpu) = ready() else { return };
    let (bad, good) = (key(0, 1), key(1, 1));
    if attach(&mut gpu, good).is_none() {
        return;
    }
    for slice in [bad, good] {
        let stream =
            make().buffer(1, 512).pipeline(2, "hang", ENDLESS).pipeline(3, "spin", SPIN).finish();
        setup(&mut gpu, slice, &stream).unwrap();
    }
    let endless = job().dispatch(2, [65_535, 65_535, 1], &[(0, 1)]).finish();
    let short = job().dispatch(3, [1, 1, 1], &[(0, 1)]).finish();
    gpu.submit(crate::renderer::now(), Grant::unchecked(bad, Ticket(1), &endless, &[])).unwrap();
    // It has certainly begun when a neighbour's job, submitted later, is done; that works meanwhile.
    run(&mut gpu, good, &short, &[]).3.unwrap();

    gpu.detach(bad);
    assert!(matches!(
        gpu.submit(Nanos(0), Grant::unchecked(bad, Ticket(1), &endless, &[])),
        Err(GpuError::NotAttached(_))
    ));
    // The next life is independent of what is left of the last.
    let next = key(0, 2);
    attach(&mut gpu, next).unwrap();
    let stream = make().buffer(1, 512).pipeline(3, "spin", SPIN).finish();
    setup(&mut gpu, next, &stream).unwrap();
    run(&mut gpu, next, &short, &[]).3.unwrap();
    run(&mut gpu, good, &short, &[]).3.unwrap();
}

#[test]
fn a_renderer_that_dies_is_reported_once() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    // As if its driver had crashed: the process is killed behind the backend's back.
    gpu.slices[0].as_ref().unwrap().life.crash();
    let reason = wait(&mut gpu, |event| match event {
        Event::Lost { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("ended by itself"), "{reason}");
    assert!(matches!(gpu.capture(slice), Err(GpuError::Lost(_))));
    assert!(matches!(gpu.attach(key(0, 2), LIMITS), Err(GpuError::InUse { .. })));
    gpu.detach(slice);
    attach(&mut gpu, key(0, 2)).unwrap();
}

#[test]
fn a_renderer_that_cannot_start_is_lost() {
    let missing = Launcher { exe: "/nowhere/renderer".into(), ..Launcher::this_program() };
    let mut gpu = WgpuGpu::new(missing).unwrap();
    gpu.attach(key(3, 1), LIMITS).unwrap();
    let reason = wait(&mut gpu, |event| match event {
        Event::Lost { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("/nowhere/renderer"), "{reason}");
    // A program that is no renderer.
    let other = Launcher { exe: "/bin/true".into(), ..Launcher::this_program() };
    let mut gpu = WgpuGpu::new(other).unwrap();
    gpu.attach(key(3, 1), LIMITS).unwrap();
    wait(&mut gpu, |event| matches!(event, Event::Lost { .. }).then_some(()));
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let Some(_) = ready() else { return };
    let wanted = Launcher { adapter: Some("no such gpu".into()), ..launcher() };
    let mut gpu = WgpuGpu::new(wanted).unwrap();
    gpu.attach(key(0, 1), LIMITS).unwrap();
    let reason = wait(&mut gpu, |event| match event {
        Event::Lost { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("no such gpu"), "{reason}");
}

#[test]
fn a_slice_may_queue_so_much_and_keeps_its_order() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    let stream = make().buffer(1, 512).pipeline(3, "spin", SPIN).finish();
    setup(&mut gpu, slice, &stream).unwrap();
    let stream =
        job().write(1, 0, &10_000_u32.to_le_bytes()).dispatch(3, [1, 1, 1], &[(0, 1)]).finish();
    let now = crate::renderer::now();
    let mut queued = 0;
    while gpu.submit(now, Grant::unchecked(slice, Ticket(queued), &stream, &[])).is_ok() {
        queued += 1;
    }
    assert_eq!(queued as usize, MAX_QUEUED_JOBS);
    let mut expected = 0;
    wait(&mut gpu, |event| {
        if let Event::Done { ticket, result, .. } = event {
            result.unwrap();
            assert_eq!(*ticket, Ticket(expected));
            expected += 1;
        }
        (expected == queued).then_some(())
    });
}

#[test]
fn jobs_in_line_have_their_own_times_and_faults() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    let stream = make().buffer(1, 512).pipeline(3, "spin", SPIN).finish();
    setup(&mut gpu, slice, &stream).unwrap();
    let good = job().write(1, 0, &100_u32.to_le_bytes()).dispatch(3, [1, 1, 1], &[(0, 1)]).finish();
    // wgpu finds the first, the renderer itself the second.
    let unbound = job().dispatch(3, [1, 1, 1], &[]).finish();
    let unknown = job().write(9, 0, &[0; 4]).finish();
    let streams: Vec<_> =
        [&good, &unbound, &good, &unknown].into_iter().cycle().take(MAX_QUEUED_JOBS).collect();
    let now = crate::renderer::now();
    for (ticket, stream) in (0..).zip(&streams) {
        gpu.submit(now, Grant::unchecked(slice, Ticket(ticket), stream, &[])).unwrap();
    }
    let mut results = Vec::new();
    let mut free = now;
    wait(&mut gpu, |event| {
        if let Event::Done { gpu_start, gpu_end, estimated, result, .. } = event {
            if result.is_ok() && !estimated {
                assert!(*gpu_start >= free, "it ran beside the one before it");
                free = *gpu_end;
            }
            results.push(*result);
        }
        (results.len() == streams.len()).then_some(())
    });
    let of_four = [Ok(()), Err(Reason::Malformed), Ok(()), Err(Reason::BadId)];
    assert_eq!(results, of_four.into_iter().cycle().take(MAX_QUEUED_JOBS).collect::<Vec<_>>());
}

/// What lies between `submit` and `Done` beyond the job itself. Prints; asserts nothing about time.
#[test]
#[ignore = "a measurement"]
fn overhead() {
    let Some(mut gpu) = ready() else { return };
    let slice = key(0, 1);
    let stream = make().buffer(1, 4 * 4100).pipeline(3, "spin", SPIN).finish();
    setup(&mut gpu, slice, &stream).unwrap();
    let stream = |rounds: u32| {
        job().write(1, 0, &rounds.to_le_bytes()).dispatch(3, [64, 1, 1], &[(0, 1)]).finish()
    };
    let first = run(&mut gpu, slice, &stream(1), &[]).2;
    eprintln!("a pipeline's first job: busy {first}");
    let mut rounds = 1000;
    for _ in 0..20 {
        let (_, _, busy, _) = run(&mut gpu, slice, &stream(rounds), &[]);
        rounds = (u64::from(rounds) * 1_000_000 / busy.0.max(1)).clamp(100, 1_000_000) as u32;
    }
    let stream = stream(rounds);
    let mut rows = Vec::new();
    for _ in 0..400 {
        let before = crate::renderer::now();
        let (start, end, busy, result) = run(&mut gpu, slice, &stream, &[]);
        let after = crate::renderer::now();
        result.unwrap();
        rows.push([busy.0, (start - before).0, (after - end).0, (after - before).0 - busy.0]);
    }
    for (column, name) in ["busy", "submit to start", "end to done", "overhead"].iter().enumerate()
    {
        let mut values: Vec<_> = rows.iter().map(|row| row[column]).collect();
        values.sort_unstable();
        let at = |q: usize| Nanos(values[values.len() * q / 100]);
        eprintln!("{name}: p50 {}, p90 {}, p99 {}", at(50), at(90), at(99));
    }
    eprintln!("{}", gpu.describe());
}
