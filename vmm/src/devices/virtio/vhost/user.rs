//! vhost-user (QEMU: docs/interop/vhost-user.rst), by the crate vhost: another process serves a device's queues.
//!
//! The server maps all of the guest's memory: it is as trusted as the VMM. But it may be slow or gone: every request
//! has a limit in time, and a server that ends is noticed.

use super::{Ring, Server, VhostError, regions, set_ring};
use crate::passthrough::connect;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use vhost::VhostBackend as _;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// How long a server may take to start or to stop. The guest's other vCPUs may have to wait for as long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rings without the extension for them are enabled from the start; ours are not.
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("no vhost-user server at {}: start it first", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say what is needed.
    #[error("the vhost-user server at {} {what}", path.display())]
    Lacks {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A request failed.
    #[error(transparent)]
    Refused(#[from] VhostError),
}

/// A vhost-user server, connected.
pub struct VhostUser {
    frontend: Frontend,
    /// In messages.
    name: String,
    features: u64,
    /// How many rings may run.
    running: usize,
    /// Hangs up when the server ends.
    watch: Arc<UnixStream>,
}

/// Does `act`, and hangs up if that takes too long: the crate waits for an answer without end, also where the socket
/// has a limit.
fn within<T>(stream: &UnixStream, act: impl FnOnce() -> T) -> T {
    let (done, waits) = channel::<()>();
    std::thread::scope(|scope| {
        let watch = move || {
            if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // It fails only where the server has hung up.
                let _ = stream.shutdown(Shutdown::Both);
            }
        };
        if std::thread::Builder::new().spawn_scoped(scope, watch).is_err() {
            // Without a limit nothing is asked: the server is given up.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let result = act();
        drop(done);
        result
    })
}

impl VhostUser {
    /// Connects to the server at `path`, for a device with `queues` queues.
    pub fn connect(path: &Path, queues: u64) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Connect { path: path.to_owned(), source };
        let stream = connect::attempt(path).map_err(|errno| failed(errno.into()))?;
        let watch = Arc::new(stream.try_clone().map_err(failed)?);
        let mut frontend = Frontend::from_stream(stream, queues);
        let features = within(&watch, || greet(&mut frontend, path))?;
        let name = name(path);
        Ok(Self { frontend, name, features, running: 0, watch })
    }

    /// What is hung up when the server ends.
    pub fn watch(&self) -> Arc<UnixStream> {
        Arc::clone(&self.watch)
    }

    /// In messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn name(path: &Path) -> String {
    format!("the vhost-user server at {}", path.display())
}

/// Agrees on the protocol; the server's features.
fn greet(frontend: &mut Frontend, path: &Path) -> Result<u64, ConnectError> {
    let refused = |what| move |source| VhostError::Refused { server: name(path), what, source };
    frontend.set_owner().map_err(refused("an owner"))?;
    let features = frontend.get_features().map_err(refused("to name its features"))?;
    if features & PROTOCOL == 0 {
        let what = "has no protocol features (VHOST_USER_F_PROTOCOL_FEATURES), which are needed";
        return Err(ConnectError::Lacks { path: path.to_owned(), what });
    }
    if features & 1 << VIRTIO_F_VERSION_1 == 0 {
        let what = "does not speak virtio 1.0 (VIRTIO_F_VERSION_1), which is needed";
        return Err(ConnectError::Lacks { path: path.to_owned(), what });
    }
    let offered =
        frontend.get_protocol_features().map_err(refused("to name its protocol's features"))?;
    // Where requests are answered, an error is noticed when it happens.
    let wanted = offered & VhostUserProtocolFeatures::REPLY_ACK;
    frontend.set_protocol_features(wanted).map_err(refused("its protocol's features"))?;
    if !wanted.is_empty() {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(features)
}

impl VhostUser {
    /// As [`Server::start`], for as long as that takes.
    fn begin(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        rings: &[Ring<'_>],
    ) -> Result<(), VhostError> {
        let name = self.name.clone();
        let refused = |what| {
            let server = name.clone();
            move |source| VhostError::Refused { server, what, source }
        };
        let regions = regions(memory)?;
        if regions.iter().any(|region| region.mmap_handle < 0) {
            return Err(VhostError::Memory);
        }
        self.frontend
            .set_features(features & self.features | PROTOCOL)
            .map_err(refused("the features"))?;
        self.frontend.set_mem_table(&regions).map_err(refused("the guest's memory"))?;
        // Addresses of rings are this process's, by the protocol.
        let address = |gpa| {
            let region = memory.find_region(crate::Gpa(gpa))?;
            let base = regions.iter().find(|r| r.guest_phys_addr == region.start_addr().0)?;
            Some(base.userspace_addr + (gpa - base.guest_phys_addr))
        };
        for (index, ring) in rings.iter().enumerate() {
            // A ring that has its kick runs, also where the next request fails.
            self.running = index + 1;
            set_ring(&self.frontend, &self.name, index, ring, address)?;
        }
        for index in 0..rings.len() {
            self.frontend.set_vring_enable(index, true).map_err(refused("to start"))?;
        }
        Ok(())
    }
}

impl Server for VhostUser {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        rings: &[Ring<'_>],
    ) -> Result<(), VhostError> {
        let watch = Arc::clone(&self.watch);
        within(&watch, || self.begin(memory, features, rings))
    }

    fn stop(&mut self) {
        let running = std::mem::take(&mut self.running);
        let Self { frontend, name, watch, .. } = self;
        within(watch, || {
            for index in 0..running {
                let stopped = frontend.set_vring_enable(index, false);
                // The answer is where it stopped; with it the ring has ended.
                if let Err(e) = stopped.and_then(|()| frontend.get_vring_base(index).map(drop)) {
                    tracing::warn!("{name} does not stop: {e}");
                }
            }
        });
    }
}
