//! Guests that ask a whole host, over its sockets, on the `model` backend.

use super::super::ControlError;
use crate::config::HostConfig;
use crate::host::api::json::SliceJson;
use crate::host::{Host, RendererProgram};
use beamline_abi::pacer::{answer, reg, status, vector};
use beamline_abi::pci::config as header;
use beamline_abi::{Nanos, Reason};
use beamline_sched::{Contract, Period};
use beamline_vfio_user::client::Client;
use beamline_vfio_user::{IrqIndex, RegionIndex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
switch_cost_ms = 0.0
[[slice]]
name = "game"
width = 64
height = 64
guest_contract = "within"
guest_hz = { min = "30", max = "120" }
[slice.contract]
refresh_hz = "60"
class = "reserved"
budget_ms = 8.0
max_job_ms = 1.0
jitter_ms = 0.0
[[slice]]
name = "kiosk"
width = 64
height = 64
[slice.contract]
refresh_hz = "60"
class = "reserved"
budget_ms = 1.0
max_job_ms = 1.0
jitter_ms = 0.0
"#;

const PATIENCE: Duration = Duration::from_secs(20);

fn start() -> (Host, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = HostConfig::parse(HOST, &folder.path().join("host.toml")).unwrap();
    let renderer = RendererProgram { exe: "none".into(), args: Vec::new() };
    (Host::start(config, renderer).unwrap(), folder)
}

/// A guest's pacer, as its driver sees it.
struct Guest {
    client: Client,
    /// By vector.
    interrupts: Vec<OwnedFd>,
    answers: u32,
}

impl Guest {
    fn new(host: &Host, slice: usize) -> Self {
        let mut client = Client::connect(&host.ready().slices[slice].pacer, PATIENCE).unwrap();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let interrupts: Vec<_> = (0..vector::COUNT).map(|_| eventfd(0, flags).unwrap()).collect();
        let fds: Vec<_> = interrupts.iter().map(AsFd::as_fd).collect();
        client.set_irqs(IrqIndex::MSIX, 0, &fds).unwrap();
        let on = 6u16.to_le_bytes();
        client.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &on).unwrap();
        Self { client, interrupts, answers: 0 }
    }

    fn read(&mut self, register: u32) -> u64 {
        let mut bytes = [0; 8];
        let len = if register == reg::ANSWER_BUDGET { 8 } else { 4 };
        let at = register.into();
        self.client.region_read(RegionIndex::bar(0), at, &mut bytes[..len]).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, register: u32, value: u64) {
        let at = register.into();
        self.client.region_write(RegionIndex::bar(0), at, &value.to_le_bytes()).unwrap();
    }

    fn commit(&mut self) {
        let one = 1u32.to_le_bytes();
        self.client.region_write(RegionIndex::bar(0), reg::ASK_COMMIT.into(), &one).unwrap();
    }

    /// Asks for a rate and a budget, 0 to keep it, and waits for the answer: with its reason and its budget.
    fn ask(&mut self, hz: u64, budget: u64) -> (u32, Option<Reason>, u64) {
        let period = Period::from_hz(hz, 1).unwrap();
        self.write(reg::ASK_PERIOD_NUM, period.num());
        self.write(reg::ASK_PERIOD_DEN, period.den());
        self.write(reg::ASK_BUDGET, budget);
        self.commit();
        self.answer()
    }

    fn answer(&mut self) -> (u32, Option<Reason>, u64) {
        self.answers += 1;
        while self.read(reg::ANSWER_COUNT) < u64::from(self.answers) {
            self.wait(vector::CONTRACT);
        }
        let reason = Reason::from_raw(self.read(reg::ANSWER_REASON) as u32);
        (self.read(reg::ANSWER) as u32, reason, self.read(reg::ANSWER_BUDGET))
    }

    fn wait(&mut self, vector: u16) {
        let fd = &self.interrupts[usize::from(vector)];
        let time = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&time)), Ok(1), "vector {vector} does not fire");
        rustix::io::read(fd, &mut [0; 8]).unwrap();
    }
}

fn shown(host: &Host, name: &str) -> SliceJson {
    let controller = host.controller();
    SliceJson::new(&controller.slice(name).unwrap(), controller.promise())
}

