//! A deterministic machine of discrete events: one host, its GPU, and its guests.
//!
//! At each point in time, in this order: the guests whose time has come, by number; the host until nothing
//! moves; the interrupts that this brought. Then the clock is set to the next thing that will happen.

pub(crate) mod cost;
pub(crate) mod guest;
mod host;
pub(crate) mod outcome;
pub(crate) mod port;
pub(crate) mod scenario;
mod tsc;

use beamline_abi::pacer::{TimingPage, reg};
use beamline_abi::{Nanos, Reason};
use beamline_guest_driver::pacer::{Answer, Ask, AskError, host_time};
use beamline_guest_driver::scene::{Params, Player, SceneError, Stats};
use beamline_guest_driver::transport::{Gpa, Slot, Transport, Wake, Width};
use beamline_latency::{Clock, FakeClock, Label, LogWriter, Meta, SliceMeta};
use beamline_mdev::backend::model::CostModel;
use beamline_mdev::config::{HostConfig, SliceConfig};
use beamline_mdev::device::pci::PciError;
use beamline_mdev::host::admit::NotNow;
use beamline_mdev::host::ask::Terms;
use beamline_mdev::host::contract_meta;
use beamline_mdev::mediate::dispatcher::Change;
use beamline_sched::Contract;
use beamline_vfio_user::RegionIndex;
use guest::{Guest, Habits, State};
use host::Host;
use outcome::Outcome;
use port::{Function, Port};
use rustix::io::Errno;
use std::path::Path;
use std::sync::atomic::Ordering;

/// When the world begins.
const BEGIN: Nanos = Nanos::from_secs(1);
/// Virtual time after which a driver that waits for its device is stopped.
const PATIENCE: Nanos = Nanos::from_millis(500);

/// Why a world cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// A function cannot be made.
    #[error("the {what} cannot be made")]
    Device {
        /// Which.
        what: &'static str,
        /// Why.
        source: PciError,
    },
    /// Something was not taken: a configuration, a contract, a mapping.
    #[error("refused: {0}")]
    Refused(String),
    /// The driver could not set its scene up.
    #[error("guest {guest} cannot set its scene up: {source}")]
    Scene {
        /// Which guest.
        guest: usize,
        /// Why.
        source: SceneError,
    },
    /// The host does not come to rest.
    #[error("at {at} the host still moved after {rounds} rounds without time passing")]
    Circles {
        /// When.
        at: Nanos,
        /// How many rounds.
        rounds: u32,
    },
    /// The operating system refused.
    #[error("cannot {what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

fn system(what: &'static str) -> impl Fn(Errno) -> WorldError {
    move |errno| WorldError::System { what, errno }
}

/// One host with its guests, in virtual time.
pub struct World {
    config: HostConfig,
    /// What the operator gave each slice, by place.
    ceilings: Vec<Contract>,
    clock: FakeClock,
    host: Host,
    /// `None` while a guest is being attached: then [`Attaching`] has it.
    guests: Vec<Option<Guest>>,
    seed: u64,
}

impl World {
    /// A host with this configuration (TOML, as `beamline host` reads it) on a GPU whose jobs take what
    /// `costs` says. No guest is attached. `seed` is only noted in the log.
    pub fn new(
        config: &str,
        costs: impl CostModel + 'static,
        seed: u64,
    ) -> Result<Self, WorldError> {
        let config = HostConfig::parse(config, Path::new("world.toml"))
            .map_err(|e| WorldError::Refused(e.to_string()))?;
        let clock = FakeClock::new(BEGIN);
        let mut guests = Vec::new();
        let mut handles = Vec::new();
        for index in 0..config.slices.len() {
            let (port, pacer, gpu) = Port::new(index, host::slice_id(index), &clock)?;
            let (player, habits, state) = (None, Habits::default(), State::Absent);
            guests.push(Some(Guest { port, player, habits, state }));
            handles.push((pacer, gpu));
        }
        let host = Host::new(&config, handles, costs, &clock)?;
        let ceilings = config.slices.iter().map(|slice| slice.contract).collect();
        Ok(Self { config, ceilings, clock, host, guests, seed })
    }

