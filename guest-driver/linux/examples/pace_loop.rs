//! A plain loop that is paced by its host: one turn per vblank, with what is left until the frame is due.
//!
//! Bind the pacer to vfio-pci first (`beamline-guest pace` says how where it is not), then:
//! `cargo run -p beamline-guest-linux --example pace_loop`.

use beamline_guest_linux::paced::Paced;
use std::error::Error;
use std::time::Duration;

/// How many frames this example makes.
const FRAMES: u32 = 120;

fn main() -> Result<(), Box<dyn Error>> {
    let mut paced = Paced::open(None, Duration::from_mins(1))?;
    paced.pacer.enable(&mut paced.port);
    let mut world = 0u64;
    for frame in 0..FRAMES {
        let vblank = paced.next_vblank().ok_or("no vblank came within a minute")?;
        // A vblank that this loop slept through is made up for, so that the world keeps its speed.
        for _ in 0..=vblank.missed {
            world = world.wrapping_add(1);
        }
        let now = paced.now(&vblank.timing);
        let left = vblank.timing.deadline.0.saturating_sub(now.0);
        if frame % 60 == 0 {
            println!("frame {frame}: world {world}, {:.3} ms until it is due", left as f64 / 1e6);
        }
    }
    paced.pacer.disable(&mut paced.port);
    Ok(())
}
