//! `beamline-flip-probe CARD PACER FLIPS`: shows three buffers by turns on a card, by page flips, and says when each
//! came and at which vblank of the pacer at a PCI address. Then holds the last one until a line comes.
//!
//! Prints a line of `name=value` for each flip, and one at the end. Fails where a flip does not end.

use beamline_guest_linux::clock::VblankClock;
use beamline_guest_linux::kms::{Buffer, Display, Flipped};
use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bounds a flip. The kernel's own bound is 50 ms.
const PATIENCE: Duration = Duration::from_secs(20);
/// Buffers that are shown by turns.
const BUFFERS: usize = 3;

fn main() -> ExitCode {
    beamline_guest_linux::report("flips", probe())
}

/// One flip.
struct Flip {
    end: Flipped,
    /// From the request to the event's time, µs.
    took: u64,
    /// The latest vblank once the event had been read, and before the next flip was asked for.
    vblank: u64,
}

fn probe() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [card, pacer, flips] = &arguments[..] else {
        return Err("usage: beamline-flip-probe CARD PACER FLIPS".into());
    };
    let flips: usize = flips.parse()?;
    let display = Display::open(card)?;
    let clock = VblankClock::open(pacer)?;
    let buffers: Vec<Buffer> = (0..BUFFERS).map(|_| display.buffer()).collect::<Result<_, _>>()?;
    for (number, buffer) in buffers.iter().enumerate() {
        draw(&display, buffer, number as u32);
    }
    display.show(&buffers[0])?;
    let first = first_vblank(&clock)?;
    println!("flips: begin");
    let mut done = Vec::with_capacity(flips);
    for number in 1..=flips {
        let asked = now();
        display.flip(&buffers[number % BUFFERS])?;
        let end = display.flipped(PATIENCE)?;
        done.push(Flip { end, took: end.micros.saturating_sub(asked), vblank: clock.vblank() });
    }
    for (number, flip) in done.iter().enumerate() {
        println!(
            "flip: n={} time_us={} sequence={} took_us={} vblank={}",
            number + 1,
            flip.end.micros,
            flip.end.sequence,
            flip.took,
            flip.vblank,
        );
    }
    let (width, height) = display.size();
    println!(
        "flips: done={} shown={} width={width} height={height} mode_hz={} from_vblank={first}",
        done.len(),
        flips % BUFFERS,
        display.rate(),
    );
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// `CLOCK_MONOTONIC`, µs: what the kernel's events are told in.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// The pacer's number once its vblanks come.
fn first_vblank(clock: &VblankClock) -> Result<u64, Box<dyn Error>> {
    let end = Instant::now() + PATIENCE;
    while clock.vblank() == 0 {
        if Instant::now() > end {
            return Err("no vblank came".into());
        }
        std::thread::yield_now();
    }
    Ok(clock.vblank())
}

/// A picture in which every pixel says where it is and in which buffer.
fn draw(display: &Display, buffer: &Buffer, number: u32) {
    let (width, height) = display.size();
    for y in 0..height {
        let pixel = |x: u32| {
            let (red, green) = ((x + 85 * number) & 0xff, (2 * y + x / 256) & 0xff);
            let blue = (x ^ y ^ (0x55 * number)) & 0xff;
            red << 16 | green << 8 | blue
        };
        buffer.write_row(y, (0..width).map(pixel));
    }
}