    /// Adds a slice (a `[[slice]]` section) to the running host, without a guest; its index.
    pub fn add(&mut self, slice: &str) -> Result<usize, NotNow> {
        let slice = section(slice);
        let index = self.config.slices.len();
        let (port, pacer, gpu) =
            Port::new(index, host::slice_id(index), &self.clock).expect("a slice can be made");
        self.host.add(&slice, &self.clock, BEGIN, (pacer, gpu))?;
        let (player, habits, state) = (None, Habits::default(), State::Absent);
        self.guests.push(Some(Guest { port, player, habits, state }));
        self.ceilings.push(slice.contract);
        self.config.slices.push(slice);
        Ok(index)
    }

    /// Gives slice `index` the contract of a `[[slice]]` section.
    pub fn change(&mut self, index: usize, slice: &str) -> Result<Change, NotNow> {
        let contract = section(slice).contract;
        let change = self.host.change(index, &contract, self.clock.now())?;
        (self.config.slices[index].contract, self.ceilings[index]) = (contract, contract);
        Ok(change)
    }

    /// Lets the guest of slice `index` ask for another contract, through its driver and its pacer.
    pub fn ask(&mut self, index: usize, ask: &Ask) -> Result<(), AskError> {
        let Some(Guest { port, player: Some(player), .. }) = self.guest_mut(index) else {
            return Err(AskError::Unsupported);
        };
        player.pacer_mut().ask(port, ask)
    }

    /// How the host has answered, once.
    pub fn answer(&mut self, index: usize) -> Option<Answer> {
        let Guest { port, player, .. } = self.guest_mut(index)?;
        player.as_mut()?.pacer_mut().poll_answer(port)
    }

    /// Asks the guest of slice `index` to stop submitting, or to go on.
    pub fn quiesce(&self, index: usize, quiesce: bool) {
        self.host.slices[index].pacer.set_quiesce(quiesce);
    }

    /// Requests of slice `index` that are queued or running.
    pub fn queued(&self, index: usize) -> u64 {
        self.host.slices[index].counters.queued.load(Ordering::Acquire)
    }

    /// Whether a change of slice `index` is not over.
    pub fn is_changing(&self, index: usize) -> bool {
        self.host.slices[index].counters.changing.load(Ordering::Acquire)
    }

    /// Removes slice `index`; its guest's functions go away. Whether there was one.
    pub fn remove(&mut self, index: usize) -> bool {
        let removed = self.host.remove(index, self.clock.now());
        self.kill(index);
        removed
    }

    /// The timing page of slice `index`, as its guest reads it.
    pub fn page(&mut self, index: usize) -> Option<TimingPage> {
        let Guest { port, player, .. } = self.guests.get_mut(index)?.as_mut()?;
        player.as_ref()?.pacer().timing(port)
    }

    /// Attaches a guest to slice `index` and sets its scene up, while the others run on. `line` is the
    /// guest's command line, such as `scene=vr`.
    pub fn attach(&mut self, index: usize, line: &str, habits: Habits) -> Result<(), WorldError> {
        let params = Params::parse(line).map_err(|e| WorldError::Refused(e.to_string()))?;
        let Some(mut guest) = self.guests.get_mut(index).and_then(Option::take) else {
            return Err(WorldError::Refused(format!("there is no slice {index}")));
        };
        guest.habits = habits;
        guest.player = None;
        let ready = guest.port.plug().and_then(|()| {
            let patience = self.now().saturating_add(PATIENCE);
            let mut t = Attaching { world: self, port: &mut guest.port, index, patience };
            t.start(params).map_err(|source| WorldError::Scene { guest: index, source })
        });
        guest.state = match &ready {
            Ok(_) => State::Idle,
            Err(WorldError::Scene { source, .. }) => State::Failed(*source),
            Err(_) => State::Hung,
        };
        let ready = ready.map(|player| guest.player = Some(player));
        self.guests[index] = Some(guest);
        ready
    }

