//! A plugin of QEMU's (docs: "TCG Plugins"; `qemu-plugin.h`, API version 7): counts the instructions that a processor
//! in software executes, of whatever runs on it, guests of guests included. It is loaded as
//! `-plugin libcounter.so,socket=PATH`; who connects to that socket is told the count so far, 8 bytes, little-endian.
//!
//! Instructions are counted as a block of them begins. One that is left half way, by a fault or an exit, counts in
//! full, and its rest again when it is entered anew.
#![allow(unsafe_code)] // QEMU's interface is C.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::OnceLock;

/// The version of QEMU's interface that this is written for.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 7;

/// `qemu_plugin_u64`: a number per processor.
#[repr(C)]
#[derive(Clone, Copy)]
struct Number {
    score: *mut c_void,
    offset: usize,
}

// SAFETY: QEMU's functions on such a number may be called from any thread.
unsafe impl Send for Number {}
// SAFETY: as above.
unsafe impl Sync for Number {}

/// `QEMU_PLUGIN_INLINE_ADD_U64`
const ADD: c_int = 0;
/// Where the instructions are counted.
static COUNT: OnceLock<Number> = OnceLock::new();

type Translated = extern "C" fn(block: *mut c_void, data: *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(number: Number) -> u64;
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: Translated, data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        block: *mut c_void,
        what: c_int,
        number: Number,
        operand: u64,
    );
}

/// QEMU has translated a block: from now on, whenever it begins, its instructions are added.
extern "C" fn translated(block: *mut c_void, _: *mut c_void) {
    let Some(count) = COUNT.get() else { return };
    // SAFETY: QEMU's own block, for the length of this call.
    unsafe {
        let instructions = qemu_plugin_tb_n_insns(block) as u64;
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD, *count, instructions);
    }
}

/// Tells everyone who asks.
fn serve(listener: &UnixListener, count: Number) {
    for mut peer in listener.incoming().flatten() {
        // SAFETY: the scoreboard is there for as long as QEMU is.
        let sum = unsafe { qemu_plugin_u64_sum(count) };
        // Whoever does not listen does not want to know.
        let _ = peer.write_all(&sum.to_le_bytes());
    }
}

/// QEMU's call when it has loaded this. 0: it goes on.
///
/// # Safety
/// `arguments` are `number` C strings, as QEMU passes them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    number: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let argument = |i: usize| {
        // SAFETY: as the caller promises.
        unsafe { CStr::from_ptr(*arguments.add(i)) }.to_str().ok()
    };
    let mut all = (0..usize::try_from(number).unwrap_or(0)).filter_map(argument);
    let Some(path) = all.find_map(|word| word.strip_prefix("socket=")) else {
        eprintln!("counter: no socket=PATH");
        return 1;
    };
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("counter: {path}: {error}");
            return 1;
        }
    };
    // SAFETY: QEMU's own; one number of 8 bytes for each processor.
    let score = unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) };
    let count = *COUNT.get_or_init(|| Number { score, offset: 0 });
    std::thread::spawn(move || serve(&listener, count));
    // SAFETY: the function stays where it is.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated, std::ptr::null_mut()) };
    0
}
