//! The API of a running guest: HTTP and JSON over the Unix socket that its file names (docs/guest.md).
//!
//! The socket is made before the process gives up making sockets, and served once the guest runs. What may
//! block (a pause, a lock that a vCPU holds) runs in [`LIMITS`]' threads beside the one that serves.

mod input;
pub(crate) mod json;
mod ports;
mod routes;
mod writes;

use crate::connector::Connector;
use crate::events::Events;
use crate::failure::refused;
use anyhow::Context;
use beamline_mdev::host::api::server::{Limits, Server};
use beamline_vfio_user::server::Listener;
use beamline_vmm::{Config, GuestControl};
use routes::Guest;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// A request that ends the guest is answered before the process ends.
const LIMITS: Limits = Limits { connections: 8, workers: 4, drain: Duration::from_secs(1) };

/// The socket of a guest that does not run yet.
pub(crate) struct ApiSocket(Server);

impl ApiSocket {
    /// Listens at `path`: a socket that a dead process left is replaced, another guest's is not.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let listener = Listener::bind(path).map_err(|e| refused(format!("api.socket: {e}")))?;
        Ok(Self(Server::new(listener, "api-work", LIMITS).context("cannot make the API's server")?))
    }

    /// Serves the guest on a thread of its own.
    pub(crate) fn serve(
        self,
        config: &Config,
        control: GuestControl,
        connector: Option<Connector>,
        events: Events,
    ) -> anyhow::Result<GuestApi> {
        let guest = Arc::new(Guest::new(config, control, connector, events));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("api/{}", config.guest.name))
            .spawn(move || {
                let answer = move |request, busy| routes::answer(Arc::clone(&guest), request, busy);
                self.0.run(answer, stopped);
            })
            .context("cannot start the API's thread")?;
        Ok(GuestApi { stop: Some(stop), thread: Some(thread) })
    }
}

/// The API of a guest that runs. Dropping it ends its thread and removes the socket.
pub(crate) struct GuestApi {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for GuestApi {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A thread that has ended already needs no word.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