    /// The guest's VMM dies, whatever is under way.
    pub fn kill(&mut self, index: usize) {
        if let Some(guest) = self.guest_mut(index) {
            guest.port.unplug();
            guest.player = None;
            guest.state = State::Absent;
        }
    }

    /// The guest stops: it handles no interrupt any more.
    pub fn hang(&mut self, index: usize) {
        if let Some(guest) = self.guest_mut(index) {
            guest.state = State::Hung;
        }
    }

    /// Lets a guest do things to its functions and memory that no driver does. The host looks at the
    /// result at the next point in time.
    pub fn misuse(&mut self, index: usize, act: impl FnOnce(&mut Port)) {
        if let Some(guest) = self.guest_mut(index) {
            act(&mut guest.port);
        }
    }

    /// Lets time pass until `end`.
    pub fn run_until(&mut self, end: Nanos) -> Result<(), WorldError> {
        while self.next() <= end {
            self.step()?;
        }
        if self.now() < end {
            self.clock.set(end);
        }
        Ok(())
    }

    /// Lets this much time pass.
    pub fn run_for(&mut self, span: Nanos) -> Result<(), WorldError> {
        self.run_until(self.now().saturating_add(span))
    }

    /// Virtual time.
    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// What a guest is doing.
    pub fn state(&self, index: usize) -> State {
        self.guest(index).map_or(State::Absent, |g| g.state)
    }

    /// What a guest's scene has counted.
    pub fn stats(&self, index: usize) -> Stats {
        let player = self.guest(index).and_then(|g| g.player.as_ref());
        player.map(|p| *p.stats()).unwrap_or_default()
    }

    /// What the pacer of slice `index` reads as its status and its reason.
    pub fn status(&mut self, index: usize) -> (u32, Option<Reason>) {
        let mut read = |register: u32| {
            let mut bytes = [0; 4];
            if let Some(guest) = self.guest_mut(index) {
                let bar = RegionIndex::bar(0);
                guest.port.region_read(Function::Pacer, bar, register.into(), &mut bytes);
            }
            u32::from_le_bytes(bytes)
        };
        (read(reg::STATUS), Reason::from_raw(read(reg::REASON)))
    }

    /// Whether slice `index` has a renderer.
    pub fn is_ready(&self, index: usize) -> bool {
        self.host.is_ready(index)
    }

    /// GPU time that slice `index` has used so far.
    pub fn busy(&self, index: usize) -> Nanos {
        let slice = self.host.slices.get(index);
        Nanos(slice.map_or(0, |s| s.counters.busy.load(Ordering::Relaxed)))
    }

    /// How far the guest's own idea of host time is off, by its TSC and the timing page it maps, and the
    /// error that the page admits; `None` without a guest or a map.
    pub fn clock_error(&mut self, index: usize) -> Option<(Nanos, Nanos)> {
        let now = self.now();
        let Guest { port, player, .. } = self.guests.get_mut(index)?.as_mut()?;
        let page = player.as_ref()?.pacer().timing(port)?;
        let now = now.saturating_add(port.ahead);
        let seen = host_time(&page, port.tsc())?;
        Some((Nanos(seen.0.abs_diff(now.0)), Nanos(page.clock_err.into())))
    }

    /// The log of all stamps so far, as the file that a host writes.
    pub fn log(&mut self) -> Outcome {
        self.host.collect();
        let slices = self.config.slices.iter().zip(&self.host.slices).enumerate();
        let slices = slices.map(|(index, (slice, live))| SliceMeta {
            name: slice.name.clone(),
            contract: Some(contract_meta(&slice.contract)),
            // A VMM that is gone has taken its word with it; its guest's stamps were made under it.
            guest_tsc: live.pacer.guest_tsc().or(Some(tsc::of_guest(index))),
        });
        let meta = Meta {
            label: Label::Modelled,
            run: self.config.policy.name().to_owned(),
            slices: slices.collect(),
            tsc: Some(tsc::HOST),
            gpu_clock_err_ns: 0,
            seed: self.seed,
            config_hash: String::new(),
        };
        let write = || {
            let mut log = LogWriter::new(Vec::new())?;
            self.host.stamps.iter().try_for_each(|stamp| log.push(stamp))?;
            log.finish(&meta, self.host.dropped())
        };
        Outcome::new(write().expect("a log in memory has no file that could fail"))
    }

