//! A call that is not on the list: the kernel sends SIGSYS in its place, whose handler says which it was and
//! ends the process.
//!
//! The handler may interrupt anything, so it takes no lock and no memory: it writes one line from its own
//! stack.
#![allow(unsafe_code)] // A signal handler, and what the kernel tells it.

use super::{Role, SandboxError};
use std::fmt::Write;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// With this code ends a process that made a forbidden call.
pub const EXIT_CODE: i32 = 3;
/// How long the line may wait for a reader of stderr, in ms.
const PATIENCE_MS: i32 = 100;
/// `SYS_SECCOMP` of asm-generic/siginfo.h: SIGSYS comes from a filter.
const FROM_FILTER: i32 = 1;

/// Whether stdout is told as well.
static EVENT: AtomicBool = AtomicBool::new(false);

/// How standard input's terminal was before it was taken over.
static TERMINAL: OnceLock<libc::termios> = OnceLock::new();

/// Who this process is, for the line.
static ROLE: AtomicU8 = AtomicU8::new(0);

const ROLES: [Role; 6] =
    [Role::Vmm, Role::Guest, Role::Connector, Role::Host, Role::Launcher, Role::Renderer];

/// The part of `siginfo_t` that SIGSYS fills (asm-generic/siginfo.h); libc does not name it.
#[repr(C)]
struct SigsysInfo {
    signal: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    address: *mut libc::c_void,
    call: i32,
    arch: u32,
}

/// Has forbidden calls told and answered by the end of the process, in the name of `role`.
pub(super) fn watch(role: Role) -> Result<(), SandboxError> {
    let place = ROLES.iter().position(|r| *r == role).unwrap_or(0);
    ROLE.store(place as u8, Ordering::Relaxed);
    // SAFETY: all of `sigaction` is integers and optional pointers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised and outlives the call; the handler has the signature that SA_SIGINFO asks
    // for, and does nothing that a handler must not.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } == 0 {
        return Ok(());
    }
    Err(SandboxError::System {
        what: "have forbidden system calls reported",
        source: io::Error::last_os_error(),
    })
}

/// Has a forbidden call told on stdout, too, as an event: one line of JSON.
pub fn tell_stdout() {
    EVENT.store(true, Ordering::Relaxed);
}

/// Has standard input's terminal put back as it is now where a forbidden call ends the process. Call it before the
/// terminal is taken over; without one it does nothing.
pub fn remember_terminal() {
    // SAFETY: all of `termios` is integers, for which zero is a value.
    let mut now: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `now` is valid for the call, which fills it.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut now) } == 0 {
        // The first one is how the user had it.
        let _ = TERMINAL.set(now);
    }
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands the handler a valid siginfo, of which SIGSYS fills this part; the structure is
    // not larger than `siginfo_t`.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    // SAFETY: with SA_SIGINFO the third argument is this thread's context, alive until the handler returns.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let argument = |register: i32| registers[register as usize];
    let mut line = Line::default();
    let role = ROLES[usize::from(ROLE.load(Ordering::Relaxed)) % ROLES.len()].name();
    // A line that is too long is cut.
    let _ = if info.code == FROM_FILTER {
        let name = name(info.call);
        let [a, b, c] = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(argument);
        writeln!(
            line,
            "beamline: {role}: system call {name} ({}), with {a:#x}, {b:#x}, {c:#x}, is not allowed by the \
             sandbox; run with --no-sandbox to see whether all is well without it",
            info.call
        )
    } else {
        writeln!(line, "beamline: {role}: ended by SIGSYS from another process")
    };
    line.write_out(libc::STDERR_FILENO);
    if EVENT.load(Ordering::Relaxed) && info.code == FROM_FILTER {
        event(info.call).write_out(libc::STDOUT_FILENO);
    }
    if let Some(before) = TERMINAL.get() {
        // SAFETY: `before` is initialised; tcsetattr may be called by a handler (signal-safety(7)). Its request is
        // on the list of who takes a terminal over.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
    // SAFETY: takes a number and does not return. No destructor and no handler of exit runs.
    unsafe { libc::_exit(EXIT_CODE) };
}

/// The event: names of system calls need no escapes.
fn event(call: i32) -> Line {
    let mut line = Line::default();
    let name = name(call);
    // It is never too long.
    let _ = writeln!(line, r#"{{"event":"sandbox-violation","call":"{name}","number":{call}}}"#);
    line
}

/// The name of a system call of x86-64.
fn name(call: i32) -> &'static str {
    usize::try_from(call)
        .ok()
        .and_then(syscalls::Sysno::new)
        .map_or("without a name", |call| call.name())
}

/// One line, on the stack.
struct Line {
    text: [u8; 320],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { text: [0; 320], len: 0 }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.text[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

impl Line {
    /// Writes it to `fd`, unless nobody reads that: a full pipe must not keep the process alive.
    fn write_out(&self, fd: libc::c_int) {
        let mut out = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one initialised pollfd; the text is initialised up to `len`, which is within it.
        unsafe {
            if libc::poll(&raw mut out, 1, PATIENCE_MS) == 1 {
                libc::write(fd, self.text.as_ptr().cast(), self.len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_names() {
        assert_eq!(name(libc::SYS_ptrace as i32), "ptrace");
        assert_eq!(name(libc::SYS_landlock_restrict_self as i32), "landlock_restrict_self");
        assert_eq!((name(-1), name(100_000)), ("without a name", "without a name"));
    }

    #[test]
    fn the_kernels_structure_is_not_larger_than_libcs() {
        assert!(size_of::<SigsysInfo>() <= size_of::<libc::siginfo_t>());
        assert_eq!(std::mem::offset_of!(SigsysInfo, call), 24);
    }

    #[test]
    fn the_event_is_a_line_of_json() {
        let line = event(libc::SYS_socket as i32);
        assert_eq!(
            &line.text[..line.len],
            b"{\"event\":\"sandbox-violation\",\"call\":\"socket\",\"number\":41}\n"
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut line = Line::default();
        write!(line, "{}", "x".repeat(1000)).unwrap();
        assert_eq!(line.len, 320);
    }
}
