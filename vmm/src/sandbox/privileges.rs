//! Capabilities that a process no longer needs. The user stays who started it: to run as another one, start it
//! as that one, who then owns its sockets and files as well.

use super::SandboxError;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Capabilities that stay, where the process has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(CapabilitySet);

impl Keep {
    /// While it is set up, a VMM opens what its guest uses: images and disks of other users, and network
    /// interfaces.
    pub const fn vmm_set_up() -> Self {
        Self(
            CapabilitySet::SYS_NICE
                .union(CapabilitySet::IPC_LOCK)
                .union(CapabilitySet::DAC_OVERRIDE)
                .union(CapabilitySet::DAC_READ_SEARCH)
                .union(CapabilitySet::NET_ADMIN)
                .union(CapabilitySet::SYS_RAWIO)
                // To drop more from the bounding set later.
                .union(CapabilitySet::SETPCAP),
        )
    }

    /// Urgent threads, whenever they start, and memory that is not swapped out.
    pub const fn urgency() -> Self {
        Self(CapabilitySet::SYS_NICE.union(CapabilitySet::IPC_LOCK))
    }

    /// Sockets that are another user's.
    pub const fn connecting() -> Self {
        Self(CapabilitySet::DAC_OVERRIDE)
    }

    /// A host also writes into folders that may be another user's, and its renderers drop more.
    pub const fn host() -> Self {
        Self(Self::urgency().0.union(CapabilitySet::DAC_OVERRIDE).union(CapabilitySet::SETPCAP))
    }
}

/// Drops all other capabilities from every set of the calling thread. Fails where the system refuses that;
/// having none to drop is no failure.
pub fn drop_capabilities(Keep(keep): Keep) -> Result<(), SandboxError> {
    let refused =
        |what| move |e: rustix::io::Errno| SandboxError::System { what, source: e.into() };
    let now = capabilities(None).map_err(refused("read the process's capabilities"))?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(keep).iter() {
            // Numbers that this kernel does not know are in no set.
            if capability_is_in_bounding_set(capability) == Ok(true) {
                remove_capability_from_bounding_set(capability)
                    .map_err(refused("drop capabilities that no program may get"))?;
            }
        }
    }
    // Kernels before 4.3 have no ambient set.
    let _ = clear_ambient_capability_set();
    let kept = CapabilitySets {
        effective: now.effective.intersection(keep),
        permitted: now.permitted.intersection(keep),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).map_err(refused("drop capabilities"))
}