    fn guest(&self, index: usize) -> Option<&Guest> {
        self.guests.get(index)?.as_ref()
    }

    fn guest_mut(&mut self, index: usize) -> Option<&mut Guest> {
        self.guests.get_mut(index)?.as_mut()
    }

    /// What a host's control side does, each time that something happens.
    fn answer_asks(&mut self, now: Nanos) {
        for (index, slice) in self.config.slices.iter_mut().enumerate() {
            let terms = Terms {
                policy: slice.guest_contract,
                ceiling: self.ceilings[index],
                current: slice.contract,
            };
            if let Some(change) = self.host.answer_ask(index, &terms, now) {
                slice.contract = change.contract;
            }
        }
    }

    /// When something happens next.
    fn next(&self) -> Nanos {
        let guests = self.guests.iter().flatten();
        let stirred = guests.clone().any(|g| g.port.stirred);
        let due = guests.map(Guest::next).fold(self.host.next, Nanos::min);
        if stirred { self.now() } else { due.max(self.now()) }
    }

    /// Goes to the next point in time at which something happens, and does it.
    fn step(&mut self) -> Result<(), WorldError> {
        let now = self.next();
        self.clock.set(now);
        for (guest, slice) in self.guests.iter_mut().zip(&mut self.host.slices) {
            let Some(guest) = guest else { continue };
            guest.run(now);
            slice.stirred |= std::mem::take(&mut guest.port.stirred);
        }
        self.answer_asks(now);
        self.host.settle(now)?;
        self.guests.iter_mut().flatten().try_for_each(|guest| guest.notice(now))
    }
}

/// The slice of a `[[slice]]` section.
fn section(text: &str) -> SliceConfig {
    let text = format!("run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n{text}");
    let config = HostConfig::parse(&text, Path::new("world.toml")).expect("a section is right");
    config.slices.into_iter().next().expect("there is one section")
}

/// A guest whose driver is setting up: the driver waits, and meanwhile the world goes on around it.
struct Attaching<'a> {
    world: &'a mut World,
    port: &'a mut Port,
    index: usize,
    patience: Nanos,
}

impl Attaching<'_> {
    fn start(&mut self, params: Params) -> Result<Box<Player>, SceneError> {
        let mut arena = Port::arena();
        let mut player = Box::new(Player::new(self, &mut arena, params, &Port::targets())?);
        player.start(self)?;
        Ok(player)
    }
}

impl Transport for Attaching<'_> {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        self.port.config_read(slot, offset, width)
    }
    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        self.port.config_write(slot, offset, width, value);
    }
    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        self.port.reaches(gpa, len)
    }
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        self.port.mmio_read(gpa, width)
    }
    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        self.port.mmio_write(gpa, width, value);
    }
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        Transport::read(&*self.port, gpa, bytes);
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        Transport::write(&mut *self.port, gpa, bytes);
    }
    fn load_u16(&self, gpa: Gpa) -> u16 {
        self.port.load_u16(gpa)
    }
    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        self.port.store_u16(gpa, value);
    }
    fn fence(&self) {
        self.port.fence();
    }
    fn tsc(&self) -> u64 {
        self.port.tsc()
    }

    fn wait(&mut self) -> Wake {
        loop {
            // An error of the platform ends the wait; it is told where the world is stepped next.
            let Ok(interrupted) = self.port.interrupted() else { return Wake::Stop };
            if interrupted {
                self.port.take_interrupts();
                return Wake::Interrupt;
            }
            if let Some(slice) = self.world.host.slices.get_mut(self.index)
                && std::mem::take(&mut self.port.stirred)
            {
                slice.stirred = true;
                self.world.host.next = self.world.now();
            }
            if self.world.next() > self.patience || self.world.step().is_err() {
                return Wake::Stop;
            }
        }
    }
}
