//! How a guest's interrupts are delivered and what they have cost: told to people, and as an event.

use crate::events::{Costs, DeviceDelivery, GuestEvent, InterruptsEvent};
use crate::output;
use beamline_vmm::interrupt::posted::{Abilities, Delivery, Source};
use beamline_vmm::interrupt::stats::Counter;
use beamline_vmm::interrupt::watch::{Cost, Report};
use beamline_vmm::{Exits, VmHandle, probe};
use std::time::Duration;

/// How often a running guest's counters are looked at. Each look costs a system call per vCPU and counter.
pub(crate) const LOOK: Duration = Duration::from_millis(250);

/// What this machine can do, looked up before the sandbox hides it.
pub(crate) struct Interrupts {
    abilities: Abilities,
    sources: Vec<(String, Source)>,
}

impl Interrupts {
    /// Of this machine.
    pub(crate) fn here() -> Self {
        Self { abilities: Abilities::here(&probe::kvm()), sources: Vec::new() }
    }

    /// Says how each function's interrupts will be delivered.
    pub(crate) fn announce(&mut self, guest: &str, sources: &[(String, Source)]) {
        self.sources = sources.to_vec();
        for (device, source) in sources {
            output::error(&format!(
                "beamline: {guest}: {device}: interrupts {}",
                self.abilities.of(*source)
            ));
        }
    }

    /// Says what they have cost: in words on stderr, and where `event`, as JSON on stdout.
    pub(crate) fn conclude(
        &self,
        guest: &str,
        handle: &VmHandle,
        event: bool,
    ) -> anyhow::Result<()> {
        handle.sample_interrupts();
        let report = handle.interrupts();
        let told = self.tell(&report, handle.exits());
        output::error(&format!("beamline: {guest}: {}", told.line()));
        if event {
            // Nobody may listen any more, which is no mistake.
            output::json_line(&GuestEvent::Interrupts(told))?;
        }
        Ok(())
    }

    fn tell(&self, report: &Report, to_vmm: Exits) -> InterruptsEvent {
        let devices = self.sources.iter().map(|(device, source)| {
            let claim = self.abilities.of(*source);
            let Delivery { mode, found } = match &report.paced {
                Some(paced) => claim.checked(&paced.counts, paced.vblanks),
                None => claim.clone(),
            };
            DeviceDelivery { device: device.clone(), mode: mode.name().into(), found }
        });
        InterruptsEvent {
            label: "measured".into(),
            devices: devices.collect(),
            all: costs(&report.all),
            paced: report.paced.as_ref().map(costs),
            to_vmm_io: to_vmm.io,
            to_vmm_mmio: to_vmm.mmio,
            to_vmm_other: to_vmm.other,
            missing: report.missing.clone(),
        }
    }
}

fn costs(cost: &Cost) -> Costs {
    let exits = cost.counts.get(Counter::Exits);
    Costs {
        seconds: cost.time.as_secs_f64(),
        vblanks: cost.vblanks,
        exits_per_vblank: exits
            .filter(|_| cost.vblanks > 0)
            .map(|n| n as f64 / cost.vblanks as f64),
        counters: cost.counts.iter().map(|(c, n)| (c.name().to_owned(), n)).collect(),
    }
}

impl InterruptsEvent {
    /// For people, in one line.
    fn line(&self) -> String {
        let mut text = match (&self.paced, &self.missing) {
            (_, Some(why)) => format!("interrupts: KVM does not say what they cost: {why}"),
            (Some(paced), None) => format!("interrupts ({}): {}", self.label, paced.line()),
            (None, None) => {
                let exits = self.all.counters.get("exits").copied().unwrap_or(0);
                format!("interrupts ({}): no vblank came; {exits} exits", self.label)
            }
        };
        text += &format!(
            "; to this process: {} port accesses, {} memory accesses, {} others",
            self.to_vmm_io, self.to_vmm_mmio, self.to_vmm_other
        );
        text
    }
}

impl Costs {
    /// For people.
    pub(crate) fn line(&self) -> String {
        let per = self.exits_per_vblank.map_or_else(
            || "this KVM does not count exits".into(),
            |n| format!("{n:.1} exits per vblank"),
        );
        // What was never counted says nothing; a KVM may leave kinds out.
        let kinds: Vec<String> = self
            .counters
            .iter()
            .filter(|(name, n)| **n > 0 && *name != "exits")
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        let kinds = if kinds.is_empty() { "none".into() } else { kinds.join(", ") };
        format!(
            "{per} over {} vblanks in {:.1} s; KVM counted: {kinds}",
            self.vblanks, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_vmm::interrupt::stats::Counts;

    #[test]
    fn a_report_tells_exits_per_vblank_and_what_was_not_counted() {
        let interrupts = Interrupts {
            abilities: Abilities::here(&probe::KvmKind::Pvm),
            sources: vec![("vr-pacer.sock".into(), Source::Irqfd)],
        };
        let counts = |n| Counts::default().with(Counter::Exits, n).with(Counter::Irq, 90);
        let cost = |n, vblanks| Cost { time: Duration::from_secs(2), vblanks, counts: counts(n) };
        let report = Report { all: cost(5000, 180), paced: Some(cost(360, 180)), missing: None };
        let told = interrupts.tell(&report, Exits { io: 7, mmio: 8, other: 9 });
        let line = told.line();
        for part in
            ["(measured): 2.0 exits per vblank over 180 vblanks in 2.0 s", "irq_exits 90", "7 port"]
        {
            assert!(line.contains(part), "no `{part}` in {line}");
        }
        assert_eq!(told.devices[0].mode, "injected with an exit");
        assert!(told.devices[0].found.contains("does not count injections"), "{:?}", told.devices);
        let none =
            Report { all: Cost::default(), paced: None, missing: Some("no statistics".into()) };
        assert!(
            interrupts
                .tell(&none, Exits::default())
                .line()
                .contains("does not say what they cost: no statistics")
        );
        let unpaced = Report { all: cost(5, 0), paced: None, missing: None };
        assert!(
            interrupts.tell(&unpaced, Exits::default()).line().contains("no vblank came; 5 exits")
        );
    }
}
