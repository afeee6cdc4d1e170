//! What a guest's interrupts and doorbells have cost in one run: its VMM counts exits, the host counts doorbells.

use crate::events::{InterruptsEvent, SliceStats};
use serde::Serialize;

/// One guest's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct GuestInterrupts {
    pub(crate) guest: String,
    /// What its VMM said at the end.
    #[serde(flatten)]
    pub(crate) event: InterruptsEvent,
    /// Doorbells that it rang, as the host last told, half a second before the end at most.
    pub(crate) doorbells: u64,
    /// All exits over all doorbells, the guest's boot included.
    pub(crate) exits_per_doorbell: Option<f64>,
}

impl GuestInterrupts {
    /// Joins what VMMs and host said.
    pub(crate) fn join(guests: Vec<(String, InterruptsEvent)>, slices: &[SliceStats]) -> Vec<Self> {
        let one = |(guest, event): (String, InterruptsEvent)| {
            let doorbells = slices.iter().find(|s| s.name == guest).map_or(0, |s| s.doorbells);
            let exits = event.all.counters.get("exits").filter(|_| doorbells > 0);
            let exits_per_doorbell = exits.map(|n| *n as f64 / doorbells as f64);
            Self { guest, event, doorbells, exits_per_doorbell }
        };
        guests.into_iter().map(one).collect()
    }

    /// For people: how it went in run `run`.
    pub(crate) fn line(&self, run: &str) -> String {
        let Self { guest, event, doorbells, exits_per_doorbell } = self;
        let mut modes: Vec<&str> = event.devices.iter().map(|d| d.mode.as_str()).collect();
        modes.dedup();
        let mut text = format!("{guest} under {run}: interrupts {}", modes.join(", "));
        text += &match (&event.missing, &event.paced) {
            (Some(why), _) => format!("; what they cost is not known: {why}"),
            (None, Some(paced)) => format!("; {}", paced.line()),
            (None, None) => "; no vblank came".into(),
        };
        if let Some(per) = exits_per_doorbell {
            text += &format!("; {per:.1} exits per doorbell over {doorbells}");
        }
        text + &format!(" ({})", event.label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Costs, DeviceDelivery};

    fn event(exits: Option<u64>) -> InterruptsEvent {
        let counters = exits.map(|n| ("exits".to_owned(), n)).into_iter().collect();
        let costs = Costs {
            seconds: 2.0,
            vblanks: 180,
            exits_per_vblank: exits.map(|n| n as f64 / 180.0),
            counters,
        };
        let device = |name: &str| DeviceDelivery {
            device: name.into(),
            mode: "injected with an exit".into(),
            found: "so".into(),
        };
        InterruptsEvent {
            label: "measured".into(),
            devices: vec![device("pacer"), device("gpu")],
            all: costs.clone(),
            paced: Some(costs),
            to_vmm_io: 1,
            to_vmm_mmio: 2,
            to_vmm_other: 3,
            missing: None,
        }
    }

    #[test]
    fn exits_are_held_against_the_guests_own_doorbells() {
        let slices = [
            SliceStats { name: "other".into(), frames: 0, late: 0, doorbells: 9 },
            SliceStats { name: "vr".into(), frames: 0, late: 0, doorbells: 360 },
        ];
        let joined = GuestInterrupts::join(vec![("vr".into(), event(Some(720)))], &slices);
        let line = joined[0].line("fifo");
        assert_eq!(
            line,
            "vr under fifo: interrupts injected with an exit; 4.0 exits per vblank over 180 vblanks in 2.0 s; \
             KVM counted: none; 2.0 exits per doorbell over 360 (measured)"
        );
        for (guest, exits) in [("none", Some(720)), ("vr", None)] {
            let joined = GuestInterrupts::join(vec![(guest.into(), event(exits))], &slices);
            assert_eq!(joined[0].exits_per_doorbell, None, "{guest}");
        }
    }
}
