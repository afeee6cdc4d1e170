//! The device by a driver over real rings, in front of views that remember what they show.

use super::*;
use crate::devices::virtio::testing::{Driver, Part, RAM, Ring};
use proptest::prelude::*;
use registers::{BYPASS, LAST_ADDRESS, Status};
use std::collections::BTreeMap;

pub(super) const A: u32 = 1 << 3;
const B: u32 = 2 << 3;
const READ: u32 = 1;
const WRITE: u32 = 2;

/// What an endpoint sees now.
#[derive(Debug, Default)]
struct Seen {
    all: bool,
    maps: BTreeMap<u64, Mapping>,
    /// It takes so many mappings.
    most: Option<usize>,
    /// It gives nothing back.
    stuck: bool,
}

#[derive(Clone, Default)]
struct Eye(Arc<Mutex<Seen>>);

impl Eye {
    fn now(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    fn view(&self) -> Box<dyn View> {
        self.now().all = true;
        Box::new(self.clone())
    }

    /// First and last address of each mapping, and what is there.
    fn maps(&self) -> Vec<(u64, u64, u64)> {
        self.now().maps.values().map(|m| (m.at, m.last, m.to.0)).collect()
    }
}

impl View for Eye {
    fn show_all(&mut self) -> Result<(), ViewError> {
        let mut seen = self.now();
        assert!(seen.maps.is_empty() && !seen.all, "nothing is shown");
        seen.all = true;
        Ok(())
    }

    fn show(&mut self, mapping: &Mapping) -> Result<(), ViewError> {
        let mut seen = self.now();
        assert!(!seen.all);
        assert!(seen.maps.values().all(|m| m.last < mapping.at || m.at > mapping.last));
        if seen.most.is_some_and(|most| seen.maps.len() >= most) {
            return Err(ViewError::Full);
        }
        seen.maps.insert(mapping.at, *mapping);
        Ok(())
    }

    fn hide(&mut self, mapping: &Mapping) -> Result<(), ViewError> {
        let mut seen = self.now();
        if seen.stuck {
            return Err(ViewError::Stuck);
        }
        assert_eq!(seen.maps.remove(&mapping.at).as_ref(), Some(mapping));
        Ok(())
    }

    fn hide_all(&mut self) -> Result<(), ViewError> {
        let mut seen = self.now();
        if seen.stuck {
            return Err(ViewError::Stuck);
        }
        seen.all = false;
        seen.maps.clear();
        Ok(())
    }
}

struct Guest {
    driver: Driver,
    ring: Ring,
    a: Eye,
    b: Eye,
}

impl Guest {
    fn new() -> Self {
        Self::with(u64::MAX)
    }

    /// A guest whose driver takes these features.
    fn with(features: u64) -> Self {
        let (a, b) = (Eye::default(), Eye::default());
        let mut driver = Driver::new(Iommu::new(vec![(A, a.view()), (B, b.view())]));
        driver.agree(features);
        let ring = driver.queue(0, 64);
        driver.queue(1, 16);
        driver.ready();
        Self { driver, ring, a, b }
    }

    /// The status of a request, whose answer has `room` bytes before it.
    fn ask_for(&mut self, request: &[u8], room: u32) -> (Vec<u8>, u8) {
        let free = self.driver.room(0);
        let from = self.driver.bytes(request);
        let to = self.driver.bytes(&vec![0xaa; room as usize + 4]);
        let parts = [Part::Out(from, request.len() as u32), Part::In(to, room + 4)];
        self.driver.run(&mut self.ring, &parts);
        let answer = self.driver.look(to, room as usize + 4);
        self.driver.forget(free);
        (answer[..room as usize].to_vec(), answer[room as usize])
    }

    fn ask(&mut self, request: &[u8]) -> u8 {
        self.ask_for(request, 0).1
    }

    fn attach(&mut self, endpoint: u32, domain: u32, flags: u32) -> u8 {
        self.ask(&[words(1, &[domain, endpoint, flags]), vec![0; 4]].concat())
    }

