//! The files that stay within reach: Landlock.

use super::SandboxError;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use std::path::PathBuf;

/// The newest interface that these rules were tried with (Linux 6.15). What an older kernel does not know it
/// does not enforce; what a newer one knows in addition stays allowed.
const ABI: ABI = ABI::V7;

/// Paths that stay within reach. A folder stands for all that is below it; what does not exist is left out.
/// Descriptors that are open stay open, and sockets with a path can be connected to.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// For reading.
    pub read: Vec<PathBuf>,
    /// For reading and writing. In a folder, files and sockets may be made and removed.
    pub write: Vec<PathBuf>,
    /// Folders in which sockets may be made, and what is in them removed.
    pub sockets: Vec<PathBuf>,
    /// Devices: for reading, writing, and requests to their drivers.
    pub devices: Vec<PathBuf>,
    /// Programs and their libraries: for reading, and to be run.
    pub run: Vec<PathBuf>,
}

/// How far the kernel holds a process to its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// In all.
    Fully,
    /// As far as this older kernel can.
    Partly,
    /// Not at all: it has no Landlock.
    Not,
}

impl Files {
    /// All of these and of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.read.extend(other.read);
        self.write.extend(other.write);
        self.sockets.extend(other.sockets);
        self.devices.extend(other.devices);
        self.run.extend(other.run);
        self
    }

    /// Leaves the calling thread, and those that it starts, no other file, no network, no abstract socket, and no
    /// process outside to send a signal to.
    pub(super) fn restrict(&self) -> Result<Enforced, SandboxError> {
        Ok(self.enforce()?)
    }

    fn enforce(&self) -> Result<Enforced, RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let files = BitFlags::from(AccessFs::WriteFile) | AccessFs::Truncate;
        let write = read | files | AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::RemoveFile;
        let sockets = AccessFs::MakeSock | AccessFs::RemoveFile;
        let devices = read | AccessFs::WriteFile | AccessFs::IoctlDev;
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI))?
            .handle_access(AccessNet::from_all(ABI))?
            .scope(Scope::from_all(ABI))?
            .create()?
            .add_rules(path_beneath_rules(&self.read, read))?
            .add_rules(path_beneath_rules(&self.write, write))?
            .add_rules(path_beneath_rules(&self.sockets, sockets))?
            .add_rules(path_beneath_rules(&self.devices, devices))?
            .add_rules(path_beneath_rules(&self.run, read | AccessFs::Execute))?
            .restrict_self()?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => Enforced::Fully,
            RulesetStatus::PartiallyEnforced => Enforced::Partly,
            RulesetStatus::NotEnforced => Enforced::Not,
        })
    }
}
