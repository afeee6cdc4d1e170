//! `beamline-pacer-probe ADDRESS VBLANKS SECONDS`: sees vblanks of the pacer at a PCI address, and says which.
//!
//! Prints a line at the first, one of `name=value` at the end, and one for each gap in the numbers. Fails where it cannot be paced.

use beamline_abi::pacer::{BAR0_SIZE, DEVICE_ID, VENDOR_ID, reg, vector};
use beamline_guest_driver::pacer::{Pacer, Vblank, VblankPoll};
use beamline_guest_driver::pci::{self, MsiTarget};
use beamline_guest_driver::transport::{Gpa, Slot, Transport, Wake, Width};
use beamline_guest_linux::port::Port;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

/// The only function.
const PACER: Slot = Slot(0);
/// The kernel fills the MSI-X table in.
const ANY: MsiTarget = MsiTarget { address: 0, data: 0 };

fn main() -> ExitCode {
    beamline_guest_linux::report("probe", probe())
}

fn probe() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, vblanks, seconds] = &arguments[..] else {
        return Err("usage: beamline-pacer-probe ADDRESS VBLANKS SECONDS".into());
    };
    let (vblanks, seconds) = (vblanks.parse()?, seconds.parse()?);
    let mut port = Port::open(&[address], Duration::from_secs(seconds))?;
    let mut pacer = Pacer::attach(&mut port, PACER, &[ANY; vector::COUNT as usize])?;
    let registers =
        pci::find(&mut port, VENDOR_ID, DEVICE_ID, PACER)?.bar(&port, 0, 0, BAR0_SIZE)?;
    pacer.enable(&mut port);
    let seen = watch(&mut port, &mut pacer, registers, vblanks);
    pacer.disable(&mut port);
    if let Some(failure) = port.take_failure() {
        return Err(failure.into());
    }
    report(&port, &pacer, &seen)
}

/// What was seen: each vblank, and how long after its time on the grid, ns.
struct Seen {
    vblanks: Vec<(Vblank, u64)>,
    busy: u64,
}

fn watch(port: &mut Port, pacer: &mut Pacer, registers: Gpa, wanted: usize) -> Seen {
    let mut seen = Seen { vblanks: Vec::with_capacity(wanted), busy: 0 };
    while seen.vblanks.len() < wanted {
        match pacer.poll_vblank(port) {
            VblankPoll::New(vblank) => {
                if seen.vblanks.is_empty() {
                    println!("probe: paced from {}", vblank.seq);
                }
                let late = time(port, registers).saturating_sub(vblank.timing.vblank_time.0);
                seen.vblanks.push((vblank, late));
            }
            VblankPoll::Busy => seen.busy += 1,
            VblankPoll::None => {
                if port.wait() == Wake::Stop {
                    break;
                }
            }
        }
    }
    // The page is written before the interrupt comes, so the last one may still be under way.
    while port.interrupts(PACER, vector::VBLANK) < seen.vblanks.len() as u64 {
        if port.wait() == Wake::Stop {
            break;
        }
    }
    seen
}

/// The host's time. Reading the low half latches the high one.
fn time(port: &mut Port, registers: Gpa) -> u64 {
    let low = port.mmio_read(registers.at(reg::TIME.into()), Width::Dword);
    let high = port.mmio_read(registers.at(u64::from(reg::TIME) + 4), Width::Dword);
    high << 32 | low & 0xffff_ffff
}

fn report(port: &Port, pacer: &Pacer, seen: &Seen) -> Result<(), Box<dyn Error>> {
    let (Some((first, _)), Some((last, _))) = (seen.vblanks.first(), seen.vblanks.last()) else {
        return Err("no vblank came".into());
    };
    let mut late: Vec<u64> = seen.vblanks.iter().map(|(_, late)| late / 1000).collect();
    late.sort_unstable();
    let missed: u64 = seen.vblanks.iter().map(|(vblank, _)| vblank.missed).sum();
    for (vblank, _) in seen.vblanks.iter().filter(|(vblank, _)| vblank.missed > 0) {
        println!("probe: gap: {} to {}", vblank.seq - vblank.missed, vblank.seq - 1);
    }
    println!(
        "probe: slice={} generation={} first={} last={} seen={} missed={missed} interrupts={} \
         period={}/{} first_ns={} last_ns={} late_median_us={} late_p99_us={} late_max_us={} busy={} \
         markers_dropped={}",
        pacer.slice(),
        pacer.generation().0,
        first.seq,
        last.seq,
        seen.vblanks.len(),
        port.interrupts(PACER, vector::VBLANK),
        last.timing.period_num,
        last.timing.period_den,
        first.timing.vblank_time.0,
        last.timing.vblank_time.0,
        late[late.len() / 2],
        late[late.len() * 99 / 100],
        late[late.len() - 1],
        seen.busy,
        pacer.markers.dropped(),
    );
    Ok(())
}
