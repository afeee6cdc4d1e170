//! Who is admitted, and where everybody's vblanks lie.

use super::scenario::{Options, Phases, Scenario, Tenant};
use super::work::random_phase;
use crate::admission::{Admission, Current};
use crate::contract::{Contract, Sink};
use crate::phase;
use crate::policy::TenantId;
use beamline_abi::Nanos;
use std::string::{String, ToString};
use std::vec::Vec;

/// What admission says to a tenant: the phase it is given, or none where its phase is not the host's to give;
/// or why it is refused.
pub(super) type Answer = Result<Option<Nanos>, String>;

fn hosts(t: &Tenant, phases: Phases) -> bool {
    phases == Phases::Assigned && t.phase.is_none() && t.contract.sink == Sink::Virtual
}

/// Asks admission for every tenant, or, without it, only places them. Depends on no seed.
///
/// Only phases that the host assigns count in admission; with any others every alignment has to be in time, so that
/// the offset-free test applies, as it does to displays with a clock of their own.
pub(super) fn admit(scenario: &Scenario, phases: Phases, admission: bool) -> Vec<Answer> {
    // As admission is to see it.
    let contract = |t: &Tenant| {
        let sink = if hosts(t, phases) { Sink::Virtual } else { Sink::External };
        Contract { sink, ..t.contract }
    };
    let tenants = &scenario.tenants;
    let mut answers: Vec<Answer> = std::vec![Ok(None); tenants.len()];
    if admission {
        let admission = Admission::new(scenario.caps, tenants.len());
        let mut current: Vec<Current> = Vec::with_capacity(tenants.len());
        // Tight contracts first, as the host asks.
        let mut order: Vec<usize> = (0..tenants.len()).collect();
        order.sort_by_key(|&i| {
            let c = &tenants[i].contract;
            (c.class, c.late_latch.is_none(), c.period.floor(), i)
        });
        for i in order {
            let t = &tenants[i];
            answers[i] = match admission.try_admit(&current, &contract(t)) {
                Ok(admitted) => {
                    current.push((TenantId(i as u16), contract(t), admitted.phase));
                    Ok(hosts(t, phases).then_some(admitted.phase))
                }
                Err(refusal) => Err(refusal.to_string()),
            };
        }
    } else if phases == Phases::Assigned {
        let contracts: Vec<Contract> = tenants.iter().map(contract).collect();
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
