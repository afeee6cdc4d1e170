//! HTTP over a Unix socket, one request a connection, for the APIs of this product.
//!
//! One ordinary thread serves all connections. Everything a peer can make large or slow is bounded: the size
//! of head and body, the time for each, the connections, and where those are used up, whoever has not sent
//! its request yet is the one to go.

use beamline_vfio_user::server::Listener;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle as Task;

/// Longest request head, bytes.
const MAX_HEAD: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// How long a peer may take to send a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a whole request may take, with the waiting for changes before it and a peer that reads slowly.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what may block may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What is answered.
pub type Answer = Response<Full<Bytes>>;
/// The word of a connection that its request is there, and is being carried out.
pub type Busy = Arc<AtomicBool>;

/// What one server may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Threads for what may block.
    pub workers: usize,
    /// How long requests that are being carried out may take when the server ends.
    pub drain: Duration,
}

/// A socket that is listened on, and what it takes to serve it. Its file goes with it.
pub struct Server {
    listener: Listener,
    socket: StdListener,
    runtime: Runtime,
    limits: Limits,
}

impl Server {
    /// Makes all that serving takes, so that nothing but threads is made later. They are called `threads`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(listener: Listener, threads: &str, limits: Limits) -> io::Result<Self> {
        let fd = listener.as_fd().try_clone_to_owned()?;
        // Room for clients that come together.
        rustix::net::listen(&fd, limits.connections as i32)?;
        let socket = StdListener::from(fd);
        socket.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(limits.workers)
            .thread_name(threads)
            .build()?;
        Ok(Self { listener, socket, runtime, limits })
    }

    /// Serves until `stopped`, on the calling thread.
    pub fn run<A, F>(self, answer: A, stopped: oneshot::Receiver<()>)
    where
        A: Fn(Request<Incoming>, Busy) -> F + Clone + Send + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let Self { listener, socket, runtime, limits } = self;
        // Its file goes with it.
        let _listener = listener;
        runtime.block_on(async move {
            match UnixListener::from_std(socket) {
                Ok(socket) => serve(socket, limits, answer, stopped).await,
                Err(error) => tracing::error!(%error, "a control socket is not served"),
            }
        });
        runtime.shutdown_timeout(END_PATIENCE);
    }
}

/// A connection that is served.
struct Connection {
    task: Task<()>,
    busy: Busy,
}

async fn serve<A, F>(
    socket: UnixListener,
    limits: Limits,
    answer: A,
    mut stopped: oneshot::Receiver<()>,
) where
    A: Fn(Request<Incoming>, Busy) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut connections: VecDeque<Connection> = VecDeque::with_capacity(limits.connections);
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
        make_room(&mut connections, limits.connections).await;
        let busy = Busy::default();
        let stream = TokioIo::new(stream);
        let task = tokio::spawn(connection(stream, answer.clone(), Arc::clone(&busy)));
        connections.push_back(Connection { task, busy });
    }
    let drained = tokio::time::Instant::now() + limits.drain;
    for Connection { mut task, busy } in connections {
        if busy.load(Ordering::Relaxed) && !limits.drain.is_zero() {
            // How a task has ended is of no interest.
            let _ = tokio::time::timeout_at(drained, &mut task).await;
        }
        task.abort();
    }
}

/// Lets go of the connection that has waited longest without a request, where there are `most`.
async fn make_room(connections: &mut VecDeque<Connection>, most: usize) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < most {
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

/// Serves one request.
pub(super) async fn connection<A, F>(stream: impl Read + Write + Unpin, answer: A, busy: Busy)
where
    A: Fn(Request<Incoming>, Busy) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(move |request| {
        let answered = answer(request, Arc::clone(&busy));
        async move { Ok::<_, Infallible>(answered.await) }
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
