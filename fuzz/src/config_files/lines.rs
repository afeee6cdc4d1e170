//! Files put together line by line, so that checks behind the first ones are reached.

use crate::input::Input;
use std::fmt::Write as _;

/// What a file starts with where the input says so: enough to be right.
const GUEST: &str = "[guest]\nname = \"g\"\nimage = \"i\"\n[memory]\nsize = \"4M\"\n";
const HOST: &str = "run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n";
/// Most lines.
const MOST: usize = 200;

/// Lines of a guest's file. What follows ` = ` here is a value that is right; an input may choose another.
const OF_GUEST: [&str; 56] = [
    "[guest]",
    "name = \"g\"",
    "image = \"i\"",
    "initrd = \"r\"",
    "cmdline = \"quiet\"",
    "firmware = \"c\"",
    "variables = \"v\"",
    "on_reset = \"reboot\"",
    "[memory]",
    "size = \"4M\"",
    "size = \"2G\"",
    "hugepages = \"2M\"",
    "hugepages = \"transparent\"",
    "prefault = true",
    "host_nodes = [0]",
    "[vcpus]",
    "count = 2",
    "cpus = [0, 1]",
    "nice = -1",
    "slice_us = 500",
    "halt_poll_us = 100",
    "tsc_offset = -100",
    "hyperv = true",
    "[[node]]\nmemory = \"2M\"\nvcpus = [0]",
    "[[node]]\nmemory = \"2M\"\nvcpus = [1]",
    "memory = \"1G\"",
    "vcpus = [0, 1]",
    "distances = [10, 20]",
    "[[device]]",
    "type = \"vfio-user\"\nsocket = \"s\"",
    "type = \"virtio-blk\"\npath = \"d\"",
    "type = \"virtio-net\"",
    "type = \"virtio-rng\"",
    "type = \"virtio-console\"\noutput = \"unix:c\"",
    "type = \"virtio-vsock\"\ncid = 3",
    "type = \"virtio-input\"",
    "type = \"virtio-balloon\"",
    "socket = \"s\"",
    "timeout_ms = 5",
    "path = \"d\"",
    "readonly = true",
    "format = \"qcow2\"",
    "serial = \"1\"",
    "tap = \"t\"",
    "vhost_user = \"p\"",
    "mac = \"52:54:00:00:00:01\"",
    "output = \"terminal\"",
    "cid = 3",
    "kind = \"gamepad\"",
    "evdev = \"e\"",
    "[[port]]\nname = \"p\"\ndevice = { type = \"virtio-rng\" }",
    "[[port]]\nname = \"q\"\ndevice = { type = \"virtio-blk\", path = \"d\" }",
    "plugged = false",
    "[api]\nsocket = \"a\"",
    "[iommu]\nenabled = true",
    "[tpm]\nsocket = \"t\"",
];

/// Lines of a host's.
const OF_HOST: [&str; 36] = [
    "run_dir = \"run\"",
    "max_slices = 4",
    "[gpu]",
    "backend = \"model\"",
    "adapter = \"a\"",
    "policy = \"beamline\"",
    "in_flight = 2",
    "switch_cost_ms = 0.1",
    "guard_margin_ms = 0.15",
    "kill_grace_ms = 20.0",
    "[cpus]",
    "host = [0]",
    "render = [1]",
    "keep_awake = true",
    "realtime = true",
    "[output]",
    "stamps = \"s\"",
    "images = \"i\"",
    "[[slice]]\nname = \"a\"\nwidth = 64\nheight = 64",
    "[[slice]]\nname = \"b\"\nwidth = 512\nheight = 288",
    "width = 64",
    "profile = \"display\"",
    "memory = \"64M\"",
    "display_memory = \"64M\"",
    "guest_contract = \"within\"",
    "guest_hz = { min = \"30\", max = \"120\" }",
    "contract = { refresh_hz = \"60\", class = \"reserved\", budget_ms = 1.0, max_job_ms = 1.0 }",
    "[slice.contract]",
    "refresh_hz = \"90\"",
    "class = \"reserved\"",
    "budget_ms = 2.2",
    "max_job_ms = 3.0",
    "deadline_ms = 11.0",
    "late_latch = { window_ms = 1.2, budget_ms = 0.6 }",
    "miss = \"1/100\"",
    "weight = 2",
];

/// The file that an input describes.
pub(super) fn file(input: &mut Input<'_>, host: bool) -> String {
    let mut text = String::new();
    if input.flag() {
        text.push_str(if host { HOST } else { GUEST });
    }
    let lines: &[&str] = if host { &OF_HOST } else { &OF_GUEST };
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let line = lines[input.below(lines.len())];
        // Most values are those of the table.
        match line.rsplit_once(" = ").filter(|_| input.u8() >= 0xc0) {
            Some((start, _)) => {
                text.push_str(start);
                text.push_str(" = ");
                value(input, &mut text);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// A value of any kind.
fn value(input: &mut Input<'_>, text: &mut String) {
    // Writing to a text does not fail.
    let _ = match input.below(8) {
        0 => write!(text, "{}", input.number() as i64),
        1 => write!(text, "\"{}{}\"", input.number(), ["", "K", "M", "G", "T"][input.below(5)]),
        2 => write!(text, "{:?}", input.bytes(4)),
        3 => write!(text, "{:?}", String::from_utf8_lossy(input.bytes(200))),
        4 => write!(text, "{}", input.flag()),
        5 => write!(text, "\"{}\"", "x".repeat(input.number() as usize % 4096)),
        6 => write!(text, "{}", f64::from_bits(input.u64())),
        _ => write!(text, "{}.{}", input.number32(), input.u8()),
    };
}
