//! A TPM for a stock Linux kernel on Beamline's own VMM: swtpm in the outer guest emulates it, and the kernel's own
//! `tpm_crb` drives it. Commands go to `/dev/tpm0` as they are.

use crate::bed::Bed;
use crate::devices::hash;
use crate::nested::{INIT, config, inner, put, run, share};
use crate::{firmware, turn, words};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Starts the emulator in the outer guest, and waits until it listens. It does not end with its first guest.
const EMULATOR: &str = r"
mkdir /tmp/tpm
/share/tpm/ld.so --library-path /share/tpm /share/tpm/swtpm socket --tpm2 --tpmstate dir=/tmp/tpm \
    --ctrl type=unixio,path=/tmp/tpm.sock &
emulator=$!
until [ -S /tmp/tpm.sock ]; do kill -0 $emulator || exit 1; sleep 0.1; done
";
const SECTION: &str = "[tpm]\nsocket = \"/tmp/tpm.sock\"\n";

/// Where a guest's commands are in its initrd: an archive without folders.
const RANDOM: &str = "random.tpm";
const EXTEND: &str = "extend.tpm";
const DEFINE: &str = "define.tpm";
const WRITE: &str = "write.tpm";
const READ: &str = "read.tpm";

/// Handles and an attribute (TPM 2.0 Library, part 2, sections 7 and 13).
const PCR: u32 = 16;
const OWNER: u32 = 0x4000_0001;
const INDEX: u32 = 0x0150_0001;
/// The owner writes it and reads it.
const OWNED: u32 = 1 << 1 | 1 << 17;
const SHA256: u16 = 0x000b;

/// What the PCR is extended with, and what the index keeps.
const DIGEST: [u8; 32] = [0x5a; 32];
const KEPT: [u8; 8] = *b"beamline";

/// A command for `handles`, which an empty password authorises (part 1, section 18).
fn command(code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let handles: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    let session = [&[0, 0, 0, 9][..], &0x4000_0009u32.to_be_bytes(), &[0; 5]].concat();
    let body = [&code.to_be_bytes()[..], &handles, &session, parameters].concat();
    [&[0x80, 2][..], &(6 + body.len() as u32).to_be_bytes(), &body].concat()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// The commands (part 3, sections 16, 22 and 31).
fn commands() -> [(&'static str, Vec<u8>); 5] {
    let algorithm = SHA256.to_be_bytes();
    let digests = [&1u32.to_be_bytes()[..], &algorithm, &DIGEST].concat();
    let size = (KEPT.len() as u16).to_be_bytes();
    let public =
        [&INDEX.to_be_bytes()[..], &algorithm, &OWNED.to_be_bytes(), &sized(&[]), &size].concat();
    let offset = [0; 2];
    [
        (RANDOM, vec![0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16]),
        (EXTEND, command(0x182, &[PCR], &digests)),
        (DEFINE, command(0x12a, &[OWNER], &[sized(&[]), sized(&public)].concat())),
        (WRITE, command(0x137, &[OWNER, INDEX], &[&sized(&KEPT)[..], &offset].concat())),
        (READ, command(0x14e, &[OWNER, INDEX], &[size, offset].concat())),
    ]
}

/// The emulator with its libraries and what loads them, of the bed's own Debian, in `into`.
fn put_emulator(bed: &Bed, into: &Path) {
    std::fs::create_dir(into).unwrap();
    let program = "usr/bin/swtpm";
    put(&bed.debian(program), &into.join("swtpm"));
    put(&bed.debian("lib64/ld-linux-x86-64.so.2"), &into.join("ld.so"));
    let libraries = "usr/lib/x86_64-linux-gnu";
    let path = [libraries.to_owned(), format!("{libraries}/swtpm")];
    let path = path.map(|p| bed.debian(&p).display().to_string()).join(":");
    let mut list = std::process::Command::new(bed.debian("lib64/ld-linux-x86-64.so.2"));
    let list = list.arg("--library-path").arg(path).arg("--list").arg(bed.debian(program));
    let said = list.output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success() && !text.contains("not found"), "{text}");
    let paths =
        text.lines().filter_map(|line| line.split_once(" => ")?.1.split_whitespace().next());
    for library in paths.map(PathBuf::from) {
        put(&library, &into.join(library.file_name().expect("a library has a name")));
    }
}

/// How a guest sends a command and shows its answer, and what it says of its TPM.
const ASK: &str = r#"
ask() { dd if=/$1.tpm bs=4096 count=1 2>/dev/null >&3 && dd bs=4096 count=1 2>/dev/null <&3 | hexdump -v -e '1/1 "%02x"'; }
tpm=/sys/class/tpm/tpm0
echo "tpm: version=$(cat $tpm/tpm_version_major) driver=$(basename $(readlink $tpm/device/driver))" \
    "zero=$(cat $tpm/pcr-sha256/0) pcr=$(cat $tpm/pcr-sha256/16)"
exec 3<>/dev/tpm0
"#;

/// The words of the inner guest's lines that start so: one map a line.
fn lines<'a>(said: &'a [String], start: &str) -> Vec<HashMap<&'a str, &'a str>> {
    inner(said, start).into_iter().map(words).collect()
}

