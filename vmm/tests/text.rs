//! In a process of its own: other tests would use their code meanwhile.

/// KiB of this program's code that are mapped.
fn mapped() -> u64 {
    let program = std::env::current_exe().unwrap();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_code = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [range, rights, _, _, _, name] if range.contains('-') => {
                is_code = rights == "r-xp" && name == program.to_str().unwrap();
            }
            ["Rss:", kib, _] if is_code => sum += kib.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    sum
}

#[test]
fn code_of_the_start_is_given_back_and_comes_again() {
    // Code of some size that runs before and after.
    let config = || beamline_vmm::Config::parse("[guest]", std::path::Path::new("/")).is_err();
    assert!(config());
    let before = mapped();
    beamline_vmm::text::forget_start();
    let after = mapped();
    assert!(after < before, "{after} of {before} KiB are still there");
    assert!(config());
}
