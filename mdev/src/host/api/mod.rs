//! The control API: HTTP and JSON over the Unix socket `control.sock` in the host's folder.
//!
//! What may block (admission, a peer that is slow to let go) runs in at most [`WORKERS`] threads beside the
//! one that serves all connections ([`server`]).

pub mod answers;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod json;
mod routes;
pub mod server;

use super::HostError;
use super::control::Controller;
use super::threads::Role;
use crate::host::system;
pub use answers::MAX_BODY;
use beamline_vfio_user::server::Listener;
use server::{Limits, Server};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a request waits for a change before it.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);
/// Threads for what may block.
const WORKERS: usize = 4;

/// The control socket of a host. Dropping it ends its thread and removes the socket.
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves the controller's host.
    pub(super) fn start(controller: Arc<Controller>) -> Result<Self, HostError> {
        let listener = Listener::bind(&controller.socket()).map_err(HostError::Control)?;
        let limits =
            Limits { connections: MAX_CONNECTIONS, workers: WORKERS, drain: Duration::ZERO };
        let server = Server::new(listener, "control-work", limits)
            .map_err(system("make what serves the control socket"))?;
        let (stop, stopped) = oneshot::channel();
        let placement = controller.placement().clone();
        let body = move || {
            let answer = move |request, busy| {
                routes::answer(Arc::clone(&controller), request, busy, CHANGE_PATIENCE)
            };
            server.run(answer, stopped);
        };
        let thread = placement
            .spawn("control", Role::Control, body)
            .map_err(system("start the control socket's thread"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ApiServer {
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

#[cfg(test)]
mod tests;
