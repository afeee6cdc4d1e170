//! libFuzzer on the target that BEAMLINE_FUZZ_TARGET names: `make fuzz` runs it.
#![no_main]

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

static TARGET: LazyLock<beamline_fuzz::Target> = LazyLock::new(|| {
    // A peer that is gone is an error to handle, as where Rust's own start has this signal ignored.
    let noticed = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGPIPE, noticed).expect("it can be caught");
    let name = std::env::var("BEAMLINE_FUZZ_TARGET").unwrap_or_default();
    beamline_fuzz::target(&name).unwrap_or_else(|| {
        let names = beamline_fuzz::TARGETS.map(|target| target.name);
        eprintln!("BEAMLINE_FUZZ_TARGET is {name:?}; it names one of {names:?}");
        std::process::exit(2);
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
