//! How the host starts a renderer.

use super::message::{Head, Kind, send};
use crate::backend::SliceLimits;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Bytes that may be on their way to a renderer: several of the longest packets.
const SEND_BUFFER: usize = 1 << 20;

/// The first order to a renderer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// What the slice may hold.
    pub limits: SliceLimits,
    /// See [`Launcher::render_cpus`].
    pub render_cpus: Vec<u32>,
    /// See [`Launcher::host_cpus`].
    pub host_cpus: Vec<u32>,
    /// See [`Launcher::adapter`].
    pub adapter: Option<String>,
}

/// Starts renderers.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program, which calls [`super::main`] when started with `args`.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// CPUs of a software GPU's own threads; empty for all.
    pub render_cpus: Vec<u32>,
    /// CPUs of the renderer's other threads; empty for all.
    pub host_cpus: Vec<u32>,
    /// Part of the name of the GPU to use, in any case of letters; the most capable one if `None`.
    pub adapter: Option<String>,
    /// Threads with which a software GPU computes.
    pub lp_threads: u32,
}

impl Launcher {
    /// Renderers are this program, started with the subcommand `renderer`, on one thread of a software GPU.
    pub fn this_program() -> Self {
        Self {
            exe: PathBuf::from("/proc/self/exe"),
            args: vec!["renderer".into()],
            render_cpus: Vec::new(),
            host_cpus: Vec::new(),
            adapter: None,
            lp_threads: 1,
        }
    }

    /// The two ends of a renderer's socket, the host's first, with the first order in it.
    pub(crate) fn connect(&self, limits: SliceLimits) -> io::Result<(OwnedFd, OwnedFd)> {
        let (host, renderer) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_send_buffer_size(&host, SEND_BUFFER)?;
        let start = Start {
            limits,
            render_cpus: self.render_cpus.clone(),
            host_cpus: self.host_cpus.clone(),
            adapter: self.adapter.clone(),
        };
        let text = serde_json::to_vec(&start)?;
        let head = Head::new(Kind::Start);
        send(host.as_fd(), &head, [&text, &[]], None, false)?;
        Ok((host, renderer))
    }

    /// Starts the process. It is killed when the calling thread ends.
    pub(crate) fn spawn(&self, socket: OwnedFd) -> io::Result<Child> {
        Command::new(&self.exe)
            .args(&self.args)
            .env("LP_NUM_THREADS", self.lp_threads.to_string())
            // Compiled shaders on disk would be a way from one slice into another.
            .env("MESA_SHADER_CACHE_DISABLE", "true")
            .env("__GL_SHADER_DISK_CACHE", "0")
            // It draws to no display, so nothing of it looks for one.
            .env("NODEVICE_SELECT", "1")
            .env_remove("DISPLAY")
            .env_remove("WAYLAND_DISPLAY")
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .spawn()
    }
}
