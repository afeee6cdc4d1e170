//! vhost-vsock of the kernel, by the crate vhost.

use crate::devices::virtio::vhost::{Ring, Server, VhostError, regions, set_ring};
use std::sync::Arc;
use vhost::VhostBackend as _;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock as _;
use vm_memory::GuestMemoryMmap;

/// In messages.
const NAME: &str = "vhost-vsock";

/// Why the kernel does not serve sockets.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// It cannot be opened.
    #[error(
        "/dev/vhost-vsock cannot be opened: load the kernel's module (modprobe vhost_vsock), and let this \
         user use the device"
    )]
    Open(#[source] vhost::Error),
    /// The context ID.
    #[error("context ID {cid} is refused: another guest may have it")]
    Cid {
        /// The ID.
        cid: u32,
        /// Why.
        source: vhost::Error,
    },
    /// A request failed.
    #[error(transparent)]
    Refused(#[from] VhostError),
}

/// `/dev/vhost-vsock`.
pub struct VhostVsock {
    vhost: Vsock<Arc<GuestMemoryMmap>>,
    features: u64,
}

fn refused(what: &'static str) -> impl Fn(vhost::Error) -> VhostError {
    move |source| VhostError::Refused { server: NAME.into(), what, source }
}

impl VhostVsock {
    /// Takes `cid` for the guest whose memory this is.
    pub fn open(cid: u32, memory: Arc<GuestMemoryMmap>) -> Result<Self, VsockError> {
        let vhost = Vsock::new(memory).map_err(VsockError::Open)?;
        vhost.set_owner().map_err(refused("an owner"))?;
        let features = vhost.get_features().map_err(refused("to name its features"))?;
        vhost.set_guest_cid(cid.into()).map_err(|source| VsockError::Cid { cid, source })?;
        Ok(Self { vhost, features })
    }
}

impl Server for VhostVsock {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        rings: &[Ring<'_>],
    ) -> Result<(), VhostError> {
        self.vhost.set_features(features).map_err(refused("the features"))?;
        self.vhost.set_mem_table(&regions(memory)?).map_err(refused("the guest's memory"))?;
        for (index, ring) in rings.iter().enumerate() {
            // The crate itself makes addresses of this process of them.
            set_ring(&self.vhost, NAME, index, ring, Some)?;
        }
        self.vhost.start().map_err(refused("to start"))
    }

    fn stop(&mut self) {
        if let Err(e) = self.vhost.stop() {
            tracing::warn!("vhost-vsock does not stop: {e}");
        }
    }
}
