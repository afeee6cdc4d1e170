//! The text console of a Linux guest on our own VMM, as a picture: the same pixels as on QEMU's own device.

use crate::bed::Bed;
use crate::display::{DRAW, LOOK, PATIENCE, reference};
use crate::nested::{INIT, INNER, OUTER, config, share, start_with};
use crate::picture::Picture;
use crate::turn;
use std::time::Instant;

const HOST: &str = "run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n\
    [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"display\"\n\
    [slice.contract]\nrefresh_hz = \"60\"\nclass = \"elastic\"\nbudget_ms = 2.0\nmax_job_ms = 2.0\n";

const DEVICE: &str =
    "[[device]]\ntype = \"vfio-user\"\nsocket = \"/run/one-gpu.sock\"\ntimeout_ms = 60000\n";

/// Runs host and guest; a picture by the guest's API and its host for every line `look`. Any other line ends the guest, as Ctrl-C does.
const SHOW: &str = r#"
mkdir -p /run
beamline host /share/host.toml &
host=$!
/share/beamline run --api /tmp/guest/api.sock /share/linux.toml </dev/null &
vmm=$!
while read -r word && [ "$word" = look ]; do
    rm -f /tmp/now.png
    beamline guest screenshot --api /tmp/guest/api.sock --out /tmp/now.png >/dev/null
    echo "png: $(hexdump -v -e '1/1 "%02x"' /tmp/now.png)"
done
kill -INT $vmm
wait $vmm
echo "ended: status=$?"
killall beamline
wait $host
echo "left: $(ls /run /tmp/guest/ | grep -v : | tr '\n' ' ')"
"#;

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn our_own_vmms_guest_shows_its_console() {
    let Some(bed) = Bed::ready("our_own_vmms_guest_shows_its_console") else { return };
    let _turn = turn();
    let expected = reference(&bed);
    let folder = tempfile::tempdir().unwrap();
    // The picture stays until the guest is ended.
    let init = format!("{INIT}{DRAW}while true; do sleep 1000; done\n");
    let files = [("host.toml", HOST), ("linux.toml", &config("256M", DEVICE))];
    share(&bed, &folder.path().join("share"), &init, &[], &files);
    let mut guest = start_with(&bed, folder.path(), &format!("{OUTER}{SHOW}"), vec![]);
    guest.until(&format!("{INNER}refused: 0"));
    guest.until(&format!("{INNER}shown"));
    let end = Instant::now() + PATIENCE;
    let (picture, different) = loop {
        guest.say("look");
        let line = guest.until("png: ");
        let picture = Picture::parse(&bytes(&line["png: ".len()..]));
        assert_eq!(picture.size, expected.size);
        let different = picture.different(expected);
        if different == 0 || Instant::now() > end {
            break (picture, different);
        }
        std::thread::sleep(LOOK);
    };
    guest.say("enough");
    let said = guest.finish();
    assert_eq!(different, 0, "pixels differ; {} of ours are lit", picture.lit());
    assert!(said.iter().any(|line| line == "ended: status=0"), "{:?}", said.last());
    assert!(said.iter().any(|line| line.trim_end() == "left:"), "sockets have stayed");
}
