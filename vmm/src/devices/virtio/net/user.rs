//! A network card that another process serves by vhost-user, such as passt, which needs no rights on the host.

use super::registers::{self, Mac, feature};
use crate::devices::virtio::vhost::user::VhostUser;
use crate::devices::virtio::vhost::{self, Server as _};
use crate::devices::virtio::{
    Activation, DeviceError, DeviceModel, Kind, Serve, Shared, read_space,
};
use rustix::event::PollFlags;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A virtio network card in front of a vhost-user server.
pub struct UserNet {
    state: Arc<State>,
    features: u64,
    mac: Mac,
}

/// What the card shares with what watches its server.
struct State {
    server: Mutex<VhostUser>,
    /// Hangs up when the server ends.
    watch: Arc<UnixStream>,
    /// The server is there.
    up: AtomicBool,
}

impl State {
    fn server(&self) -> MutexGuard<'_, VhostUser> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UserNet {
    /// Receive and transmit.
    pub const QUEUES: u64 = super::QUEUES.len() as u64;

    /// A card whose frames `server` carries.
    pub fn new(server: VhostUser, mac: Mac) -> Self {
        let (features, watch) = (server.features(), server.watch());
        let state = State { server: Mutex::new(server), watch, up: AtomicBool::new(true) };
        Self { state: Arc::new(state), features, mac }
    }
}

impl DeviceModel for UserNet {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        // The address and the link's state are in configuration space, which is ours.
        feature::OFFERED & (self.features | feature::REGISTERS)
    }

    fn ring_features(&self) -> u64 {
        self.features
    }

    fn accepts(&self, features: u64) -> bool {
        feature::are_consistent(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        &super::QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let up = self.state.up.load(Ordering::Acquire);
        read_space(&registers::registers(self.mac, up), offset, data);
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let queues = [start.need(0)?, start.need(1)?];
        let rings = vhost::rings(&start, &queues)?;
        let started = self.state.server().start(&start.memory, start.features, &rings);
        // From here on a drop stops the server, also one that started in part.
        let serving = Serving { state: Arc::clone(&self.state), shared: Arc::clone(&start.shared) };
        started.map_err(|e| DeviceError::Kernel {
            what: "a network card on vhost-user",
            why: vhost::chain(&e),
        })?;
        Ok(Box::new(serving))
    }
}

/// Watches the server. Dropping it stops the rings.
struct Serving {
    state: Arc<State>,
    shared: Arc<Shared>,
}

impl Serve for Serving {
    fn has(&self, _: usize) -> bool {
        false
    }

    fn kick(&mut self, _: usize) {}

    fn sources<'a>(&'a self, add: &mut dyn FnMut(u32, BorrowedFd<'a>, PollFlags)) {
        if self.state.up.load(Ordering::Acquire) {
            add(0, self.state.watch.as_fd(), PollFlags::RDHUP);
        }
    }

    fn ready(&mut self, _: u32, _: PollFlags) {
        self.state.up.store(false, Ordering::Release);
        tracing::warn!("{} has ended: the guest's network is down", self.state.server().name());
        self.shared.config_changed();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // One that has ended serves nothing.
        if self.state.up.load(Ordering::Acquire) {
            self.state.server().stop();
        }
    }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
