//! From a list to the kernel.

use super::calls::Calls;
use super::{Role, SandboxError};
use seccompiler::{BpfProgram, SeccompAction, apply_filter, apply_filter_all_threads};

/// Whom a list binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// All that there are, and those that they start.
    All,
    /// The calling one, and those that it starts.
    Calling,
}

/// Two programs, of whose answers the kernel takes the stricter: one for the list, and one that says of
/// `clone3` that there is none. Its flags are behind a pointer, which a filter cannot follow; without it, glibc
/// uses `clone`.
fn programs(role: Role) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let no_clone3 = Calls::default().allow(&[libc::SYS_clone3]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok([
        no_clone3.compile(missing, SeccompAction::Allow)?,
        role.calls().compile(SeccompAction::Allow, SeccompAction::Trap)?,
    ])
}

/// Binds `threads` to the list of `role`.
pub(super) fn install(role: Role, threads: Threads) -> Result<(), SandboxError> {
    let name = role.name();
    let programs = programs(role).map_err(|source| SandboxError::Compile { role: name, source })?;
    for program in &programs {
        let installed = match threads {
            Threads::All => apply_filter_all_threads(program),
            Threads::Calling => apply_filter(program),
        };
        installed.map_err(|source| SandboxError::Filter { role: name, source })?;
    }
    Ok(())
}