#[test]
fn a_guest_is_granted_another_rate_and_the_operator_sees_it() {
    let (host, _folder) = start();
    let mut guest = Guest::new(&host, 0);
    assert_eq!(guest.ask(90, 4_000_000), (answer::GRANTED, Some(Reason::None), 0));
    let slice = shown(&host, "game");
    assert_eq!(
        (&slice.contract["refresh_hz"], &slice.contract["budget_ms"]),
        (&"90".into(), &4.0.into())
    );
    let asked = slice.asked.unwrap();
    assert_eq!((asked.refresh_hz.as_deref(), asked.budget_ms), (Some("90"), Some(4.0)));
    assert_eq!((asked.answer.as_str(), asked.reason), ("granted", None));
    assert_eq!(slice.ceiling.unwrap()["budget_ms"], 8.0, "the operator's contract is still known");
    // The page says so at a vblank: the dispatcher has carried it out.
    let period = |guest: &mut Guest| {
        let mut bytes = [0; 8];
        guest.client.region_read(RegionIndex::bar(2), 32, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    while period(&mut guest) != 9 {
        guest.wait(vector::CONTRACT);
    }
    // The ceiling is the operator's, not what the guest has: it gets all of it back, and no more.
    assert_eq!(guest.ask(60, 9_000_000), (answer::REDUCED, Some(Reason::Ceiling), 8_000_000));
    assert_eq!(shown(&host, "game").asked.unwrap().fits_budget_ms, Some(8.0));
}

#[test]
fn a_guest_whose_contract_is_fixed_is_refused_and_keeps_it() {
    let (host, _folder) = start();
    let mut guest = Guest::new(&host, 1);
    assert_eq!(guest.ask(30, 0), (answer::REFUSED, Some(Reason::Fixed), 0));
    let slice = shown(&host, "kiosk");
    assert_eq!(
        (slice.guest_contract.as_str(), &slice.contract["refresh_hz"]),
        ("fixed", &"60".into())
    );
    assert_eq!(slice.asked.unwrap().reason.as_deref(), Some("fixed"));
}

/// The operator's change, once those before it are over.
fn change(
    host: &Host,
    name: &str,
    new: impl Fn(&Contract) -> Contract,
) -> Result<(), ControlError> {
    loop {
        match host.controller().change(name, |old| Ok(new(old))) {
            Err(ControlError::Busy { wait }) => std::thread::sleep(Duration::from_nanos(wait.0)),
            other => return other.map(drop),
        }
    }
}

#[test]
fn a_change_by_the_operator_sets_the_ceiling() {
    let (host, _folder) = start();
    let mut guest = Guest::new(&host, 0);
    assert_eq!(guest.ask(90, 4_000_000).0, answer::GRANTED);
    // It starts from what the operator gave, not from what the guest chose.
    let budget = Nanos::from_millis(6);
    change(&host, "game", |old| {
        assert_eq!(old.budget, Nanos::from_millis(8));
        Contract { budget, ..*old }
    })
    .unwrap();
    let slice = shown(&host, "game");
    assert_eq!((&slice.contract["refresh_hz"], slice.ceiling), (&"60".into(), None));
    assert_eq!(guest.ask(60, 7_000_000), (answer::REDUCED, Some(Reason::Ceiling), 6_000_000));
    // Others take what is left; what is given up is theirs to take, too.
    assert_eq!(guest.ask(60, 1_000_000).0, answer::GRANTED);
    change(&host, "kiosk", |old| Contract { budget: Nanos::from_millis(12), ..*old }).unwrap();
    let (said, reason, budget) = guest.ask(60, 6_000_000);
    assert_eq!((said, reason), (answer::REDUCED, Some(Reason::NoRoom)));
    assert!((1_000_000..5_000_000).contains(&budget), "{budget}");
}

#[test]
fn what_was_asked_goes_with_a_reset_and_a_flood_costs_others_nothing() {
    let (host, _folder) = start();
    let (mut guest, mut other) = (Guest::new(&host, 0), Guest::new(&host, 1));
    for _ in 0..200 {
        guest.write(reg::ASK_BUDGET, 1);
        guest.commit();
        guest.commit();
        guest.client.reset().unwrap();
    }
    assert_eq!(guest.read(reg::ANSWER), u64::from(answer::NONE));
    assert_eq!(guest.read(reg::ANSWER_COUNT), 0);
    let shown_pending =
        || shown(&host, "game").asked.is_some_and(|asked| asked.answer == "pending");
    assert!(!shown_pending(), "what was reset is not waited for");
    // Another guest is answered all the same, and so is the operator.
    assert_eq!(other.ask(30, 0), (answer::REFUSED, Some(Reason::Fixed), 0));
    change(&host, "kiosk", |old| Contract { weight: 7, ..*old }).unwrap();
    // A reset ends bus mastering: the answer is there to be polled.
    let on = 6u16.to_le_bytes();
    guest.client.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &on).unwrap();
    assert_eq!(guest.ask(60, 0).0, answer::GRANTED);
}

#[test]
fn a_guest_is_asked_to_stop_and_to_go_on() {
    let (host, _folder) = start();
    let controller = host.controller();
    let mut guest = Guest::new(&host, 0);
    guest.write(reg::CONTROL, 1);
    let status = |guest: &mut Guest| guest.read(reg::STATUS) as u32;
    assert_eq!(status(&mut guest), status::RUNNING);
    controller.quiesce("game", true).unwrap();
    guest.wait(vector::QUIESCE);
    assert_eq!(status(&mut guest), status::QUIESCE);
    guest.client.reset().unwrap();
    assert_eq!(status(&mut guest), status::QUIESCE, "the host still asks");
    assert_eq!(shown(&host, "game").quiesce.as_deref(), Some("quiesced"));
    assert_eq!(shown(&host, "kiosk").quiesce, None);
    let on = 6u16.to_le_bytes();
    guest.client.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &on).unwrap();
    controller.quiesce("game", false).unwrap();
    guest.wait(vector::QUIESCE);
    assert_eq!((status(&mut guest), shown(&host, "game").quiesce), (status::IDLE, None));
    assert!(matches!(controller.quiesce("none", true), Err(ControlError::NoSlice(_))));
}

#[test]
fn draining_lets_work_under_way_finish_and_waits_for_no_more() {
    let (host, _folder) = start();
    let mut guest = Guest::new(&host, 0);
    let controller = host.controller();
    let counters = {
        let state = controller.lock();
        state.slices[0].as_ref().unwrap().counters.clone()
    };
    assert!(controller.quiesce_all(Duration::ZERO), "nothing is under way");
    guest.wait(vector::QUIESCE);
    counters.queued.store(1, Ordering::Release);
    assert_eq!(shown(&host, "game").quiesce.as_deref(), Some("asked"));
    assert!(!controller.quiesce_all(Duration::from_millis(20)), "a guest that does not stop");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            over.store(true, Ordering::Release);
            counters.queued.store(0, Ordering::Release);
        });
        assert!(controller.quiesce_all(PATIENCE));
        assert!(over.load(Ordering::Acquire));
    });
    assert_eq!(guest.read(reg::STATUS) as u32, status::QUIESCE);
    assert!(host.drain().problems.is_empty());
}