    fn detach(&mut self, endpoint: u32, domain: u32) -> u8 {
        self.ask(&[words(2, &[domain, endpoint]), vec![0; 8]].concat())
    }

    fn map(&mut self, domain: u32, first: u64, last: u64, to: u64, flags: u32) -> u8 {
        let mut request = words(3, &[domain]);
        request.extend([first, last, to].iter().flat_map(|v| v.to_le_bytes()));
        request.extend(flags.to_le_bytes());
        self.ask(&request)
    }

    fn unmap(&mut self, domain: u32, first: u64, last: u64) -> u8 {
        let mut request = words(4, &[domain]);
        request.extend([first, last].iter().flat_map(|v| v.to_le_bytes()));
        request.extend([0; 4]);
        self.ask(&request)
    }
}

pub(super) fn words(kind: u8, words: &[u32]) -> Vec<u8> {
    let mut request = vec![kind, 0, 0, 0];
    request.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    request
}

const OK: u8 = Status::Ok as u8;
const INVALID: u8 = Status::Invalid as u8;
const RANGE: u8 = Status::Range as u8;
const MISSING: u8 = Status::Missing as u8;

#[test]
fn the_configuration_says_what_can_be_mapped() {
    let mut g = Guest::new();
    assert_eq!(g.driver.offered() & 0xff, 0b101_0111);
    let mut bytes = [0; 40];
    g.driver.device_config(0, &mut bytes);
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!([long(0), long(8), long(16)], [4096, 0, LAST_ADDRESS]);
    assert_eq!(
        (&bytes[24..32], &bytes[32..]),
        (&[0, 0, 0, 0, 0xff, 0xff, 0, 0][..], &[24, 0, 0, 0, 1, 0, 0, 0][..])
    );
}

#[test]
fn an_endpoint_sees_what_its_domain_has() {
    let mut g = Guest::new();
    assert!(g.a.now().all && g.b.now().all, "before it is attached");
    assert_eq!(g.attach(A, 1, 0), OK);
    assert!(!g.a.now().all && g.a.maps().is_empty() && g.b.now().all);
    assert_eq!(g.map(1, 0x1000, 0x2fff, 0x8000, READ | WRITE), OK);
    assert_eq!(g.map(1, 0x10_0000, 0x10_0fff, 0x3000, READ), OK);
    assert_eq!(g.a.maps(), [(0x1000, 0x2fff, 0x8000), (0x10_0000, 0x10_0fff, 0x3000)]);
    let rights: Vec<_> = g.a.now().maps.values().map(|m| (m.read, m.write)).collect();
    assert_eq!(rights, [(true, true), (true, false)]);
    // One that comes later sees the same.
    assert_eq!(g.attach(B, 1, 0), OK);
    assert_eq!(g.b.maps(), g.a.maps());
    assert_eq!(g.unmap(1, 0x1000, 0x2fff), OK);
    assert_eq!((g.a.maps(), g.b.maps().len()), (vec![(0x10_0000, 0x10_0fff, 0x3000)], 1));
    // Another domain in its place; the old one goes on for the other endpoint.
    assert_eq!(g.attach(A, 2, 0), OK);
    assert_eq!((g.a.maps().len(), g.b.maps().len()), (0, 1));
    assert_eq!(g.detach(B, 1), OK);
    assert!(g.b.now().all && g.b.maps().is_empty());
    assert_eq!(
        g.map(1, 0x1000, 0x1fff, 0, READ),
        MISSING,
        "the domain went with its last endpoint"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut g = Guest::new();
    assert_eq!(g.attach(A, 1, 0), OK);
    assert_eq!(g.map(1, 0x4000, 0x5fff, 0, READ), OK);
    for (what, status, wanted) in [
        ("no such endpoint", g.attach(0x40, 1, 0), MISSING),
        ("a domain out of range", g.attach(A, 0x1_0000, 0), RANGE),
        ("an unknown flag", g.attach(A, 3, 2), INVALID),
        ("another kind of domain", g.attach(B, 1, 1), INVALID),
        ("not attached to it", g.detach(A, 2), INVALID),
        ("no such endpoint", g.detach(0x40, 1), MISSING),
        ("no such domain", g.map(9, 0, 0xfff, 0, READ), MISSING),
        ("no right", g.map(1, 0, 0xfff, 0, 0), INVALID),
        ("MMIO was not offered", g.map(1, 0, 0xfff, 0, READ | 4), INVALID),
        ("no whole page", g.map(1, 0, 0xffe, 0, READ), RANGE),
        ("start within a page", g.map(1, 0x800, 0xfff, 0, READ), RANGE),
        ("target within a page", g.map(1, 0, 0xfff, 0x10, READ), RANGE),
        ("backwards", g.map(1, 0x2000, 0xfff, 0, READ), RANGE),
        ("beyond 48 bits", g.map(1, LAST_ADDRESS + 1, LAST_ADDRESS + 0x1000, 0, READ), RANGE),
        ("all", g.map(1, 0, u64::MAX, 0, READ), RANGE),
        ("the target wraps", g.map(1, 0, 0x1fff, u64::MAX - 0xfff, READ), RANGE),
        ("interrupts", g.map(1, 0xfee0_0000, 0xfee0_0fff, 0, READ), INVALID),
        ("around interrupts", g.map(1, 0xfe00_0000, 0xffff_ffff, 0, READ), INVALID),
        ("overlaps the start", g.map(1, 0x3000, 0x4fff, 0, READ), INVALID),
        ("overlaps the end", g.map(1, 0x5000, 0x6fff, 0, READ), INVALID),
        ("covers", g.map(1, 0, 0xffff, 0, READ), INVALID),
        ("no such domain", g.unmap(9, 0, 0xfff), MISSING),
        ("backwards", g.unmap(1, 0x1000, 0), INVALID),
        ("cuts the end off", g.unmap(1, 0x5000, 0x5fff), RANGE),
        ("cuts the start off", g.unmap(1, 0, 0x4fff), RANGE),
        ("unknown", g.ask(&[6, 0, 0, 0]), Status::Unsupported as u8),
        ("too short", g.ask(&[1, 0, 0, 0, 1, 0, 0, 0]), INVALID),
        ("nothing", g.ask(&[1, 0]), INVALID),
        ("reserved bytes", g.ask(&[words(1, &[2, A, 0]), vec![1, 0, 0, 0]].concat()), INVALID),
        ("reserved bytes", g.ask(&[1, 0, 1, 0]), INVALID),
    ] {
        assert_eq!(status, wanted, "{what}");
    }
    assert_eq!(g.a.maps(), [(0x4000, 0x5fff, 0)]);
    assert!(g.b.now().all);
    // Where nothing is mapped there is nothing to be cut.
    assert_eq!(g.unmap(1, 0x6000, u64::MAX), OK);
    assert_eq!(g.unmap(1, 0, u64::MAX), OK);
    assert!(g.a.maps().is_empty());
    assert_eq!(g.map(1, 0xfef0_0000, 0xffff_ffff, 0xfee0_0000, WRITE), OK, "behind interrupts");
}

#[test]
fn requests_that_cannot_be_read_or_answered_change_nothing() {
    let mut g = Guest::new();
    let request = [words(1, &[1, A, 0]), vec![0; 4]].concat();
    let from = g.driver.bytes(&request);
    let to = g.driver.bytes(&[0xaa; 8]);
    for parts in [
        &[Part::Out(from, 20)][..],
        &[Part::Out(from, 20), Part::In(to, 3)],
        &[Part::In(to, 4)],
        &[Part::Out(RAM, 20), Part::In(to, 4)],
    ] {
        g.driver.run(&mut g.ring, parts);
        assert!(g.a.now().all);
    }
    assert_eq!(g.driver.look(to, 5), [INVALID, 0, 0, 0, 0xaa], "the last two had room");
    // A status that cannot be written is lost; the next request is served.
    g.driver.run(&mut g.ring, &[Part::Out(from, 20), Part::In(RAM, 4)]);
    assert_eq!(g.attach(B, 1, 0), OK);
}

#[test]
fn a_probe_names_where_interrupts_go() {
    let mut g = Guest::new();
    let probe = |endpoint| [words(5, &[endpoint]), vec![0; 64]].concat();
    let (bytes, status) = g.ask_for(&probe(A), 24);
    assert_eq!(status, OK);
    assert_eq!(bytes[..8], [1, 0, 20, 0, 1, 0, 0, 0]);
    assert_eq!(bytes[8..16], 0xfee0_0000u64.to_le_bytes());
    assert_eq!(bytes[16..], 0xfeef_ffffu64.to_le_bytes());
    assert_eq!(g.ask_for(&probe(0x40), 24).1, MISSING);
    assert_eq!(g.ask_for(&probe(A), 20).1, INVALID, "too little room");
}

#[test]
fn bypass_is_what_the_driver_chooses() {
    let mut g = Guest::new();
    assert_eq!(g.attach(A, 1, 0), OK);
    g.driver.set_device_config(BYPASS, &[0]);
    assert!(!g.b.now().all, "not attached: sees nothing from now on");
    assert_eq!(g.detach(A, 1), OK);
    assert!(!g.a.now().all);
    // A domain that translates nothing.
    assert_eq!(g.attach(A, 2, 1), OK);
    assert!(g.a.now().all);
    assert_eq!(g.map(2, 0, 0xfff, 0, READ), INVALID);
    assert_eq!(g.unmap(2, 0, 0xfff), INVALID);
    // It outlives a reset, which detaches.
    g.driver.reset();
    assert!(!g.a.now().all && !g.b.now().all);
    let mut bypass = [2];
    g.driver.device_config(BYPASS, &mut bypass);
    assert_eq!(bypass, [0]);
    // The driver must have agreed to it.
    let mut g = Guest::with(!(feature::BYPASS_CONFIG));
    g.driver.set_device_config(BYPASS, &[0]);
    assert!(g.a.now().all);
    assert_eq!(g.attach(A, 1, 1), INVALID);
}

#[test]
fn a_reset_detaches() {
    let mut g = Guest::new();
    assert_eq!(g.attach(A, 1, 0), OK);
    assert_eq!(g.map(1, 0, 0xfff, 0, READ), OK);
    g.driver.reset();
    assert!(g.a.now().all && g.a.maps().is_empty());
}

#[test]
fn a_function_that_takes_no_more_is_told_of() {
    const FULL: u8 = Status::Full as u8;
    let mut g = Guest::new();
    assert_eq!(g.attach(A, 1, 0), OK);
    assert_eq!(g.attach(B, 1, 0), OK);
    g.b.now().most = Some(1);
    assert_eq!(g.map(1, 0, 0xfff, 0, READ), OK);
    assert_eq!(g.map(1, 0x1000, 0x1fff, 0, READ), FULL);
    assert_eq!((g.a.maps(), g.b.maps()), (vec![(0, 0xfff, 0)], vec![(0, 0xfff, 0)]));
    // It cannot enter a domain that has more: it is attached to nothing then.
    g.b.now().most = None;
    assert_eq!(g.detach(B, 1), OK);
    assert_eq!(g.map(1, 0x1000, 0x1fff, 0, READ), OK);
    g.b.now().most = Some(1);
    assert_eq!(g.attach(B, 1, 0), FULL);
    assert!(g.b.now().all && g.b.maps().is_empty());
    assert_eq!(g.a.maps().len(), 2);
}

#[test]
fn a_mapping_that_does_not_come_back_stays_known() {
    const DEVICE: u8 = Status::Device as u8;
    let mut g = Guest::new();
    assert_eq!(g.attach(A, 1, 0), OK);
    assert_eq!(g.map(1, 0, 0xfff, 0, READ), OK);
    g.a.now().stuck = true;
    assert_eq!(g.unmap(1, 0, 0xfff), DEVICE);
    assert_eq!(g.detach(A, 1), DEVICE);
    assert_eq!(g.map(1, 0, 0xfff, 0, READ), INVALID, "it is mapped still");
    g.a.now().stuck = false;
    assert_eq!(g.unmap(1, 0, 0xfff), OK);
}

#[test]
fn mappings_are_bounded() {
    let mut space = Space::new(vec![(A, Eye::default().view())]);
    space.attach(A, 1, false).unwrap();
    let mapping = |n: u64| {
        let at = n * 0x1000;
        let at = if at >= 0xf000_0000 { at + 0x1000_0000 } else { at };
        Mapping { at, last: at + 0xfff, to: Gpa(0), read: true, write: false }
    };
    for n in 0..space::MAX_MAPPINGS as u64 {
        space.map(1, mapping(n)).unwrap();
    }
    let over = mapping(space::MAX_MAPPINGS as u64);
    assert_eq!(space.map(1, over), Err(Status::Full));
    space.unmap(1, 0, 0xfff).unwrap();
    space.map(1, over).unwrap();
    // They go with their domain.
    space.detach(A, 1).unwrap();
    space.attach(A, 1, false).unwrap();
    space.map(1, mapping(0)).unwrap();
}

/// A request of few domains, endpoints and pages, so that they meet.
fn request() -> impl Strategy<Value = Request> {
    let page = 0u64..12;
    let (domain, endpoint) = (0u32..3, prop_oneof![Just(A), Just(B), Just(0x40)]);
    prop_oneof![
        (domain.clone(), endpoint.clone(), any::<bool>())
            .prop_map(|(domain, endpoint, bypass)| Request::Attach { domain, endpoint, bypass }),
        (domain.clone(), endpoint)
            .prop_map(|(domain, endpoint)| Request::Detach { domain, endpoint }),
        (domain.clone(), page.clone(), 1u64..4).prop_map(|(domain, page, pages)| {
            let (at, last) = (page * 0x1000, (page + pages) * 0x1000 - 1);
            let mapping = Mapping { at, last, to: Gpa(at + 0x10_0000), read: true, write: true };
            Request::Map { domain, mapping }
        }),
        (domain, page.clone(), page).prop_map(|(domain, a, b)| {
            let (first, last) = (a.min(b) * 0x1000, a.max(b) * 0x1000 + 0xfff);
            Request::Unmap { domain, first, last }
        }),
    ]
}

proptest! {
    /// Whatever is asked, endpoints of one domain see the same, and those of none what `bypass` says. The views
    /// themselves fail where something is shown twice or taken back that was not shown.
    #[test]
    fn views_follow_domains(requests in prop::collection::vec(request(), 0..60), bypass in any::<bool>()) {
        let (a, b) = (Eye::default(), Eye::default());
        let space = Handle::new(Space::new(vec![(A, a.view()), (B, b.view())]));
        space.lock().0.set_bypass(bypass);
        for request in requests {
            let _ = space.lock().apply(request);
            let of_a = space.lock().0.domain(A);
            let of_b = space.lock().0.domain(B);
            for (eye, domain) in [(&a, &of_a), (&b, &of_b)] {
                let seen = eye.now();
                match domain {
                    None => prop_assert_eq!((seen.all, seen.maps.len()), (bypass, 0)),
                    Some((_, all, maps)) => {
                        prop_assert_eq!((seen.all, &seen.maps), (*all, maps));
                    }
                }
            }
        }
        space.lock().0.reset();
        prop_assert_eq!((a.now().all, b.now().all), (bypass, bypass));
        prop_assert!(a.maps().is_empty() && b.maps().is_empty());
    }

    #[test]
    fn any_bytes_are_a_request_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80), bypass in any::<bool>()) {
        if let Ok(Request::Map { mapping, .. }) = Request::parse(&bytes, bypass) {
            prop_assert!(mapping.at <= mapping.last && mapping.last <= LAST_ADDRESS);
            prop_assert!(mapping.to_last() >= mapping.to);
        }
    }
}
