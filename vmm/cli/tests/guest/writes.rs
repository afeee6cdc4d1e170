//! How much of its memory a guest writes.

use super::*;

/// Writes to three pages, for ever: mov [0x20_0000], eax; mov [0x20_1ffc], eax; mov [0x3f_f000], eax; out 0x80, al; jmp
/// to the first.
const WRITES: [u8; 19] = [
    0xa3, 0x00, 0x00, 0x20, 0x00, 0xa3, 0xfc, 0x1f, 0x20, 0x00, 0xa3, 0x00, 0xf0, 0x3f, 0x00, 0xe6,
    0x80, 0xeb, 0xed,
];

#[test]
fn the_pages_that_a_guest_writes_are_counted() {
    let test = "the_pages_that_a_guest_writes_are_counted";
    if !kvm_or_skip(test) {
        return;
    }
    let folder = folder_with(GUEST);
    let folder = folder.path();
    std::fs::write(folder.join("image"), elf(0x10_0000, &WRITES)).unwrap();
    let guest = Running::start(&[], folder);
    while io_exits(folder) == 0 {}
    let out = output(&["guest", "--json", "--api", SOCKET, "writes"], folder);
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    if told["error"].as_str().is_some_and(|e| e.contains("KVM_MEM_LOG_DIRTY_PAGES")) {
        println!("skip: {test}: {}", told["error"]);
        return;
    }
    assert_eq!((&told["pages"], &told["bytes"]), (&3.into(), &(3 * 4096).into()), "{told}");
    assert_eq!(asked(&["pause"], folder)["state"], "paused");
    assert_eq!(asked(&["writes"], folder)["pages"], 0, "a log of its own each time");
    let (status, answer) = send(folder, "POST", "/v1/guest/writes", "{\"for_ms\":10001}");
    assert_eq!((status, &answer["where"]), (422, &"for_ms".into()), "{answer}");
    asked(&["stop"], folder);
    assert_eq!(guest.ends().0, Some(0));
}
