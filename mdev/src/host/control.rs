//! The control side of a host: who may ask what of a running host, and how it reaches the dispatcher.
//!
//! [`Controller`] owns the set of contracts and the slices' threads, behind one lock that no thread of the
//! frame's path ever takes. Admission runs in the caller's thread; what it decides goes to the dispatcher as
//! one message through a bounded ring, and what the dispatcher gives up comes back through another, to be
//! dropped here.
//!
//! ```text
//!   create ──▶ serving ──── change (admitted; the dispatcher carries it out) ──▶ serving
//!                 │
//!               remove: GPU work ends ▶ its sockets and guests' connections end ▶ the place is free
//! ```

mod asks;
mod quiesce;

use super::admit::{Ledger, NotNow, Place, Promise};
use super::dispatch::{Control, Link};
use super::slice::{self, SliceServer};
use super::threads::Placement;
use super::{HostError, ReadySlice, SliceStats};
use crate::backend::{Event, Label};
use crate::config::slice::SliceError;
use crate::config::{HostConfig, SliceConfig};
use crate::device::eventfd::EventFd;
use crate::mediate::dispatcher::{Change, SliceCounters, Stand};
use crate::mediate::display::screen::Image;
pub(super) use asks::AskThread;
use asks::Asked;
pub use asks::LastAsk;
use beamline_abi::{Generation, Nanos};
use beamline_latency::clock::{Clock, GuestTsc, TscMap};
use beamline_latency::recorder::{Recorder, Registry};
use beamline_sched::{Contract, PolicyKind, Refusal};
pub use quiesce::{DRAIN_PATIENCE, Quiesce};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a picture may take to come back.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(2);
/// When to look again for the end of a change, whose end is not known beforehand.
const LOOK_AGAIN: Nanos = Nanos::from_millis(50);
/// How long guests' requests let an operator's go first, once what that waits for is over.
const PRECEDENCE: Nanos = Nanos::from_millis(200);

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No slice has this name.
    #[error("there is no slice `{0}`")]
    NoSlice(String),
    /// Another slice has this name.
    #[error("`{0}` is the name of another slice")]
    Taken(String),
    /// The slice is being removed.
    #[error("slice `{0}` is being removed")]
    Leaving(String),
    /// A change before this one is under way; nothing has changed.
    #[error("a change before this one is still under way")]
    Busy {
        /// When to ask again at the earliest, from now.
        wait: Nanos,
    },
    /// Admission says no; everything is as it was.
    #[error("the contract is refused: {0}")]
    Refused(Refusal),
    /// A value of the slice does not do.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The slice has no picture to show.
    #[error("slice `{0}` has presented nothing, or its backend draws no images")]
    NoPicture(String),
    /// The slice's devices or sockets cannot be made.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host is ending, or its dispatcher has.
    #[error("this host is ending")]
    Ended,
}

/// A slice as it is now.
#[derive(Clone, Debug)]
pub struct SliceView {
    /// Its name, its display and its memory; the contract that is promised, or will be on arrival.
    pub config: SliceConfig,
    /// Its sockets and its phase.
    pub ready: ReadySlice,
    /// Whether its guest renders.
    pub stand: Stand,
    /// The contract that the operator gave: what its guest may choose within.
    pub ceiling: Contract,
    /// What its guest asked for last.
    pub asked: Option<LastAsk>,
    /// Whether its guest is asked to stop submitting.
    pub quiesce: Quiesce,
    /// A change of its contract is under way.
    pub changing: bool,
    /// It is being removed.
    pub leaving: bool,
    /// What it has done.
    pub stats: SliceStats,
}

/// What does not change while a host runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How its times come about.
    pub label: Label,
    /// The GPU, for people.
    pub gpu: String,
    /// Who decides the order.
    pub policy: PolicyKind,
    /// Slices it has room for.
    pub max_slices: usize,
}

/// What slices are made with.
pub(super) struct Workshop {
    pub(super) config: HostConfig,
    pub(super) origin: Nanos,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tsc: TscMap,
    pub(super) placement: Placement,
    pub(super) wake: EventFd,
    /// Signalled when a guest asks for another contract.
    pub(super) asked: EventFd,
    pub(super) registry: Option<Registry>,
}

/// Looks at a running host and changes it. Calls may block for the time that admission takes, or for a peer
/// that is slow to let go: not for the frame's path.
pub struct Controller {
    workshop: Workshop,
    facts: Facts,
    state: Mutex<State>,
}