/// The response code of an answer.
fn code(answer: &str) -> u32 {
    u32::from_str_radix(&answer[12..20], 16).unwrap()
}

/// What the kernel says where a command took longer than it waits: 0.75 s for an extend. In the emulated machine that
/// is a matter of what else the machine does.
const SLOW: &str = "tpm0: Operation Timed out";
/// How often a run may be repeated for that.
const TRIES: usize = 5;

/// What both guests say of the inner guest's two lives, and the folder of the run. In the first life it makes the
/// index and reboots; in the second it reads it, and then loses its TPM.
fn two_lives(bed: &Bed) -> (tempfile::TempDir, Vec<String>) {
    let init = format!(
        r#"{INIT}{ASK}
echo "random: one=$(ask random) two=$(ask random)"
echo "extend: answer=$(ask extend) pcr=$(cat $tpm/pcr-sha256/16)"
kept=$(ask read)
echo "kept: answer=$kept"
if [ $(echo $kept | cut -c 13-20) != 00000000 ]; then
    echo "made: define=$(ask define) write=$(ask write)"
    reboot -f
fi
echo "tables: $(ls /sys/firmware/acpi/tables | tr '\n' ' ')"
echo "last: answer=$(ask random)"
for n in $(seq 300); do
    ask random >/dev/null || break
    sleep 0.1
done
echo "lost: times=$n"
poweroff -f
"#
    );
    let config = config("256M", SECTION).replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    let script = format!(
        "{EMULATOR}\
         (beamline run /share/linux.toml 2>&1; echo ended: status=$?) | tee /tmp/said &\n\
         said=$!\n\
         until grep -qs 'last: ' /tmp/said; do kill -0 $said || break; sleep 0.2; done\n\
         kill -9 $emulator\n\
         wait $said\n"
    );
    for n in 1..=TRIES {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("share");
        share(bed, &shared, &init, &commands(), &[("linux.toml", &config)]);
        put_emulator(bed, &shared.join("tpm"));
        let said = run(bed, folder.path(), &script);
        // Those while it boots are of the kernel's own self test.
        let mut up = false;
        let slow = said.iter().any(|line| {
            up = (up || line.contains("tpm: version=")) && !line.contains("reboot: ");
            up && line.contains(SLOW)
        });
        if !slow {
            return (folder, said);
        }
        println!("run {n}: {SLOW}: again");
    }
    panic!("commands took too long in {TRIES} runs: the machine is too busy")
}

