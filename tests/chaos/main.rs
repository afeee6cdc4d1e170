//! Real processes, killed at random moments: what is left goes on, what was killed can come back, and in
//! the end nothing stays behind.
//!
//! A host, its renderers and three VMMs on KVM with rendering guests. Where the machine has no KVM, no
//! Vulkan or no guest image, the tests say so and are skipped. `BEAMLINE_CHAOS_SEED` repeats a run's choices.

#[path = "../command.rs"]
mod command;
mod family;
mod files;
mod machine;
#[path = "../random.rs"]
mod random;

use family::{Family, wait_ended};
use files::{Files, SLICES};
use random::Random;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Frames that show that a slice goes on.
const GOES_ON: u64 = 5;

/// Several frames, so that any moment of one may come.
const MOMENT: Duration = Duration::from_millis(150);

/// One family at a time: two would share the machine's few CPUs.
static TURN: Mutex<()> = Mutex::new(());

/// How often each kind is killed.
const TIMES: usize = 5;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Guest(&'static str),
    /// Any of them: the host's children do not say whose they are.
    Renderer,
}

#[test]
fn the_others_go_on_and_the_killed_come_back() {
    let Some((program, image)) = machine::ready("the_others_go_on_and_the_killed_come_back") else {
        return;
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::seeded();
    let files = Files::write(&image);
    let mut family = Family::start(&program, &files);
    for slice in SLICES {
        family.boot(slice);
    }

    let each =
        [Victim::Guest("vr"), Victim::Guest("game"), Victim::Guest("flood"), Victim::Renderer];
    let mut victims = each.repeat(TIMES);
    random.shuffle(&mut victims);
    for victim in victims {
        println!("kill {victim:?}");
        round(&mut family, victim, &mut random);
    }

    // The host, a renderer and a VMM for each slice: the look that finds nobody below does see them.
    let all = machine::inhabitants(&files.folder());
    assert_eq!(all.len(), 1 + 2 * SLICES.len(), "{all:#?}");
    // With its guests attached: they lose their functions, not their lives.
    let renderers = family.renderers();
    assert_eq!(renderers.len(), SLICES.len());
    let (status, drained) = family.stop_host();
    assert!(status.success() && drained, "the host ended with {status}, drained: {drained}");
    wait_ended(&renderers, renderers.len());
    assert_eq!(files.sockets(), Vec::<std::path::PathBuf>::new(), "sockets are left");
    for slice in SLICES {
        let status = family.stop_guest(slice);
        assert!(status.code().is_some(), "{slice}'s VMM ended with {status}");
    }
    assert_eq!(machine::inhabitants(&files.folder()), Vec::<String>::new(), "processes are left");
}

/// Kills one, sees the others go on and the slice come back.
fn round(family: &mut Family<'_>, victim: Victim, random: &mut Random) {
    family.progress(&SLICES, GOES_ON);
    let renderers = family.renderers();
    assert_eq!(renderers.len(), SLICES.len(), "one renderer for each slice");
    random.moment(MOMENT);
    let slice = match victim {
        Victim::Guest(slice) => {
            family.kill_guest(slice);
            slice
        }
        Victim::Renderer => {
            renderers[random.below(renderers.len() as u64) as usize].kill();
            // The guest whose contexts are lost ends itself and says why.
            family.until("the guest of the killed renderer ends", |f| !f.ended().is_empty());
            let slice = family.ended()[0];
            let status = family.reap(slice);
            assert_eq!(status.code(), Some(1), "{slice}'s VMM ended with {status}");
            slice
        }
    };
    // Its renderer goes with it, and only that one.
    let gone = wait_ended(&renderers, 1);
    assert_eq!(gone.len(), 1, "renderers that ended: {gone:?}");
    let others: Vec<&str> = SLICES.into_iter().filter(|s| *s != slice).collect();
    family.progress(&others, GOES_ON);
    assert_eq!(family.ended(), [slice], "VMMs that ended");

    family.boot(slice);
    family.progress(&SLICES, GOES_ON);
    assert!(family.host_lives() && family.ended().is_empty());
    println!("  {slice} is back");
}

#[test]
fn a_killed_host_takes_its_renderers_and_can_be_replaced() {
    let Some((program, image)) =
        machine::ready("a_killed_host_takes_its_renderers_and_can_be_replaced")
    else {
        return;
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::seeded();
    let files = Files::write(&image);
    let mut family = Family::start(&program, &files);
    for slice in SLICES {
        family.boot(slice);
    }
    family.progress(&SLICES, GOES_ON);

    let renderers = family.renderers();
    assert_eq!(renderers.len(), SLICES.len());
    random.moment(MOMENT);
    family.kill_host();
    wait_ended(&renderers, renderers.len());
    // Their guests wait for vblanks that never come; they still end when they are asked to.
    for slice in SLICES {
        let status = family.stop_guest(slice);
        assert!(status.code().is_some(), "{slice}'s VMM ended with {status}");
    }
    assert_eq!(machine::inhabitants(&files.folder()), Vec::<String>::new(), "processes are left");
    drop(family);

    // Its socket files are still there; a new host takes their place.
    assert!(!files.sockets().is_empty());
    let mut family = Family::start(&program, &files);
    let slice = SLICES[random.below(SLICES.len() as u64) as usize];
    family.boot(slice);
    family.progress(&[slice], GOES_ON);
    let (status, _) = family.stop_host();
    assert!(status.success(), "the host ended with {status}");
    assert_eq!(files.sockets(), Vec::<std::path::PathBuf>::new(), "sockets are left");
}
