//! What a VMM's connector does: it connects to Unix sockets and hands the connections on.

use super::calls::{Calls, is};
use super::common;

pub(super) fn calls() -> Calls {
    common::calls()
        .and(common::no_new_code())
        .allow_if(libc::SYS_socket, &[is(0, libc::AF_UNIX as u32)])
        .allow(&[libc::SYS_connect])
}