#[test]
fn a_stock_kernel_uses_its_tpm_which_keeps_its_state() {
    let Some(bed) = Bed::ready("a_stock_kernel_uses_its_tpm_which_keeps_its_state") else { return };
    let _turn = turn();
    let (folder, said) = two_lives(&bed);
    let seen = lines(&said, "tpm: ");
    assert_eq!(seen.len(), 2, "two lives: {said:#?}");
    let zeros = "0".repeat(64);
    for tpm in &seen {
        assert_eq!((tpm["version"], tpm["driver"]), ("2", "tpm_crb"));
        // Without firmware nobody measures, and each life has its TPM switched on anew.
        assert_eq!((tpm["zero"], tpm["pcr"]), (&*zeros, &*zeros));
    }
    let random = lines(&said, "random: ");
    let mut all: Vec<&str> = random.iter().flat_map(|r| [r["one"], r["two"]]).collect();
    assert!(all.iter().all(|answer| answer.len() == 56 && code(answer) == 0), "{all:?}");
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4, "different bytes each time");

    // A PCR's new value is the hash of the old one and the digest.
    let both = folder.path().join("extended");
    std::fs::write(&both, [[0; 32], DIGEST].concat()).unwrap();
    let expected = hash(&both).to_uppercase();
    let extended = lines(&said, "extend: ");
    assert_eq!(extended.len(), 2);
    for e in &extended {
        assert_eq!((code(e["answer"]), e["pcr"]), (0, &*expected));
    }

    let kept = lines(&said, "kept: ");
    assert_ne!(code(kept[0]["answer"]), 0, "there is no index at first");
    let made = lines(&said, "made: ");
    assert_eq!(made.len(), 1);
    assert_eq!((code(made[0]["define"]), code(made[0]["write"])), (0, 0), "{made:?}");
    assert_eq!(code(kept[1]["answer"]), 0);
    let bytes = format!("{:04x}{:016x}", KEPT.len(), u64::from_be_bytes(KEPT));
    assert!(kept[1]["answer"].contains(&bytes), "{kept:?}");

    assert!(inner(&said, "tables: ").iter().any(|t| t.contains("TPM2")), "{said:#?}");
    // An emulator that ends is a TPM that fails, and no more: the guest switches itself off.
    let lost = lines(&said, "lost: ");
    assert!(lost[0]["times"].parse::<u32>().unwrap() < 300, "{lost:?}");
    let warnings = said.iter().filter(|line| line.contains("the TPM has failed")).count();
    assert_eq!(warnings, 1, "{said:#?}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}

#[test]
fn firmware_measures_into_the_tpm() {
    let Some(bed) = Bed::ready("firmware_measures_into_the_tpm") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("share");
    let init = format!(
        r#"{INIT}{ASK}
mount -t securityfs securityfs /sys/kernel/security
echo "log: bytes=$(wc -c </sys/kernel/security/tpm0/binary_bios_measurements)"
echo "tables: $(ls /sys/firmware/acpi/tables | tr '\n' ' ')"
poweroff -f
"#
    );
    let config = format!("{}{SECTION}", firmware::CONFIG);
    share(&bed, &shared, &init, &[], &[("efi.toml", &config)]);
    put_emulator(&bed, &shared.join("tpm"));
    firmware::prepare(&bed, folder.path(), firmware::LINUX, &["vmlinuz", "initrd"]);
    let script =
        format!("{EMULATOR}beamline run /share/efi.toml\necho ended: status=$?\nkill $emulator\n");
    let said = firmware::run(&bed, folder.path(), &script);
    let tpm = lines(&said, "tpm: ");
    assert_eq!((tpm[0]["version"], tpm[0]["driver"]), ("2", "tpm_crb"));
    // The firmware's own code is measured into the first PCR, and nothing into the one for debugging.
    let zeros = "0".repeat(64);
    assert_ne!(tpm[0]["zero"], zeros, "{said:#?}");
    assert_eq!(tpm[0]["pcr"], zeros);
    let bytes: u64 = lines(&said, "log: ")[0]["bytes"].parse().unwrap();
    assert!(bytes > 1000, "the loader passes the firmware's log on: {bytes}");
    assert!(inner(&said, "tables: ").iter().any(|t| t.contains("TPM2")), "{said:#?}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
