//! Page flips by the stock kernel's `virtio_gpu`: every one ends, the picture is the last one's, and they come no
//! faster than the slice's vblanks.
//!
//! A program in the guest flips three buffers, and looks at the pacer's count of vblanks after each flip's event and
//! before the next request. A flush is answered at the first vblank after it came, so each flip sees a higher number
//! than the one before, however the machine holds guest or host up. Numbers passed over are the machine's doing, as
//! far as they are few: a run with many is repeated.

use crate::bed::Bed;
use crate::guest::{Guest, Iommu, Machine};
use crate::host::Host;
use crate::picture::Picture;
use crate::{turn, words};
use std::time::{Duration, Instant};

/// How many flips a run has.
pub(crate) const FLIPS: u64 = 120;
/// Vblanks that may pass without a flip, in a run that counts.
const PASSED: u64 = FLIPS / 20;
/// How often a run is repeated where the machine did not let the guest keep up.
const TRIES: usize = 6;
/// What Linux waits for a fence at most, µs (`virtio_gpu_resource_flush`): a flip that took as long ended by itself.
pub(crate) const GIVES_UP: u64 = 50_000;

/// Bounds the wait for a picture that no fence tells of.
const PATIENCE: Duration = Duration::from_secs(20);

/// The probe once for each line `again`.
const SCRIPT: &str = r"
modprobe virtio_gpu || exit
echo 1 >/sys/bus/pci/devices/0000:00:04.0/enable
while echo ready && read -r word && [ $word = again ]; do
    /beamline-flip-probe /dev/dri/card0 0000:00:04.0 120 || exit
done
";

/// A flip as the guest saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flip {
    /// From the request to the event, µs.
    pub(crate) took: u64,
    /// The vblank it ended at, or a later one.
    pub(crate) vblank: u64,
}

/// What a run comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Flips that ended no later than at the vblank of the one before.
    pub(crate) fast: Vec<usize>,
    /// Flips whose fence the kernel did not wait for to the end.
    pub(crate) given_up: usize,
    /// Vblanks that passed without a flip.
    pub(crate) passed: u64,
}

pub(crate) fn verdict(flips: &[Flip]) -> Verdict {
    let given_up = |flip: &Flip| flip.took >= GIVES_UP;
    let pairs = flips.iter().zip(&flips[1..]).enumerate();
    let fast = pairs.filter(|(_, (a, b))| b.vblank <= a.vblank && !given_up(b));
    let span = flips[flips.len() - 1].vblank - flips[0].vblank;
    Verdict {
        fast: fast.map(|(number, _)| number + 2).collect(),
        given_up: flips.iter().filter(|flip| given_up(flip)).count(),
        passed: (span + 1).saturating_sub(flips.len() as u64),
    }
}

/// The flips of a run, by its lines.
pub(crate) fn flips(said: &[&str]) -> Vec<Flip> {
    let lines = said.iter().filter(|line| line.starts_with("flip: "));
    let flips: Vec<Flip> = lines
        .map(|line| {
            let words = words(line);
            let number = |name: &str| words[name].parse().unwrap();
            Flip { took: number("took_us"), vblank: number("vblank") }
        })
        .collect();
    assert_eq!(flips.len() as u64, FLIPS, "flips are missing");
    flips
}

/// What the probe draws into its buffer with this number.
pub(crate) fn drawn(number: u32, (width, height): (u32, u32)) -> Picture {
    let pixel = |x: u32, y: u32| [x + 85 * number, 2 * y + x / 256, x ^ y ^ (0x55 * number)];
    let rows = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y)));
    Picture { size: (width, height), rgb: rows.map(|part| part as u8).collect() }
}

