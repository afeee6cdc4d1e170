//! The control API: HTTP and JSON over the Unix socket `control.sock` in the host's folder.
//!
//! One ordinary thread serves all connections; what may block (admission, a peer that is slow to let go)
//! runs in at most [`WORKERS`] threads beside it. Everything a peer can make large or slow is bounded: the
//! size of head and body, the time for each, the connections, and where those are used up, whoever has not
//! sent its request yet is the one to go. Connections are for one request each.

#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod json;
mod routes;

use super::HostError;
use super::control::Controller;
use super::threads::Role;
use crate::host::system;
use beamline_vfio_user::server::Listener;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle as Task;

/// Longest request body, bytes.
pub const MAX_BODY: usize = 64 << 10;
/// Longest request head, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a peer may take to send a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a request waits for a change before it.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a whole request may take, with the waiting for changes before it and a peer that reads slowly.
const PATIENCE: Duration = Duration::from_secs(30);
/// Threads for what may block.
const WORKERS: usize = 4;
/// How long those may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The control socket of a host. Dropping it ends its thread and removes the socket.
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves the controller's host.
    pub(super) fn start(controller: Arc<Controller>) -> Result<Self, HostError> {
        let listener = Listener::bind(&controller.socket()).map_err(HostError::Control)?;
        let socket = listen(&listener).map_err(system("listen on the control socket"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(WORKERS)
            .thread_name("control-work")
            .build()
            .map_err(system("start the control socket's runtime"))?;
        let (stop, stopped) = oneshot::channel();
        let placement = controller.placement().clone();
        let body = move || {
            // Its file goes with it.
            let _listener = listener;
            runtime.block_on(async move {
                match UnixListener::from_std(socket) {
                    Ok(socket) => serve(socket, controller, stopped).await,
                    Err(error) => tracing::error!(%error, "the control socket is not served"),
                }
            });
            runtime.shutdown_timeout(END_PATIENCE);
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

/// The listener's socket for the runtime, with room for clients that come together.
fn listen(listener: &Listener) -> io::Result<StdListener> {
    use std::os::fd::AsFd;
    let fd = listener.as_fd().try_clone_to_owned()?;
    rustix::net::listen(&fd, MAX_CONNECTIONS as i32)?;
    let socket = StdListener::from(fd);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A connection that is served.
struct Connection {
    task: Task<()>,
    /// Its request is there, and is being carried out.
    busy: Arc<AtomicBool>,
}

async fn serve(
    socket: UnixListener,
    controller: Arc<Controller>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut connections: VecDeque<Connection> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let accepted = poll_fn(|cx| match Pin::new(&mut stopped).poll(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => socket.poll_accept(cx).map(Some),
        });
        let stream = match accepted.await {
            None => break,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                // Others have used up what it takes; they will give some back.
                tracing::debug!(%error, "a control connection is not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        make_room(&mut connections).await;
        let busy = Arc::new(AtomicBool::new(false));
        let stream = TokioIo::new(stream);
        let served =
            connection(stream, Arc::clone(&controller), Arc::clone(&busy), CHANGE_PATIENCE);
        let task = tokio::spawn(served);
        connections.push_back(Connection { task, busy });
    }
    for connection in connections {
        connection.task.abort();
    }
}

/// Lets go of the connection that has waited longest without a request, where there are too many.
async fn make_room(connections: &mut VecDeque<Connection>) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < MAX_CONNECTIONS {
        return;
    }
    let idle = connections.iter().position(|c| !c.busy.load(Ordering::Relaxed));
    if let Some(connection) = connections.remove(idle.unwrap_or(0)) {
        if idle.is_some() {
            connection.task.abort();
        }
        // Every one of them is at work: the oldest will be done first, and within its time. How a task has
        // ended is of no interest.
        let _ = connection.task.await;
    }
}

/// Serves one request; it waits for changes before it for at most `patience`.
async fn connection(
    stream: impl Read + Write + Unpin,
    controller: Arc<Controller>,
    busy: Arc<AtomicBool>,
    patience: Duration,
) {
    let service = service_fn(move |request| {
        routes::answer(Arc::clone(&controller), request, Arc::clone(&busy), patience)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let served = http.serve_connection(stream, service);
    match tokio::time::timeout(PATIENCE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a control connection ended"),
        Err(_) => tracing::debug!("a control connection took too long"),
    }
}

#[cfg(test)]
mod tests;
