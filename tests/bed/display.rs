//! The stock kernel's `virtio_gpu` on the vGPU: a text console, compared with the same on QEMU's own device.

use crate::bed::Bed;
use crate::guest::{Guest, Iommu, Machine};
use crate::host::Host;
use crate::picture::Picture;
use crate::sockets::screendump;
use crate::{turn, words};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The slice's size.
const SIZE: (u32, u32) = (640, 480);
/// Bounds the wait for the picture.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks: a driver's console has no event that says when it has been drawn.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Loads the driver and writes to its console.
pub(crate) const DRAW: &str = r"
modprobe virtio_gpu || exit
for fb in /sys/class/graphics/fb[0-9]*; do
    echo display: name=$(cat $fb/name) size=$(cat $fb/virtual_size)
done
for connector in /sys/class/drm/card*-*; do
    echo connector: status=$(cat $connector/status) mode=$(head -n 1 $connector/modes) \
        edid=$(wc -c <$connector/edid)
done
{
    printf '\033[?25l\033[2J\033[3J\033[H'
    line=1
    while [ $line -le 20 ]; do
        printf 'line %d: \033[3%dmthe quick brown fox\033[0m jumps over the lazy dog\r\n' \
            $line $((line % 8))
        line=$((line + 1))
    done
} >/dev/tty1
dmesg | grep 'virtio_gpu.*ERROR.*response' | sed 's/^/driver: /'
dmesg | grep -c 'virtio_gpu.*ERROR.*response' | sed 's/^/refused: /'
echo shown
";

/// Draws, and holds the picture until a line comes.
fn script() -> String {
    format!("{DRAW}read -r _\n")
}

/// The picture of [`draw_reference`].
pub(crate) fn reference(bed: &Bed) -> &'static Picture {
    static DRAWN: OnceLock<Picture> = OnceLock::new();
    DRAWN.get_or_init(|| draw_reference(bed))
}

/// What QEMU's own device shows of the same console, once two looks saw the same.
fn draw_reference(bed: &Bed) -> Picture {
    let folder = tempfile::tempdir().unwrap();
    let (width, height) = SIZE;
    let machine = Machine {
        script: &script(),
        programs: &[],
        devices: vec![format!("virtio-gpu-pci,bus=pcie.0,addr=5,xres={width},yres={height}")],
        iommu: Iommu::None,
        words: "",
    };
    let mut guest = Guest::boot(bed, folder.path(), &machine);
    guest.until("shown");
    let file = folder.path().join("screen.png");
    let look = || {
        screendump(&guest.qmp(), &file);
        Picture::parse(&std::fs::read(&file).unwrap())
    };
    let end = Instant::now() + PATIENCE;
    let mut picture = look();
    loop {
        std::thread::sleep(LOOK);
        let next = look();
        if next.lit() > 0 && next == picture {
            break;
        }
        picture = next;
        assert!(Instant::now() < end, "QEMU's own display comes to no rest");
    }
    guest.say("enough");
    guest.finish();
    picture
}

#[test]
fn the_stock_driver_shows_its_console() {
    let Some(bed) = Bed::ready("the_stock_driver_shows_its_console") else { return };
    let _turn = turn();
    console(&bed, "display", &[]);
}

/// Where contexts are offered, Linux makes one of a kind that is not ours, and does without it.
#[test]
fn the_stock_driver_shows_its_console_beside_contexts() {
    let Some(bed) = Bed::ready("the_stock_driver_shows_its_console_beside_contexts") else {
        return;
    };
    let _turn = turn();
    console(&bed, "render", &["(command 0x200)", "(command 0x202)", "(command 0x203)"]);
}

/// Compares the console on a slice of this profile with that on QEMU's own device. `refused`: the commands of the
/// driver that are.
fn console(bed: &Bed, profile: &str, refused: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::start_as(bed, folder.path(), 60, profile);
    let machine = Machine {
        script: &script(),
        programs: &[],
        devices: host.devices(),
        iommu: Iommu::None,
        words: "",
    };
    let mut guest = Guest::boot(bed, folder.path(), &machine);
    let count = guest.until("refused: ");
    guest.until("shown");
    assert_eq!(count, format!("refused: {}", refused.len()), "refused to the stock driver");
    let expected = reference(bed);
    let end = Instant::now() + PATIENCE;
    let (picture, different) = loop {
        let picture = host.shown();
        assert_eq!(picture.size, expected.size);
        let different = picture.different(expected);
        if different == 0 || Instant::now() > end {
            break (picture, different);
        }
        std::thread::sleep(LOOK);
    };
    assert_eq!(different, 0, "pixels differ; {} of ours are lit", picture.lit());
    guest.say("enough");
    let said = guest.finish();
    let told: Vec<&String> = said.iter().filter(|line| line.starts_with("driver: ")).collect();
    assert!(refused.iter().zip(&told).all(|(which, line)| line.contains(which)), "{told:?}");
    let connector = said.iter().find(|line| line.starts_with("connector: ")).expect("a connector");
    let connector = words(connector);
    assert_eq!(connector["status"], "connected");
    assert_eq!(connector["mode"], format!("{}x{}", SIZE.0, SIZE.1));
    assert_ne!(connector["edid"], "0", "the display has no EDID");
    host.stop();
}

/// What the comparison rests on: the script draws, and the same twice.
#[test]
fn the_console_to_compare_with_is_always_the_same() {
    let Some(bed) = Bed::ready("the_console_to_compare_with_is_always_the_same") else { return };
    let _turn = turn();
    let (one, two) = (reference(&bed), draw_reference(&bed));
    assert_eq!(one.size, SIZE);
    assert!(one.lit() > 1000, "{} pixels are lit", one.lit());
    assert_eq!(one.different(&two), 0);
}