/// Has the guest flip, and looks at what the host shows then: where `waited`, the last flip has ended with it.
fn flip_once(host: &Host, guest: &mut Guest, waited: bool) -> Vec<Flip> {
    guest.until("ready");
    let before = guest.said().len();
    guest.say("again");
    let done = guest.until("flips: done=");
    let done = words(&done);
    assert_eq!(done["done"].parse(), Ok(FLIPS));
    let number = |name: &str| done[name].parse::<u32>().unwrap();
    let expected = drawn(number("shown"), (number("width"), number("height")));
    let end = Instant::now() + PATIENCE;
    let different = loop {
        let picture = host.shown();
        assert_eq!(picture.size, expected.size);
        let different = picture.different(&expected);
        if different == 0 || waited || Instant::now() > end {
            break different;
        }
    };
    assert_eq!(different, 0, "pixels differ from the buffer shown last");
    guest.say("enough");
    flips(&guest.said()[before..].iter().map(String::as_str).collect::<Vec<_>>())
}

fn boot(bed: &Bed, host: &Host, folder: &std::path::Path) -> Guest {
    let machine = Machine {
        script: SCRIPT,
        programs: &["beamline-flip-probe"],
        devices: host.devices(),
        iommu: Iommu::None,
        words: "",
    };
    Guest::boot(bed, folder, &machine)
}

fn flips_follow_vblanks_at(test: &str, hz: u32) {
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = Host::start_as(&bed, folder.path(), hz, "display");
    let mut guest = boot(&bed, &host, folder.path());
    let mut runs = Vec::new();
    while runs.len() < TRIES {
        let found = verdict(&flip_once(&host, &mut guest, true));
        println!("{hz} Hz: {FLIPS} flips: {found:?}");
        assert_eq!(found.fast, [0; 0], "flips that came faster than vblanks");
        let whole = found.passed <= PASSED && found.given_up == 0;
        runs.push(found);
        if whole {
            break;
        }
    }
    let last = runs.last().expect("there was a run");
    assert!(last.passed <= PASSED && last.given_up == 0, "flips do not keep up: {runs:#?}");
    guest.until("ready");
    guest.say("no");
    let said = guest.finish();
    let done = said.iter().find(|line| line.starts_with("flips: done=")).expect("a run");
    assert_eq!(words(done)["mode_hz"], hz.to_string(), "the mode's rate is not the contract's");
    host.stop();
}

#[test]
fn page_flips_follow_vblanks_at_60_hz() {
    flips_follow_vblanks_at("page_flips_follow_vblanks_at_60_hz", 60);
}

#[test]
fn page_flips_follow_vblanks_at_90_hz() {
    flips_follow_vblanks_at("page_flips_follow_vblanks_at_90_hz", 90);
}

/// Where Linux asks for no fence nobody holds its flips up. So the judge above does see flips that are not paced.
#[test]
fn page_flips_beside_contexts_are_not_paced() {
    const TEST: &str = "page_flips_beside_contexts_are_not_paced";
    let Some(bed) = Bed::ready(TEST) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    // Slow, so that a flip of a processor in software is faster.
    let host = Host::start_as(&bed, folder.path(), 30, "render");
    let mut guest = boot(&bed, &host, folder.path());
    let found = verdict(&flip_once(&host, &mut guest, false));
    println!("30 Hz, profile render: {} of {FLIPS} flips are fast", found.fast.len());
    assert!(!found.fast.is_empty(), "no two flips came between vblanks: {found:?}");
    guest.until("ready");
    guest.say("no");
    guest.finish();
    host.stop();
}

#[test]
fn a_verdict_tells_fast_flips_from_lost_vblanks() {
    let of = |flips: &[(u64, u64)]| {
        verdict(&flips.iter().map(|&(took, vblank)| Flip { took, vblank }).collect::<Vec<_>>())
    };
    let found = |fast: &[usize], given_up, passed| Verdict { fast: fast.into(), given_up, passed };
    assert_eq!(of(&[(9, 7), (9, 8), (9, 9)]), found(&[], 0, 0));
    assert_eq!(of(&[(9, 7), (9, 9), (9, 10)]), found(&[], 0, 1));
    assert_eq!(of(&[(9, 7), (9, 7), (9, 8)]), found(&[2], 0, 0));
    // The kernel went on without its fence.
    assert_eq!(of(&[(9, 7), (50_001, 7), (9, 8)]), found(&[], 1, 0));
}
