//! What a guest without a virtual machine does while it runs: a VMM's calls less KVM's, its disks', its networks' and
//! its API's. It has none of them, and its functions' sockets are connected by then.

use super::calls::Calls;
use super::common;

pub(super) fn calls() -> Calls {
    common::calls().and(common::no_new_code())
}
