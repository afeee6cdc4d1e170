//! Page flips by the stock kernel's `virtio_gpu` on Beamline's own VMM, judged as those under QEMU are (`flips`).
//!
//! Both guests and the host share one processor in software.

use crate::bed::Bed;
use crate::console::bytes;
use crate::flips::{FLIPS, Flip, GIVES_UP, drawn, flips, verdict};
use crate::guest::Guest;
use crate::nested::{INIT, INNER, OUTER, config, share, start_with};
use crate::picture::Picture;
use crate::{turn, words};
use std::time::{Duration, Instant};

/// How often a run is repeated where the machine did not let the guest keep up.
const TRIES: usize = 10;
/// Flips that end at the very next vblank, in a run that counts. Not all of them, as under QEMU: what a vblank sets
/// going in the host, two kernels and the probe is all done by that one processor, and often not within a period where
/// the machine has other work. Flips that took two vblanks each would have none.
const PROMPT: usize = FLIPS as usize / 3;
/// Bounds the wait for a picture that no fence tells of.
const PATIENCE: Duration = Duration::from_mins(1);

/// A slice of the host, with the inner guest's first slot of its two.
struct Slice {
    name: &'static str,
    hz: u32,
    profile: &'static str,
    slot: u32,
}

/// Two whose flips are paced, and one whose flips are not. That one's vblanks are slow, so that flips are faster.
const SLICES: [Slice; 3] = [
    Slice { name: "sixty", hz: 60, profile: "display", slot: 1 },
    Slice { name: "ninety", hz: 90, profile: "display", slot: 3 },
    Slice { name: "free", hz: 30, profile: "render", slot: 5 },
];

impl Slice {
    /// Its section of the host's file.
    fn section(&self) -> String {
        let Self { name, hz, profile, .. } = self;
        format!(
            "[[slice]]\nname = \"{name}\"\nwidth = 640\nheight = 480\nprofile = \"{profile}\"\n\
             [slice.contract]\nrefresh_hz = \"{hz}\"\nclass = \"elastic\"\n\
             budget_ms = 2.0\nmax_job_ms = 2.0\n"
        )
    }

    /// Its functions in the guest's file.
    fn devices(&self) -> String {
        let device = |function| {
            let name = self.name;
            format!(
                "[[device]]\ntype = \"vfio-user\"\nsocket = \"/run/{name}-{function}.sock\"\n\
                 timeout_ms = 60000\n"
            )
        };
        device("pacer") + &device("gpu")
    }

    /// Where the inner guest has its pacer and its vGPU.
    fn addresses(&self) -> String {
        format!("0000:00:{:02x}.0 0000:00:{:02x}.0", self.slot, self.slot + 1)
    }
}

/// The probe on a card and a pacer for each line that names them.
const FLIP: &str = r#"
modprobe virtio_gpu
while echo ready && read -r pacer gpu && [ "$pacer" != off ]; do
    echo 1 >/sys/bus/pci/devices/$pacer/enable
    card=$(basename /sys/bus/pci/devices/$gpu/drm/card*)
    /beamline-flip-probe /dev/dri/$card $pacer FLIPS || echo flips: failed
done
poweroff -f
"#;

/// Runs host and guest. A line is either `look SLICE`, which is answered with a picture, or typed on the inner guest's
/// serial port.
const SERVE: &str = r#"
mkdir -p /run
beamline host /share/host.toml >/tmp/host 2>&1 &
host=$!
/share/beamline run --api /tmp/api/sock /share/linux.toml </dev/null &
vmm=$!
while read -r verb rest; do
    case $verb in
    look)
        beamline slice --host /run scanout $rest --out /tmp/now.png >/dev/null 2>&1
        echo "png: $(hexdump -v -e '1/1 "%02x"' /tmp/now.png)" ;;
    type)
        /share/beamline guest type --api /tmp/api/sock --serial --enter "$rest" </dev/null ;;
    end) break ;;
    esac
done
wait $vmm
echo "ended: status=$?"
killall beamline
wait $host
echo "left: $(ls /run | tr '\n' ' ')"
"#;

/// What a slice shows.
fn shown(guest: &mut Guest, slice: &Slice) -> Picture {
    guest.say(&format!("look {}", slice.name));
    let line = guest.until("png: ");
    Picture::parse(&bytes(&line["png: ".len()..]))
}

