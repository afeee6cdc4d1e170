//! Links the image freestanding when it is built as one; anywhere else the binary is an ordinary program
//! that says how to build the image, so that commands over the whole workspace keep working.

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo::rustc-check-cfg=cfg(freestanding)");
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !flags.contains("relocation-model=static") {
        return;
    }
    println!("cargo::rustc-cfg=freestanding");
    let script = concat!("-Wl,-T,", env!("CARGO_MANIFEST_DIR"), "/link.ld");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", script] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
