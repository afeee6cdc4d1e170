//! Stage 4, schedule: the queued and running jobs, one list per tenant in the order of submission.
//!
//! Slots are indexed by [`Ticket`] and linked into their tenant's list, so that nothing is allocated or
//! searched after [`JobTable::new`]. A ticket that is out of range or in use is refused, never overwritten.

use crate::policy::{JobSpec, QueueFull, TenantId, Ticket};
use alloc::{vec, vec::Vec};
use beamline_abi::{FrameId, JobIndex, Nanos};

const END: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Queued,
    Running,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    spec: JobSpec,
    /// The job behind this one in its tenant's list.
    next: u32,
    /// The tenant's life it belongs to.
    life: u32,
    note: Note,
}

/// What the policy wants back when the job completes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Note {
    /// Cost it was expected to have, ns.
    pub(crate) expected: u64,
    /// Cost it can have at most, ns.
    pub(crate) worst: u64,
    /// Whether it was granted as reserved work.
    pub(crate) reserved: bool,
    /// What the change of tenant before it is charged at, ns.
    pub(crate) switch: u64,
}

#[derive(Clone, Copy, Debug)]
struct List {
    open: bool,
    head: u32,
    tail: u32,
    life: u32,
}

/// A job that has left the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) spec: JobSpec,
    pub(crate) note: Note,
    /// Its tenant was removed (or replaced) meanwhile.
    pub(crate) orphan: bool,
}

#[derive(Debug)]
pub(crate) struct JobTable {
    slots: Vec<Slot>,
    lists: Vec<List>,
    queued: u32,
}

impl JobTable {
    pub(crate) fn new(max_tenants: usize, max_jobs: usize) -> Self {
        let slot = Slot {
            state: State::Free,
            spec: JobSpec {
                ticket: Ticket(0),
                tenant: TenantId(0),
                frame: FrameId::NONE,
                job: JobIndex(0),
                jobs: 0,
                late_latch: false,
                arrival: Nanos::ZERO,
                release: Nanos::ZERO,
                deadline: Nanos::MAX,
                slot: 0,
            },
            next: END,
            life: 0,
            note: Note::default(),
        };
        let list = List { open: false, head: END, tail: END, life: 0 };
        Self { slots: vec![slot; max_jobs], lists: vec![list; max_tenants], queued: 0 }
    }

    /// Jobs that wait.
    pub(crate) fn queued(&self) -> u32 {
        self.queued
    }

    /// Opens a tenant's list. False where the number is out of range.
    pub(crate) fn open(&mut self, tenant: usize) -> bool {
        self.clear(tenant);
        let Some(list) = self.lists.get_mut(tenant) else {
            return false;
        };
        list.open = true;
        list.life = list.life.wrapping_add(1);
        true
    }

    /// Drops a tenant's queued jobs and closes its list.
    pub(crate) fn close(&mut self, tenant: usize) {
        self.clear(tenant);
        if let Some(list) = self.lists.get_mut(tenant) {
            list.open = false;
            list.life = list.life.wrapping_add(1);
        }
    }

    /// Drops a tenant's queued jobs.
    pub(crate) fn clear(&mut self, tenant: usize) {
        while self.take_head(tenant, State::Free).is_some() {}
    }

    pub(crate) fn push(&mut self, spec: JobSpec) -> Result<(), QueueFull> {
        let full = QueueFull { capacity: self.slots.len() as u32 };
        let at = spec.ticket.0;
        let list = self.lists.get_mut(usize::from(spec.tenant.0)).filter(|l| l.open).ok_or(full)?;
        let slot = self.slots.get_mut(at as usize).ok_or(full)?;
        if slot.state != State::Free {
            return Err(full);
        }
        *slot =
            Slot { state: State::Queued, spec, next: END, life: list.life, note: Note::default() };
        let tail = core::mem::replace(&mut list.tail, at);
        if tail == END {
            list.head = at;
        } else {
            self.slots[tail as usize].next = at;
        }
        self.queued += 1;
        Ok(())
    }

    /// The job of this tenant that runs next.
    pub(crate) fn head(&self, tenant: usize) -> Option<&JobSpec> {
        let head = self.lists.get(tenant)?.head;
        self.slots.get(head as usize).map(|s| &s.spec)
    }

    /// The job of that name on the GPU, where its tenant is still there.
    pub(crate) fn running(&self, ticket: Ticket) -> Option<&JobSpec> {
        let slot = self.slots.get(ticket.0 as usize).filter(|s| s.state == State::Running)?;
        let life = self.lists.get(usize::from(slot.spec.tenant.0))?.life;
        (life == slot.life).then_some(&slot.spec)
    }

    /// Takes a tenant's next job out of its list: it runs now.
    pub(crate) fn start(&mut self, tenant: usize, note: Note) -> Option<JobSpec> {
        let at = self.take_head(tenant, State::Running)?;
        let slot = &mut self.slots[at as usize];
        slot.note = note;
        Some(slot.spec)
    }

    /// Ends a running job; `None` where none of that name runs.
    pub(crate) fn finish(&mut self, ticket: Ticket) -> Option<Finished> {
        let slot = self.slots.get_mut(ticket.0 as usize)?;
        if slot.state != State::Running {
            return None;
        }
        slot.state = State::Free;
        let life = self.lists.get(usize::from(slot.spec.tenant.0))?.life;
        Some(Finished { spec: slot.spec, note: slot.note, orphan: life != slot.life })
    }

    /// A running job waits again, as the first of its tenant's; if its tenant is gone, it is forgotten. `None`
    /// where none of that name runs.
    pub(crate) fn put_back(&mut self, ticket: Ticket) -> Option<Finished> {
        let slot = self.slots.get_mut(ticket.0 as usize)?;
        if slot.state != State::Running {
            return None;
        }
        let list = self.lists.get_mut(usize::from(slot.spec.tenant.0))?;
        let back = Finished { spec: slot.spec, note: slot.note, orphan: list.life != slot.life };
        if back.orphan || !list.open {
            slot.state = State::Free;
            return Some(back);
        }
        slot.state = State::Queued;
        slot.next = core::mem::replace(&mut list.head, ticket.0);
        if list.tail == END {
            list.tail = ticket.0;
        }
        self.queued += 1;
        Some(back)
    }

    fn take_head(&mut self, tenant: usize, state: State) -> Option<u32> {
        let list = self.lists.get_mut(tenant)?;
        let at = list.head;
        let slot = self.slots.get_mut(at as usize)?;
        slot.state = state;
        list.head = slot.next;
        if list.head == END {
            list.tail = END;
        }
        self.queued -= 1;
        Some(at)
    }
}