/// Has the guest flip, and looks at what the host shows then: where `waited`, the last flip has ended with it.
fn flip_once(guest: &mut Guest, slice: &Slice, waited: bool) -> Vec<Flip> {
    guest.until(&format!("{INNER}ready"));
    let before = guest.said().len();
    guest.say(&format!("type {}", slice.addresses()));
    let done = guest.until(&format!("{INNER}flips: done="));
    let done = words(&done[INNER.len()..]);
    let number = |name: &str| done[name].parse::<u32>().unwrap();
    assert_eq!(u64::from(number("done")), FLIPS);
    assert_eq!(number("mode_hz"), slice.hz, "the mode's rate is not the contract's");
    let expected = drawn(number("shown"), (number("width"), number("height")));
    let end = Instant::now() + PATIENCE;
    let different = loop {
        let different = shown(guest, slice).different(&expected);
        if different == 0 || waited || Instant::now() > end {
            break different;
        }
    };
    assert_eq!(different, 0, "pixels of {} differ from the buffer shown last", slice.name);
    guest.say("type enough");
    let lines = guest.said()[before..].iter().filter_map(|line| line.strip_prefix(INNER));
    flips(&lines.collect::<Vec<_>>())
}

/// Has the guest flip once; how many flips ended at the very next vblank.
///
/// # Panics
/// Where one came faster.
fn judged(guest: &mut Guest, slice: &Slice) -> usize {
    let flips = flip_once(guest, slice, true);
    let found = verdict(&flips);
    let pairs = flips.windows(2).filter(|pair| pair[1].took < GIVES_UP);
    let prompt = pairs.filter(|pair| pair[1].vblank == pair[0].vblank + 1).count();
    let mut took: Vec<u64> = flips.iter().map(|flip| flip.took).collect();
    took.sort_unstable();
    println!(
        "  {} Hz: {FLIPS} flips, {prompt} at the next vblank; {found:?}; each took {} µs (median), {} µs (most)",
        slice.hz,
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert_eq!(found.fast, [0; 0], "flips that came faster than vblanks");
    prompt
}

#[test]
fn page_flips_follow_vblanks_on_our_own_vmm() {
    let Some(bed) = Bed::ready("page_flips_follow_vblanks_on_our_own_vmm") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let sections: String = SLICES.iter().map(Slice::section).collect();
    let host = format!("run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n{sections}");
    let devices: String = SLICES.iter().map(Slice::devices).collect();
    // One CPU: the processor in software has one, too.
    let config = config("256M", &devices).replace("count = 2", "count = 1");
    let init = format!("{INIT}{}", FLIP.replace("FLIPS", &FLIPS.to_string()));
    let probe = ("beamline-flip-probe", bed.program("beamline-flip-probe"));
    let files = [("host.toml", &*host), ("linux.toml", &*config)];
    share(&bed, &folder.path().join("share"), &init, &[probe], &files);
    let mut guest = start_with(&bed, folder.path(), &format!("{OUTER}{SERVE}"), vec![]);

    let [sixty, ninety, free] = &SLICES;
    let mut runs = Vec::new();
    while runs.len() < TRIES && runs.last().is_none_or(|prompt| *prompt < PROMPT) {
        runs.push(judged(&mut guest, sixty));
    }
    assert!(runs.last().is_some_and(|prompt| *prompt >= PROMPT), "flips do not keep up: {runs:?}");
    // Here few may keep up, and none may come too soon.
    judged(&mut guest, ninety);
    // Where Linux asks for no fence nobody holds its flips up. So the judge above does see flips that are not paced.
    let found = verdict(&flip_once(&mut guest, free, false));
    println!("  {} Hz, not paced: {} of {FLIPS} flips are fast", free.hz, found.fast.len());
    assert!(!found.fast.is_empty(), "no two flips came between vblanks: {found:?}");

    guest.until(&format!("{INNER}ready"));
    guest.say("type off");
    guest.say("end");
    let said = guest.finish();
    assert!(said.iter().any(|line| line == "ended: status=0"), "{:?}", said.last());
    assert!(said.iter().any(|line| line.trim_end() == "left:"), "sockets have stayed");
}
