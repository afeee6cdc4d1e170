//! Every input that the fuzzer found worth keeping, once more: without instrumentation, in milliseconds.

use std::path::Path;

/// One test, because some targets look at the process's descriptors and must run alone.
#[test]
fn nothing_in_the_corpora_breaks_a_promise() {
    for target in beamline_fuzz::TARGETS {
        // No input, and the shortest ones.
        (target.run)(&[]);
        (0..=u8::MAX).for_each(|byte| (target.run)(&[byte]));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("a folder can be listed").path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        for file in &files {
            println!("{}", file.display());
            (target.run)(&std::fs::read(file).expect("a file can be read"));
        }
    }
}
