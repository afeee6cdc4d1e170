use super::*;
use std::time::Duration;

const GOOD: &str = r#"
[guest]
name = "vr"
image = "images/guest"
cmdline = "scene=vr cost=100"
[memory]
size = "32M"
[vcpus]
count = 1
cpus = [0]
[[device]]
type = "vfio-user"
socket = "run/vr-pacer.sock"
[[device]]
type = "vfio-user"
socket = "/run/vr-gpu.sock"
timeout_ms = 20
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("etc/vr.toml"))
}

fn message(text: &str) -> String {
    parse(text).expect_err("the file is wrong").to_string()
}

fn image(config: &Config) -> &Image {
    match &config.guest.boot {
        Boot::Image(image) => image,
        Boot::Firmware(firmware) => panic!("{firmware:?}"),
    }
}

#[test]
fn a_good_file() {
    let c = parse(GOOD).unwrap();
    let image = image(&c);
    assert_eq!(image.path, Path::new("etc/images/guest"));
    assert_eq!((&image.initrd, &image.cmdline[..]), (&None, "scene=vr cost=100"));
    assert_eq!(c.memory.size, 32 << 20);
    assert_eq!((c.vcpus.count, &c.vcpus.cpus[..]), (1, &[0][..]));
    assert_eq!(c.guest.on_reset, OnReset::End);
    assert_eq!(
        c.devices,
        [
            Device::VfioUser(VfioUserDevice {
                socket: "etc/run/vr-pacer.sock".into(),
                timeout: Duration::from_secs(5)
            }),
            Device::VfioUser(VfioUserDevice {
                socket: "/run/vr-gpu.sock".into(),
                timeout: Duration::from_millis(20)
            }),
        ]
    );
}

