//! What a process of ours may still do once it is set up: a list of system calls (seccomp), a list of files
//! (Landlock), no new privileges, and no capability that it does not use.
//!
//! ```text
//!  start ─► restrict: no_new_privs, Landlock, capabilities ─► set-up ─► confine: seccomp ─► serve
//!             (the calling thread, and all that it starts later)          (all threads)
//! ```
//!
//! Each kind of process is a [`Role`] with a list of its own. A call that is not on the list ends the
//! process, and only that one, with [`EXIT_CODE`] and a line on stderr that names the call.

mod calls;
mod common;
mod connector;
mod files;
mod filter;
mod guest;
mod host;
mod privileges;
mod probe;
mod renderer;
mod violation;
mod vmm;

#[cfg(test)]
mod tests;

pub use files::{Enforced, Files};
pub use filter::Threads;
pub use privileges::{Keep, drop_capabilities};
pub use probe::{Landlock, has_seccomp, landlock};
pub use violation::{EXIT_CODE, remember_terminal, tell_stdout};

use std::path::Path;

/// What a confined process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs one guest.
    Vmm,
    /// Is a guest by itself, without a virtual machine.
    Guest,
    /// Connects to the servers of functions that are plugged into a running guest.
    Connector,
    /// Schedules one GPU and serves its slices.
    Host,
    /// The host's thread that starts renderers. They inherit what it may do, so that it may do all that they
    /// do, and start programs.
    Launcher,
    /// Executes one slice's GPU work.
    Renderer,
}

impl Role {
    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Guest => "guest process",
            Self::Connector => "vmm's connector",
            Self::Host => "host",
            Self::Launcher => "host's launcher",
            Self::Renderer => "renderer",
        }
    }

    fn calls(self) -> calls::Calls {
        match self {
            Self::Vmm => vmm::calls(),
            Self::Guest => guest::calls(),
            Self::Connector => connector::calls(),
            Self::Host => host::calls(),
            Self::Launcher => host::launcher_calls(),
            Self::Renderer => renderer::calls(),
        }
    }
}

/// Why a process is not confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no seccomp filters.
    #[error(
        "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): use one that has them, or run without a \
         sandbox by --no-sandbox"
    )]
    NoSeccomp,
    /// A list cannot be made into a program.
    #[error("the list of system calls for the {role} is wrong: this is a bug")]
    Compile {
        /// Whose.
        role: &'static str,
        /// Why.
        source: seccompiler::BackendError,
    },
    /// The kernel refused a filter.
    #[error("the kernel refused the list of system calls for the {role}")]
    Filter {
        /// Whose.
        role: &'static str,
        /// Why.
        source: seccompiler::Error,
    },
    /// The kernel refused the list of files.
    #[error("the kernel refused the list of files that stay within reach")]
    Files(#[from] landlock::RulesetError),
    /// The operating system refused something else.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
}

/// Gives up everything but `files` and the capabilities in `keep`, for the calling thread and those that it
/// starts later. Call it before any other thread is there.
pub fn restrict(files: &Files, keep: Keep) -> Result<Enforced, SandboxError> {
    let system = |what| move |e: rustix::io::Errno| SandboxError::System { what, source: e.into() };
    rustix::thread::set_no_new_privs(true).map_err(system("give up new privileges"))?;
    let enforced = files.restrict()?;
    drop_capabilities(keep)?;
    Ok(enforced)
}

/// Leaves the process no system call but those of `role`. There is no way back.
pub fn confine(role: Role, threads: Threads) -> Result<(), SandboxError> {
    if !has_seccomp() {
        return Err(SandboxError::NoSeccomp);
    }
    violation::watch(role)?;
    filter::install(role, threads)
}

/// The files that a renderer opens to find and load a Vulkan driver, and to compile shaders.
pub fn renderer_files() -> Files {
    renderer::files()
}

/// What a host's renderers need beyond the host itself: the program, and all of [`renderer_files`].
pub fn launcher_files(program: &Path) -> Files {
    host::launcher_files(program)
}
