//! Stage 4, schedule: budget servers: how much a tenant may still use, and what it owes.
//!
//! * [`Server`]: a reserved tenant's frames. Every vblank opens an account of one budget that pays for the
//!   jobs of its frame, also when they run late. What goes beyond an account becomes debt, capped at one
//!   budget (or one longest job, where that is more), and is withheld from the tenant's own next accounts:
//!   never from a neighbour's. While in debt, a job must be expected to fit its account.
//! * [`Minimum`]: what a background tenant is promised per period. What it could not get although it had
//!   work waiting carries over, up to four budgets, so that the promised rate is reached.

/// Accounts that are remembered: more frames than a contract's largest depth has in flight.
const ACCOUNTS: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    slot: u64,
    left: u64,
    open: bool,
    /// When its work is due in its order among others', since the busy period named.
    due: Option<Due>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    busy: u64,
    time: u64,
}

/// The budget of one tenant's frames. All amounts in ns.
#[derive(Clone, Debug)]
pub struct Server {
    capacity: u64,
    accounts: [Account; ACCOUNTS],
    newest: u64,
    debt: u64,
    most_debt: u64,
    /// The account that was given its place last, and when it is due.
    last: Option<(u64, Due)>,
}

impl Server {
    /// A server that grants `capacity` ns at each vblank to jobs of at most `max_job` ns, with no account
    /// open yet.
    pub const fn new(capacity: u64, max_job: u64) -> Self {
        Self {
            capacity,
            most_debt: if capacity > max_job { capacity } else { max_job },
            accounts: [Account { slot: 0, left: 0, open: false, due: None }; ACCOUNTS],
            newest: 0,
            debt: 0,
            last: None,
        }
    }

    /// Opens the account of vblank `slot`. Opening one twice, or one older than those remembered, changes
    /// nothing.
    pub fn renew(&mut self, slot: u64) {
        let account = &mut self.accounts[slot as usize % ACCOUNTS];
        if account.open && account.slot >= slot {
            return;
        }
        let repaid = self.debt.min(self.capacity);
        self.debt -= repaid;
        *account = Account { slot, left: self.capacity - repaid, open: true, due: None };
        self.newest = self.newest.max(slot);
    }

    /// What the account of `slot` still holds.
    pub fn left(&self, slot: u64) -> u64 {
        let account = &self.accounts[slot as usize % ACCOUNTS];
        if account.open && account.slot == slot { account.left } else { 0 }
    }

    /// What the newest account still holds.
    pub fn left_now(&self) -> u64 {
        self.left(self.newest)
    }

    /// Whether the account of `slot` pays for a job expected to cost `expected`. Only who owes nothing may
    /// go beyond an account that is not empty.
    pub fn pays(&self, slot: u64, expected: u64) -> bool {
        let left = self.left(slot);
        left > 0 && (self.debt == 0 || left >= expected)
    }

    /// Takes `cost` from the account of `slot`; what it does not hold becomes debt.
    pub fn charge(&mut self, slot: u64, cost: u64) {
        let beyond = self.pay(slot, cost);
        self.owe(beyond);
    }

    /// Takes `cost` from the account of `slot`; answers what it does not hold.
    pub fn pay(&mut self, slot: u64, cost: u64) -> u64 {
        let account = &mut self.accounts[slot as usize % ACCOUNTS];
        if !account.open || account.slot != slot {
            return cost;
        }
        let paid = account.left.min(cost);
        account.left -= paid;
        cost - paid
    }

    /// When the work that the account of `slot` pays for is due, for its order among others' work. It keeps
    /// its place for the busy period `busy`; and within one, accounts are due a `period` apart, so that
    /// however late they come, they never ask for more than admission has charged.
    ///
    /// `nominal`: what the contract says. `put_off`: not before this, because the tenant itself is late.
    pub fn due(
        &mut self,
        slot: u64,
        nominal: u64,
        put_off: Option<u64>,
        now: u64,
        busy: u64,
        period: u64,
    ) -> u64 {
        let wanted = nominal.max(put_off.unwrap_or(0));
        let account = &mut self.accounts[slot as usize % ACCOUNTS];
        if !account.open || account.slot != slot {
            return wanted;
        }
        let placed = account.due.filter(|d| d.busy == busy);
        if let Some(d) = placed.filter(|d| put_off.is_none() || d.time > now) {
            return d.time;
        }
        let apart = match self.last {
            Some((last, d)) if d.busy == busy && last != slot => d.time.saturating_add(period),
            _ => 0,
        };
        let due = Due { busy, time: wanted.max(apart) };
        account.due = Some(due);
        self.last = Some((slot, due));
        due.time
    }