struct State {
    ledger: Ledger,
    /// By place.
    slices: Vec<Option<Entry>>,
    /// Who had a place last, and the first life of who comes next.
    past: Vec<Option<Past>>,
    link: Link,
    /// Until then an operator's change goes first.
    claimed: Nanos,
    ended: bool,
}

struct Entry {
    config: SliceConfig,
    place: Place,
    /// The operator's contract.
    ceiling: Contract,
    asked: Asked,
    counters: Arc<SliceCounters>,
    /// `None`: it is being removed.
    server: Option<SliceServer>,
}

/// A slice that is gone, as the log tells of it.
pub(super) struct Past {
    pub(super) name: String,
    pub(super) contract: Contract,
    pub(super) tsc: Option<GuestTsc>,
    next: Generation,
}

impl Controller {
    /// A controller that has started the configuration's slices, whose contracts `ledger` holds.
    pub(super) fn new(
        workshop: Workshop,
        facts: Facts,
        ledger: Ledger,
        link: Link,
    ) -> Result<Self, HostError> {
        let most = workshop.config.max_slices;
        let mut state = State {
            ledger,
            slices: (0..most).map(|_| None).collect(),
            past: (0..most).map(|_| None).collect(),
            link,
            claimed: Nanos::ZERO,
            ended: false,
        };
        for (index, slice) in workshop.config.slices.iter().enumerate() {
            let index = index as u16;
            // Every slice of the configuration was admitted before.
            let Some(place) = state.ledger.place(index) else { continue };
            if let Err(error) = start(&workshop, &mut state, index, slice.clone(), place) {
                // Nobody else will.
                let _ = state.link.send(Control::Stop);
                return Err(error);
            }
        }
        Ok(Self { workshop, facts, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in another call has left nothing half done that this one could not see.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the control socket is.
    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.workshop.config.control_socket()
    }

    /// Where the host's threads run.
    pub(super) fn placement(&self) -> &Placement {
        &self.workshop.placement
    }

    /// Has the dispatcher look at the clock.
    #[cfg(feature = "fuzz")]
    pub(super) fn wake(&self) {
        self.workshop.wake.signal();
    }

    /// What does not change.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What the set of contracts rests on.
    pub fn promise(&self) -> Promise {
        self.lock().ledger.promise()
    }

    /// Every slice, by place.
    pub fn slices(&self) -> Vec<SliceView> {
        let state = self.lock();
        state.slices.iter().flatten().map(|entry| self.view(entry)).collect()
    }

    /// The slice of this name.
    pub fn slice(&self, name: &str) -> Result<SliceView, ControlError> {
        let state = self.lock();
        let (_, entry) = state.find(name)?;
        Ok(self.view(entry))
    }

    fn view(&self, entry: &Entry) -> SliceView {
        let config = &self.workshop.config;
        SliceView {
            ready: ReadySlice {
                name: entry.config.name.clone(),
                pacer: config.pacer_socket(&entry.config),
                gpu: config.gpu_socket(&entry.config),
                phase: entry.place.phase,
            },
            stand: entry.counters.stand(),
            ceiling: entry.ceiling,
            asked: entry.server.as_ref().and_then(|s| entry.asked.last(s.pacer())),
            quiesce: entry.quiesce(),
            changing: entry.counters.changing.load(Ordering::Acquire),
            leaving: entry.server.is_none(),
            stats: stats(&entry.config.name, &entry.counters),
            config: entry.config.clone(),
        }
    }

    /// Admits a slice and serves it: when this returns, its guest can attach.
    pub fn create(&self, slice: SliceConfig) -> Result<SliceView, ControlError> {
        if let Some((socket, len)) = self.workshop.config.socket_too_long(&slice) {
            let most = HostConfig::MAX_SOCKET_PATH;
            let socket = socket.display();
            return Err(ControlError::Slice(SliceError {
                key: "name".into(),
                problem: format!(
                    "the socket path {socket} has {len} bytes; the system takes {most}: choose a shorter name"
                ),
            }));
        }
        let mut state = self.open()?;
        if state.find(&slice.name).is_ok() {
            return Err(ControlError::Taken(slice.name));
        }
        state.link.is_open()?;
        let now = self.workshop.clock.now();
        // A place that nobody had keeps the log of stamps clear; else any that is free.
        let free = |fresh: bool| {
            let mut places = state.slices.iter().zip(&state.past);
            places.position(|(entry, past)| entry.is_none() && (past.is_none() || !fresh))
        };
        let full = Refusal::Full { max_tenants: self.facts.max_slices };
        let index = free(true).or_else(|| free(false)).ok_or(ControlError::Refused(full))? as u16;
        let admitted = state.ledger.admit(index, &slice.contract, now);
        let place = admitted.map_err(|not| not_now(&mut state, not, now))?;
        if let Err(error) = start(&self.workshop, &mut state, index, slice, place) {
            state.ledger.remove(index, now);
            return Err(error.into());
        }
        let entry = state.slices[usize::from(index)].as_ref();
        entry.map(|entry| self.view(entry)).ok_or(ControlError::Ended)
    }

    /// Gives a slice another contract, which `new` makes from the operator's contract before it; from now on
    /// its guest may choose within this one. Where it is refused, the slice keeps the one it has.
    pub fn change(
        &self,
        name: &str,
        new: impl FnOnce(&Contract) -> Result<Contract, SliceError>,
    ) -> Result<SliceView, ControlError> {
        let mut state = self.open()?;
        let (index, entry) = state.find(name)?;
        if entry.server.is_none() {
            return Err(ControlError::Leaving(name.into()));
        }
        let contract = new(&entry.ceiling)?;
        let now = self.workshop.clock.now();
        if contract != entry.place.contract {
            if entry.counters.changing.load(Ordering::Acquire) {
                return Err(not_now(&mut state, NotNow::Busy(now.saturating_add(LOOK_AGAIN)), now));
            }
            state.link.is_open()?;
            let admitted = state.ledger.change(index, &contract, now);
            let change = admitted.map_err(|not| not_now(&mut state, not, now))?;
            state.carry_out(index, change)?;
        }
        let Some(entry) = state.slices[usize::from(index)].as_mut() else {
            return Err(ControlError::NoSlice(name.into()));
        };
        entry.ceiling = contract;
        Ok(self.view(entry))
    }

    /// Ends a slice: its GPU work, then its guest's connections, whose functions go away. When this returns,
    /// its name and its place can be used again.
    pub fn remove(&self, name: &str) -> Result<(), ControlError> {
        let (index, mut server, link, past) = {
            let mut state = self.open()?;
            let (index, entry) = state.find(name)?;
            if entry.server.is_none() {
                return Err(ControlError::Leaving(name.into()));
            }
            let link = state.link.remove(index)?;
            state.ledger.remove(index, self.workshop.clock.now());
            let Some(entry) = state.slices[usize::from(index)].as_mut() else {
                return Err(ControlError::NoSlice(name.into()));
            };
            let Some(server) = entry.server.take() else {
                return Err(ControlError::Leaving(name.into()));
            };
            let past = Past {
                name: entry.config.name.clone(),
                contract: entry.place.contract,
                tsc: server.guest_tsc(),
                next: Generation(0),
            };
            (index, server, link, past)
        };
        // Without the lock: a peer that does not take its interrupts may hold its slice's poster up.
        server.ask_to_stop();
        let stuck = server.join(Instant::now() + slice::STOP_PATIENCE);
        let next = Generation(server.generation().0.wrapping_add(1));
        drop(link);
        let mut state = self.lock();
        if stuck > 0 {
            // They have rings of their own, which nobody reads any more.
            tracing::warn!(slice = name, stuck, "threads are held up by the guest's eventfds");
        }
        state.past[usize::from(index)] = Some(Past { next, ..past });
        state.slices[usize::from(index)] = None;
        Ok(())
    }

    /// What a slice shows: its 2D scanout with the cursor over it, or without one what its context presented
    /// last.
    pub fn scanout(&self, name: &str) -> Result<Image, ControlError> {
        let screen = {
            let state = self.lock();
            let (_, entry) = state.find(name)?;
            entry.server.as_ref().map(|server| Arc::clone(server.screen()))
        };
        if let Some(image) = screen.and_then(|screen| screen.image()) {
            return Ok(image);
        }
        let asked = self.ask_for_picture(name)?;
        match asked.recv_timeout(CAPTURE_PATIENCE) {
            Ok(Event::Image { width, height, rgba, .. }) if width > 0 && height > 0 => {
                Ok(Image { width, height, rgba })
            }
            _ => Err(ControlError::NoPicture(name.into())),
        }
    }

    fn ask_for_picture(&self, name: &str) -> Result<Receiver<Event>, ControlError> {
        let mut state = self.lock();
        let (index, _) = state.find(name)?;
        let (reply, image) = channel();
        state.link.send(Control::Capture { slice: index, reply })?;
        Ok(image)
    }

    /// Takes no more changes from here on, ends every slice and the dispatcher; how many threads their peers
    /// hold up.
    pub(super) fn end(&self) -> usize {
        let mut state = self.lock();
        state.ended = true;
        let mut servers: Vec<_> =
            state.slices.iter_mut().flatten().filter_map(|entry| entry.server.take()).collect();
        servers.iter().for_each(SliceServer::ask_to_stop);
        let deadline = Instant::now() + slice::STOP_PATIENCE;
        let stuck = servers.iter_mut().map(|server| server.join(deadline)).sum();
        // A dispatcher that has ended already needs no word.
        let _ = state.link.send(Control::Stop);
        stuck
    }

    /// Every slice there was, as the log tells of it, by place.
    pub(super) fn history(&self) -> Vec<Past> {
        let state = self.lock();
        let places = state.slices.iter().zip(&state.past);
        let told = |(entry, past): (&Option<Entry>, &Option<Past>)| match (entry, past) {
            (Some(entry), _) => Some(Past {
                name: entry.config.name.clone(),
                contract: entry.place.contract,
                tsc: entry.server.as_ref().and_then(SliceServer::guest_tsc),
                next: Generation(0),
            }),
            (None, Some(past)) => Some(Past { name: past.name.clone(), ..*past }),
            (None, None) => None,
        };
        places.map_while(told).collect()
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, ControlError> {
        let state = self.lock();
        if state.ended { Err(ControlError::Ended) } else { Ok(state) }
    }
}

/// Why a change is not made; guests let one that waits go first.
fn not_now(state: &mut State, not: NotNow, now: Nanos) -> ControlError {
    match not {
        NotNow::Refused(refusal) => ControlError::Refused(refusal),
        NotNow::Busy(until) => {
            state.claimed = until.saturating_add(PRECEDENCE);
            ControlError::Busy { wait: until.saturating_sub(now) }
        }
    }
}

impl State {
    /// Hands a change that the ledger has made to the dispatcher.
    fn carry_out(&mut self, index: u16, change: Change) -> Result<(), ControlError> {
        let place = self.ledger.place(index);
        if let Some(entry) = self.slices[usize::from(index)].as_mut() {
            entry.place = place.unwrap_or(entry.place);
            entry.config.contract = change.contract;
            entry.counters.changing.store(true, Ordering::Release);
        }
        self.link.send(Control::Change { index, change })
    }

    fn find(&self, name: &str) -> Result<(u16, &Entry), ControlError> {
        let mut places = self.slices.iter().enumerate();
        places
            .find_map(|(index, entry)| {
                entry.as_ref().filter(|e| e.config.name == name).map(|e| (index as u16, e))
            })
            .ok_or_else(|| ControlError::NoSlice(name.into()))
    }
}

/// Makes an admitted slice's functions, serves them, and hands it to the dispatcher.
fn start(
    workshop: &Workshop,
    state: &mut State,
    index: u16,
    config: SliceConfig,
    place: Place,
) -> Result<(), HostError> {
    let Workshop { registry, .. } = workshop;
    let recorder =
        |capacity| registry.as_ref().map_or_else(Recorder::off, |r| r.recorder(capacity));
    let generation = state.past[usize::from(index)].as_ref().map_or(Generation(0), |p| p.next);
    let parts = slice::Parts {
        config: &workshop.config,
        slice: &config,
        index,
        generation,
        phase: place.phase,
        origin: workshop.origin,
        clock: &workshop.clock,
        tsc: workshop.tsc,
        placement: &workshop.placement,
        dispatcher: &workshop.wake,
        recorder: &recorder,
    };
    let (server, link) = slice::start(&parts)?;
    server.pacer().listen(workshop.asked.clone());
    let counters = Arc::clone(&link.counters);
    state.link.add(index, link)?;
    state.slices[usize::from(index)] = Some(Entry {
        ceiling: config.contract,
        config,
        place,
        asked: Asked::default(),
        counters,
        server: Some(server),
    });
    Ok(())
}

/// What a slice has done so far.
fn stats(name: &str, c: &SliceCounters) -> SliceStats {
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    SliceStats {
        name: name.into(),
        frames: load(&c.shown),
        late: load(&c.late),
        jobs: load(&c.jobs),
        failed: load(&c.failed),
        busy: Nanos(load(&c.busy)),
        skipped_vblanks: load(&c.skipped_vblanks),
        doorbells: load(&c.doorbells),
    }
}
