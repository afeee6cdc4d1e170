//! The time-stamp counters of the world: none of them is another's, and none is host time.

use beamline_abi::Nanos;
use beamline_latency::{GuestTsc, TscMap};

/// The host's counter: 2 ticks per ns, so that every ns is an exact count. The error is a rounding each.
pub(super) const HOST: TscMap = TscMap {
    tsc_ref: 7_000_000_000,
    ns_ref: 1_000_000_000,
    mult: 1 << 31,
    err_ns: 2,
    rate_err_ns_per_s: 1,
};

/// How guest `index` is made to run: three quarters or five quarters of the host's rate, with an offset
/// that wraps.
pub(super) fn of_guest(index: usize) -> GuestTsc {
    let index = index as u64;
    let quarters = if index.is_multiple_of(2) { 3 } else { 5 };
    GuestTsc {
        offset: 0u64.wrapping_sub(123_456_789_000 * (index + 1)),
        scale: (1 << 46) * quarters,
    }
}

/// What a guest's counter shows at host time `at`.
pub(super) fn read(guest: GuestTsc, at: Nanos) -> u64 {
    let ns = at.0.wrapping_sub(HOST.ns_ref);
    guest.from_host(HOST.tsc_ref.wrapping_add(ns.wrapping_mul(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_counter_maps_back_to_host_time() {
        for index in 0..4 {
            let guest = of_guest(index);
            let map = HOST.for_guest(guest).unwrap();
            for ns in [1_000_000_000, 1_000_000_001, 60_000_000_000, 200_123_456_789] {
                let back = map.to_ns(read(guest, Nanos(ns))).0;
                let err = map.err_at(Nanos(ns)).0;
                assert!(back.abs_diff(ns) <= err, "{ns} came back as {back}, error {err}");
            }
        }
    }
}
