//! Who is admitted, and where everybody's vblanks lie.

use super::scenario::{MAX_TENANTS, Options, Phases, Scenario, Tenant};
use super::work::random_phase;
use crate::admission::{Admission, Current};
use crate::contract::{Contract, Sink};
use crate::phase;
use crate::policy::{GpuCaps, TenantId};
use beamline_abi::Nanos;
use std::string::{String, ToString};
use std::vec::Vec;

/// What admission says to a tenant: the phase it is given, or none where its phase is not the host's to give;
/// or why it is refused.
pub(super) type Answer = Result<Option<Nanos>, String>;

fn hosts(t: &Tenant, phases: Phases) -> bool {
    phases == Phases::Assigned && t.phase.is_none() && t.contract.sink == Sink::Virtual
}

/// Asks admission for one tenant after the other.
///
/// Only phases that the host assigns count in admission; with any others every alignment has to be in time, so that
/// the offset-free test applies, as it does to displays with a clock of their own.
#[derive(Debug)]
pub(super) struct Door {
    admission: Admission,
    phases: Phases,
    current: Vec<Current>,
}

impl Door {
    pub(super) fn new(caps: GpuCaps, phases: Phases) -> Self {
        Self { admission: Admission::new(caps, MAX_TENANTS), phases, current: Vec::new() }
    }

    /// The contract as admission is to see it.
    fn contract(t: &Tenant, phases: Phases) -> Contract {
        let sink = if hosts(t, phases) { Sink::Virtual } else { Sink::External };
        Contract { sink, ..t.contract }
    }

    /// Whether tenant `i` is admitted beside those that were.
    pub(super) fn ask(&mut self, i: usize, t: &Tenant) -> Answer {
        let contract = Self::contract(t, self.phases);
        match self.admission.try_admit(&self.current, &contract) {
            Ok(admitted) => {
                self.current.push((TenantId(i as u16), contract, admitted.phase));
                Ok(hosts(t, self.phases).then_some(admitted.phase))
            }
            Err(refusal) => Err(refusal.to_string()),
        }
    }
}

/// Asks admission for every tenant, or, without it, only places them. Depends on no seed.
pub(super) fn admit(scenario: &Scenario, phases: Phases, admission: bool) -> Vec<Answer> {
    let tenants = &scenario.tenants;
    let mut answers: Vec<Answer> = std::vec![Ok(None); tenants.len()];
    if admission {
        let mut door = Door::new(scenario.caps, phases);
        // Tight contracts first, as the host asks.
        let mut order: Vec<usize> = (0..tenants.len()).collect();
        order.sort_by_key(|&i| {
            let c = &tenants[i].contract;
            (c.class, c.late_latch.is_none(), c.period.floor(), i)
        });
        for i in order {
            answers[i] = door.ask(i, &tenants[i]);
        }
    } else if phases == Phases::Assigned {
        let contracts: Vec<Contract> = tenants.iter().map(|t| Door::contract(t, phases)).collect();
        let ids: Vec<(TenantId, &Contract)> =
            contracts.iter().enumerate().map(|(i, c)| (TenantId(i as u16), c)).collect();
        for (id, phase) in phase::assign(&ids, &scenario.caps) {
            let i = usize::from(id.0);
            answers[i] = Ok(hosts(&tenants[i], phases).then_some(phase));
        }
    }
    answers
}

/// Where an admitted tenant's vblanks lie: as the host says, as the tenant says, or as the options say.
pub(super) fn phase(given: Option<Nanos>, t: &Tenant, i: usize, options: &Options) -> Nanos {
    match (given.or(t.phase), options.phases) {
        (Some(phase), _) => phase,
        (None, Phases::Synchronous) => Nanos::ZERO,
        (None, Phases::Random | Phases::Assigned) => {
            Nanos(random_phase(t.contract.period.floor().0, options.seed, i))
        }
    }
}