#[test]
fn what_the_ram_is_made_of() {
    let with = |size: &str, more: &str| {
        GOOD.replacen("size = \"32M\"", &format!("size = \"{size}\"\n{more}"), 1)
    };
    let memory = |size: &str, more: &str| parse(&with(size, more)).unwrap().memory;
    let plain = Memory {
        size: 32 << 20,
        hugepages: None,
        transparent: false,
        prefault: false,
        host_nodes: vec![],
    };
    assert_eq!(memory("32M", ""), plain);
    let huge = memory("4G", "hugepages = \"1G\"\nprefault = true\nhost_nodes = [0, 3]");
    assert_eq!(huge.hugepages.map(HugePages::bytes), Some(1 << 30));
    assert_eq!((huge.prefault, &huge.host_nodes[..]), (true, &[0, 3][..]));
    assert!(!memory("32M", "hugepages = \"2M\"").prefault);
    let made = Memory { transparent: true, ..plain };
    assert_eq!(memory("32M", "hugepages = \"transparent\""), made);
    assert!(
        memory("32M", "hugepages = \"2M\"\nhost_nodes = [0]").prefault,
        "nothing else reserves them"
    );
    for (size, more, part) in [
        ("32M", "hugepages = \"1G\"", "memory.size"),
        ("32M", "hugepages = \"4K\"", "\"2M\", \"1G\" or"),
        ("32M", "host_nodes = [1024]", "names node 1024"),
        ("32M", "hugepages = \"2M\"\nhost_nodes = [0]\nprefault = false", "memory.prefault"),
        ("32M", "prefalt = true", "prefalt"),
    ] {
        let text = message(&with(size, more));
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let ahead = GOOD.replacen("count = 1", "count = 1\ntsc_offset = -1_000_000", 1);
    assert_eq!(parse(&ahead).unwrap().vcpus.tsc_offset, Some(-1_000_000));
    let polled = GOOD.replacen("count = 1", "count = 1\nhalt_poll_us = 200", 1);
    assert_eq!(parse(&polled).unwrap().vcpus.halt_poll_us, Some(200));
    assert!(message(&polled.replacen("200", "10001", 1)).contains("vcpus.halt_poll_us: is 10001"));
}

#[test]
fn vcpus_of_real_time_priority_have_a_cpu_each() {
    let with = |keys: &str| parse(&GOOD.replacen("count = 1\ncpus = [0]", keys, 1)).unwrap().vcpus;
    assert_eq!(with("").realtime, None);
    assert_eq!(with("realtime = 4\ncpus = [3]").realtime, Some(4));
    assert_eq!(with("realtime = 1\ncount = 2\ncpus = [3, 4, 5]").cpus, [3, 4, 5]);
}

#[test]
fn a_linux_guest() {
    let more = "[guest]\ninitrd = \"initrd.img\"\non_reset = \"reboot\"";
    let text = GOOD.replacen("[guest]", more, 1).replacen("count = 1", "count = 2", 1);
    let c = parse(&text.replacen("32M", "8G", 1)).unwrap();
    assert_eq!(image(&c).initrd.as_deref(), Some(Path::new("etc/initrd.img")));
    assert_eq!((c.guest.on_reset, c.vcpus.count), (OnReset::Reboot, 2));
    assert_eq!(c.memory.size, 8 << 30);
}

/// The good file with `keys` in place of its image and command line.
fn booting(keys: &str) -> String {
    GOOD.replacen("image = \"images/guest\"\ncmdline = \"scene=vr cost=100\"", keys, 1)
}

#[test]
fn a_guest_with_firmware() {
    let c = parse(&booting("firmware = \"/usr/code.fd\"\nvariables = \"vars.fd\"")).unwrap();
    let (code, variables) = ("/usr/code.fd".into(), "etc/vars.fd".into());
    assert_eq!(c.guest.boot, Boot::Firmware(Firmware { code, variables }));
}

#[test]
fn a_guest_boots_either_an_image_or_firmware() {
    let both = "firmware = \"f\"\nvariables = \"v\"\n";
    for (keys, key, remedy) in [
        ("", "guest.image", "guest.firmware and guest.variables"),
        ("image = \"i\"\nfirmware = \"f\"", "guest.firmware", "leave guest.image or"),
        ("image = \"i\"\nvariables = \"v\"", "guest.variables", "leave it out"),
        ("firmware = \"f\"", "guest.variables", "own copy"),
        ("firmware = \"\"\nvariables = \"v\"", "guest.firmware", "OVMF_CODE_4M.fd"),
        ("firmware = \"f\"\nvariables = \"\"", "guest.variables", "OVMF_VARS_4M.fd"),
        (&format!("{both}initrd = \"i\""), "guest.initrd", "belongs to guest.image"),
        (&format!("{both}cmdline = \"\""), "guest.cmdline", "belongs to guest.image"),
    ] {
        let m = message(&booting(keys));
        assert!(m.starts_with(&format!("etc/vr.toml: {key}: ")), "{m}");
        assert!(m.contains(remedy), "{m}");
    }
}

#[test]
fn each_wrong_value_names_file_key_and_remedy() {
    for (from, to, key, remedy) in [
        ("\"vr\"", "\"v r\"", "guest.name", "letters"),
        ("\"vr\"", "\"\"", "guest.name", "letters"),
        ("images/guest", "", "guest.image", "PVH"),
        ("cost=100", "\\u0000", "guest.cmdline", "NUL"),
        ("32M", "32X", "memory.size", "\"32M\""),
        ("32M", "3M", "memory.size", "multiple of 2M"),
        ("32M", "0M", "memory.size", "too small"),
        ("32M", "257G", "memory.size", "too large"),
        ("32M", "99999999999999999999G", "memory.size", "not a size"),
        ("32M", "é", "memory.size", "not a size"),
        ("count = 1", "count = 0", "vcpus.count", "1 to 64"),
        ("count = 1", "count = 65", "vcpus.count", "1 to 64"),
        ("cmdline", "initrd = \"\"\ncmdline", "guest.initrd", "leave the key out"),
        ("[0]", "[]", "vcpus.cpus", "at least one"),
        ("[0]", "[1024]", "vcpus.cpus", "0 to 1023"),
        ("count = 1", "nice = -21", "vcpus.nice", "-20"),
        ("count = 1", "slice_us = 99", "vcpus.slice_us", "100 to"),
        ("count = 1", "realtime = 0", "vcpus.realtime", "1 to 4"),
        ("count = 1", "realtime = 5", "vcpus.realtime", "below what serves"),
        ("count = 1", "realtime = 1\nnice = 1", "vcpus.realtime", "vcpus.nice"),
        ("count = 1", "realtime = 1\nslice_us = 100", "vcpus.realtime", "vcpus.slice_us"),
        ("count = 1", "realtime = 1\ncount = 2", "vcpus.realtime", "of the 2 vCPUs"),
        ("count = 1\ncpus = [0]", "realtime = 1", "vcpus.realtime", "names 0"),
        (
            "count = 1\ncpus = [0]",
            "realtime = 1\ncount = 2\ncpus = [1, 1]",
            "vcpus.realtime",
            "names 1",
        ),
        ("run/vr-pacer.sock", "", "device[0].socket", "path"),
        ("= 20", "= 9999999", "device[1].timeout_ms", "600000"),
        ("/run/vr-gpu.sock", "run/vr-pacer.sock", "device[1].socket", "one guest"),
        ("[memory]", "[api]\nsocket = \"\"\n[memory]", "api.socket", "leave [api] out"),
        ("[memory]", "[tpm]\nsocket = \"\"\n[memory]", "tpm.socket", "leave [tpm] out"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from} is in the file");
        let m = message(&text);
        assert!(m.starts_with(&format!("etc/vr.toml: {key}: ")), "{m}");
        assert!(m.contains(remedy), "{m}");
    }
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    let m = message(&GOOD.replace("count", "cuont"));
    assert!(m.contains("line 9") && m.contains("cuont"), "{m}");
    let m = message(&GOOD.replacen("vfio-user", "usb", 1));
    assert!(m.contains("usb") && m.contains("vfio-user"), "{m}");
    let m = message(&GOOD.replace("timeout_ms", "timout"));
    assert!(m.contains("timout"), "{m}");
    assert!(message("").contains("guest"));
}

#[test]
fn too_many_devices_are_refused() {
    let more = "[[device]]\ntype = \"vfio-user\"\nsocket = \"s\"\n".repeat(30);
    assert!(message(&format!("{GOOD}{more}")).contains("room for 31"));
}

#[test]
fn a_tpms_socket_is_relative_to_the_files_folder() {
    let with = |keys: &str| GOOD.replace("[memory]", &format!("[tpm]\n{keys}\n[memory]"));
    assert_eq!(parse(GOOD).unwrap().tpm, None);
    let tpm = parse(&with("socket = \"tpm.sock\"")).unwrap().tpm;
    assert_eq!(tpm, Some(Tpm { socket: "etc/tpm.sock".into() }));
    let long = format!("socket = \"{}\"", "x".repeat(108));
    assert!(message(&with(&long)).contains("tpm.socket: "));
    assert!(message(&with("")).contains("socket"));
    assert!(message(&with("socket = \"a\"\nversion = 2")).contains("version"));
}

#[test]
fn an_api_socket_is_relative_to_the_files_folder() {
    let with =
        |socket: &str| GOOD.replace("[memory]", &format!("[api]\nsocket = \"{socket}\"\n[memory]"));
    assert_eq!(parse(GOOD).unwrap().api, None);
    assert_eq!(parse(&with("vr.sock")).unwrap().api, Some(Api { socket: "etc/vr.sock".into() }));
    assert!(message(&with(&"x".repeat(108))).contains("api.socket: "));
}

#[test]
fn an_iommu_takes_a_slot() {
    assert!(!parse(GOOD).unwrap().iommu.enabled);
    let with = |devices: usize| {
        let device = "[[device]]\ntype = \"virtio-rng\"\n".repeat(devices);
        format!(
            "[guest]\nname = \"vr\"\nimage = \"i\"\n[memory]\nsize = \"32M\"\n\
             [iommu]\nenabled = true\n{device}"
        )
    };
    assert!(parse(&with(30)).unwrap().iommu.enabled);
    let text = message(&with(31));
    assert!(text.contains("iommu.enabled") && text.contains("30 devices"), "{text}");
    assert!(message(&with(1).replace("enabled", "on")).contains("on"));
}

#[test]
fn a_balloon_takes_no_pages_of_the_pools() {
    let with = |pages: &str| {
        GOOD.replace("[memory]", &format!("[memory]\nhugepages = \"{pages}\""))
            + "\n[[device]]\ntype = \"virtio-balloon\"\n"
    };
    let text = message(&with("2M"));
    assert!(text.contains("].type: ") && text.contains("transparent"), "{text}");
    assert!(parse(&with("transparent")).is_ok());
}
