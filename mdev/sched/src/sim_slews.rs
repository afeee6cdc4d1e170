//! Slewing in virtual time: no contract is broken while vblanks move.

use super::cases::any_class;
use super::misses::lenient;
use super::*;
use crate::admission::{Admission, Current};
use crate::kind::PolicyKind;
use crate::slew::{Slew, Slewing};
use proptest::prelude::*;

proptest! {
    /// Tenants slew where admission says they may, many at once: every promise is kept meanwhile.
    #[test]
    fn slewing_never_breaks_a_contract(
        caps in any_class(),
        contracts in prop::collection::vec(lenient(), 2..6),
        ways in prop::collection::vec((any::<u64>(), any::<u64>(), 0u64..20, any::<bool>()), 6),
        seed: u64,
    ) {
        let admission = Admission::new(caps, 64);
        let mut set: Vec<Current> = vec![];
        for c in &contracts {
            if let Ok(got) = admission.try_admit(&set, c) {
                set.push((TenantId(set.len() as u16), *c, got.phase));
            }
        }
        let mut guests: Vec<Guest> = set.iter().map(|(_, c, p)| Guest::of(*c, *p)).collect();
        let mut newcomer = None;
        for (i, &(from, to, first, moves)) in ways.iter().enumerate().take(set.len()) {
            let (id, c, phase) = set[i];
            let whole = c.period.floor().0;
            let slewing = admission.try_slew(&set, id, Nanos(to % whole));
            match slewing {
                // Any alignment will do, and all may move at once.
                Ok(Slewing::Promised) if moves => {
                    let (from, to) = (Nanos(from % whole), Nanos(to % whole));
                    guests[i].phase = from.0;
                    guests[i].slew = Slew::plan(c.period, from, to, first).ok();
                }
                // One comes from anywhere, without a promise yet, to its own place.
                _ if newcomer.is_none()
                    && admission.try_slew(&set, id, phase) == Ok(Slewing::PromisedOnArrival) =>
                {
                    newcomer = Some(i);
                    let from = Nanos(from % whole);
                    let elastic = Contract { class: Class::Elastic, ..c };
                    let slew = Slew::plan(c.period, from, phase, first).ok();
                    guests[i] = Guest { slew, ..Guest::of(elastic, from) };
                }
                _ => {}
            }
        }
        let mut policy = PolicyKind::Beamline.build(caps, 64, 512);
        let tally = Sim::new(policy.as_mut(), guests, caps, seed).run(1_200_000_000);
        for (i, (t, (_, c, _))) in tally.iter().zip(&set).enumerate() {
            if newcomer != Some(i) {
                prop_assert!(t.most_missed <= c.miss.misses, "{i}: {t:?} {caps:?} {set:?} {ways:?}");
                prop_assert!(t.kept > 0);
            }
        }
    }
}