    /// The slot whose work was given its place last.
    pub fn last_slot(&self) -> Option<u64> {
        self.last.map(|(slot, _)| slot)
    }

    /// The account of `slot` loses its place among others' work: it counts as released anew.
    pub fn displace(&mut self, slot: u64) {
        let account = &mut self.accounts[slot as usize % ACCOUNTS];
        if account.slot == slot {
            account.due = None;
        }
    }

    /// Adds to the debt.
    pub fn owe(&mut self, cost: u64) {
        self.debt = self.debt.saturating_add(cost).min(self.most_debt);
    }

    /// What a fresh account holds.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// What is owed.
    pub const fn debt(&self) -> u64 {
        self.debt
    }
}

/// The promised minimum of one background tenant. All amounts in ns.
#[derive(Clone, Debug)]
pub struct Minimum {
    capacity: u64,
    left: u64,
}

impl Minimum {
    /// Periods of arrears that are kept.
    const CARRY: u64 = 4;

    /// A minimum of `capacity` ns per period; the first period begins at the first renewal.
    pub const fn new(capacity: u64) -> Self {
        Self { capacity, left: 0 }
    }

    /// A period begins. `waiting`: the tenant had work queued, so what it did not get is still owed to it.
    pub fn renew(&mut self, waiting: bool) {
        let carried = if waiting { self.left } else { 0 };
        self.left =
            carried.saturating_add(self.capacity).min(self.capacity.saturating_mul(Self::CARRY));
    }

    /// What is still owed to the tenant.
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Whether a whole earlier period's minimum is missing in part.
    pub const fn is_behind(&self) -> bool {
        self.left > self.capacity
    }

    /// The tenant got `cost`.
    pub fn charge(&mut self, cost: u64) {
        self.left = self.left.saturating_sub(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overrun_is_repaid_from_the_next_accounts() {
        let mut s = Server::new(100, 0);
        s.renew(5);
        s.charge(5, 130);
        assert_eq!((s.left(5), s.debt()), (0, 30));
        s.renew(6);
        assert_eq!((s.left(6), s.debt()), (70, 0));
        s.charge(6, 1_000);
        assert_eq!(s.debt(), 100, "capped at one budget");
        s.renew(7);
        assert_eq!((s.left(7), s.debt()), (0, 0));
        s.renew(8);
        assert_eq!(s.left(8), 100);
    }

    #[test]
    fn a_late_frame_is_paid_by_its_own_account() {
        let mut s = Server::new(100, 0);
        s.renew(0);
        s.renew(1);
        s.charge(0, 100);
        assert_eq!((s.left(0), s.left(1), s.debt()), (0, 100, 0));
        s.renew(1);
        s.renew(0);
        assert_eq!((s.left(0), s.left(1)), (0, 100), "no account opens twice");
        s.charge(77, 10);
        assert_eq!(s.debt(), 10, "no such account: all of it is beyond budget");
    }

    #[test]
    fn a_minimum_carries_over_only_with_work_waiting() {
        let mut m = Minimum::new(10);
        m.renew(true);
        m.renew(true);
        assert!(m.is_behind());
        assert_eq!(m.left(), 20);
        for _ in 0..9 {
            m.renew(true);
        }
        assert_eq!(m.left(), 40);
        m.renew(false);
        assert_eq!(m.left(), 10);
    }

    proptest! {
        /// Over any run, what was paid from accounts is at most one capacity per vblank, less the debt that
        /// was withheld, and debt never exceeds one capacity.
        #[test]
        fn conserved_and_capped(
            capacity in 0u64..=u64::MAX,
            ops in prop::collection::vec((any::<bool>(), any::<u64>(), 0u64..10), 0..200),
        ) {
            let mut s = Server::new(capacity, 0);
            let (mut slot, mut opened, mut paid) = (0u64, 0u128, 0u128);
            for (vblank, cost, back) in ops {
                if vblank {
                    slot += 1;
                    s.renew(slot);
                    opened += u128::from(capacity);
                } else {
                    let at = slot.saturating_sub(back);
                    let before = s.left(at);
                    s.charge(at, cost);
                    prop_assert!(s.left(at) <= before);
                    paid += u128::from(before - s.left(at));
                }
                prop_assert!(s.debt() <= capacity);
                prop_assert!(s.left_now() <= capacity);
                prop_assert!(paid <= opened);
            }
        }
    }
}
