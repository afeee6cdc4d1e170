//! How the host's threads are placed: CPUs, priorities, and the keep-awake threads.
#![allow(unsafe_code)] // sched_setscheduler has no safe wrapper.

use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

/// What a thread is for: decides its priority under `cpus.realtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides and emits vblanks.
    Dispatcher,
    /// Writes interrupts and used rings.
    Poster,
    /// Decodes and validates.
    Worker,
    /// Serves registers.
    Server,
    /// Serves the control socket.
    Control,
}

impl Role {
    /// `SCHED_FIFO` priority. Registers and the control socket are served with no deadline.
    pub const fn priority(self) -> Option<i32> {
        match self {
            Self::Dispatcher => Some(30),
            Self::Poster => Some(29),
            Self::Worker => Some(20),
            Self::Server | Self::Control => None,
        }
    }
}

/// Where and how the host's threads run.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// CPUs; empty: any.
    pub cpus: Vec<usize>,
    /// Ask for `SCHED_FIFO`.
    pub realtime: bool,
}

impl Placement {
    /// Starts a named thread in its role.
    pub fn spawn<F>(&self, name: &str, role: Role, body: F) -> io::Result<JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let placement = self.clone();
        // Linux cuts thread names at 15 bytes.
        std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
            placement.apply(role);
            body();
        })
    }

    fn apply(&self, role: Role) {
        if let Err(error) = pin(&self.cpus) {
            tracing::warn!(%error, cpus = ?self.cpus, "the thread cannot be bound to these CPUs");
        }
        if let (true, Some(priority)) = (self.realtime, role.priority())
            && let Err(error) = set_policy(0, libc::SCHED_FIFO, priority)
        {
            tracing::warn!(%error, "SCHED_FIFO is not permitted; expect late vblanks (run as root or with CAP_SYS_NICE)");
        }
    }
}

/// Binds the calling thread to these CPUs; none: leaves it.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no CPU {cpu}"),
            ));
        }
        set.set(cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// Sets the policy of a thread of this process; 0 names the calling one.
fn set_policy(thread: i32, policy: i32, priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` is a valid, initialised struct that outlives the call; a thread that is gone is an
    // error, not a hazard.
    if unsafe { libc::sched_setscheduler(thread, policy, &raw const param) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// One `SCHED_IDLE` thread per CPU that spins: the CPU then never goes idle, so that a timer or an
/// interrupt is served at once. On a virtual machine an idle CPU is given away and comes back late. Any
/// other thread takes the CPU from it at once.
#[derive(Debug)]
pub struct KeepAwake {
    stop: Arc<AtomicBool>,
    threads: Vec<(i32, JoinHandle<()>)>,
}

impl KeepAwake {
    /// Starts a thread on each of `cpus`.
    pub fn start(cpus: &[usize]) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut awake = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        for &cpu in cpus {
            let stop = Arc::clone(&stop);
            let (tell, told) = channel();
            let body = move || {
                // Nobody listens any more where the host gave up on starting.
                let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get());
                // A spinner that is not SCHED_IDLE or not on its CPU would take time from others.
                if pin(&[cpu]).and_then(|()| set_policy(0, libc::SCHED_IDLE, 0)).is_err() {
                    return;
                }
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name(format!("awake-{cpu}")).spawn(body)?;
            let id =
                told.recv().map_err(|_| io::Error::other("a keep-awake thread ended at once"))?;
            awake.threads.push((id, thread));
        }
        Ok(awake)
    }
}

impl Drop for KeepAwake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (id, thread) in self.threads.drain(..) {
            // On a busy CPU an idle-class thread would wait for its end without limit. A thread that has
            // ended already needs no time.
            let _ = set_policy(id, libc::SCHED_OTHER, 0);
            // A spinner cannot panic; there is nothing to report.
            let _ = thread.join();
        }
    }
}
