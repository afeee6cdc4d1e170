//! What serves a guest's devices beside this process: a vhost-user server that answers as it likes, and a disk in a
//! qcow2 image that somebody else wrote.

mod image;
mod qcow2;
mod server;
mod vhost_user;

use crate::fds::Open;
use crate::input::Input;

/// Runs one life of one of them.
pub(crate) fn run(bytes: &[u8]) {
    let open = Open::now();
    let mut input = Input::new(bytes);
    match input.u8() % 4 {
        0 => vhost_user::run(&mut input),
        _ => qcow2::run(&mut input),
    }
    open.check();
}
