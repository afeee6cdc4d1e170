//! A tap interface of the host.
#![allow(unsafe_code)] // The ioctls of /dev/net/tun and of interfaces.

use super::Port;
use super::queue::HEADER;
use super::registers::feature;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest name of an interface: bytes.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;
/// Name of a tap that has none: the kernel counts.
const UNNAMED: &str = "beam%d";

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not the name of an interface.
    #[error(
        "{name:?} is not an interface's name: use 1 to {MAX_NAME} bytes without `/` and spaces"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The control device.
    #[error("/dev/net/tun cannot be opened")]
    Control(#[source] io::Error),
    /// The interface.
    #[error("tap {name:?}: {what}{}", hint(source))]
    Interface {
        /// Its name.
        name: String,
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn hint(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::EPERM) => {
            "; this needs CAP_NET_ADMIN, or a tap that was made for this user (ip tuntap add mode tap \
             vnet_hdr user NAME)"
        }
        Some(libc::EBUSY) => "; another guest or program uses it",
        Some(libc::EINVAL) => "; is it an interface of another kind?",
        _ => "",
    }
}

/// A tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Attaches to the tap called `name`. Where there is none it is made, is up, and vanishes with the
    /// guest; `None` has the kernel find a name.
    pub fn open(name: Option<&str>) -> Result<Self, TapError> {
        let wanted = name.unwrap_or(UNNAMED);
        let mut request = request(wanted)?;
        let is_new = name.is_none_or(|n| !Path::new("/sys/class/net").join(n).exists());
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::Control)?;
        let failed =
            |what| move |source| TapError::Interface { name: wanted.to_owned(), what, source };
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is an `ifreq`, which the kernel reads and writes; it outlives the call.
        check(unsafe { libc::ioctl(control.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
            .map_err(failed("cannot be attached to"))?;
        let size = HEADER as libc::c_int;
        // SAFETY: the kernel reads an `int`, which outlives the call.
        check(unsafe { libc::ioctl(control.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
            .map_err(failed("does not take the header's size"))?;
        let name: String =
            request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
        let tap = Self { fd: control.into(), name };
        if is_new {
            tap.bring_up().map_err(failed("cannot be brought up"))?;
        }
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn bring_up(&self) -> io::Result<()> {
        let socket = File::from(rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?);
        let mut request = request(&self.name).map_err(io::Error::other)?;
        // SAFETY: the request is an `ifreq` with a name, which the kernel adds the flags to.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
        // SAFETY: the kernel wrote the flags, as the field of the union that is read here.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
        // SAFETY: the request is an `ifreq` with name and flags, which the kernel reads.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
    }
}

impl Port for Tap {
    fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        let flag = |bit: u64, flag: u32| if features & bit != 0 { flag } else { 0 };
        let flags = flag(feature::GUEST_CSUM, libc::TUN_F_CSUM)
            | flag(feature::GUEST_TSO4, libc::TUN_F_TSO4)
            | flag(feature::GUEST_TSO6, libc::TUN_F_TSO6);
        // SAFETY: this ioctl takes a number, no address.
        check(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
        })
    }
}

fn request(name: &str) -> Result<libc::ifreq, TapError> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
        return Err(TapError::Name { name: name.to_owned() });
    }
    // SAFETY: zeros are a valid `ifreq`: it holds numbers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What goes over an interface, for the tests.
#[cfg(test)]
pub(super) fn packet_socket(name: &str) -> io::Result<OwnedFd> {
    use rustix::net::{RawProtocol, eth};
    let all: RawProtocol = eth::ALL.as_raw();
    // SAFETY: a new socket; the result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all.get() as libc::c_int) };
    check(fd.min(0))?;
    // SAFETY: nobody else owns it.
    let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    let name = std::ffi::CString::new(name).map_err(io::Error::other)?;
    // SAFETY: zeros are a valid address, and the name ends with NUL.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    at.sll_family = libc::AF_PACKET as libc::c_ushort;
    at.sll_protocol = all.get() as u16;
    // SAFETY: the name ends with NUL.
    at.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as libc::c_int;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is of this size and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), size) })?;
    Ok(socket)
}

/// Gives the calling thread a network of its own, for the tests.
#[cfg(test)]
pub(super) fn own_network() -> rustix::io::Result<()> {
    // SAFETY: only the network changes; no descriptor or memory that other threads rely on does.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}
