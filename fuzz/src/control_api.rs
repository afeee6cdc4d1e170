//! Whoever may open a host's control socket: any bytes, and requests that create, change and remove slices,
//! through HTTP, JSON and admission to a whole host on the `model` backend.

mod answer;
mod request;

use crate::fds::Open;
use crate::input::Input;
use answer::{Answer, Picture};
use beamline_abi::Nanos;
use beamline_mdev::config::HostConfig;
use beamline_mdev::host::api::fuzz::Door;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MAX_STEPS: usize = 10;
/// More than any change takes, and than what is freed is kept back for: the longest period is 10 s.
const LONG: Nanos = Nanos::from_secs(3600);

/// How long what a slice leaves may take to go. The fuzzer gives an input 5 s.
const PATIENCE: Duration = Duration::from_secs(4);

thread_local! {
    static HOST: Fixed = Fixed::new();
}

/// One host for all inputs: starting one takes longer than a thousand requests.
struct Fixed {
    door: Option<Door>,
    folder: PathBuf,
}

impl Fixed {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("beamline-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let text = "run_dir = \"run\"\nmax_slices = 4\n[gpu]\nbackend = \"model\"\n";
        let config = HostConfig::parse(text, &folder.join("host.toml")).expect("it is right");
        let fixed = Self { door: Some(Door::open(config).expect("a host starts")), folder };
        // What is made once is there from here on.
        fixed.life(&mut Input::new(b"\x40\x00"));
        fixed
    }

    fn door(&self) -> &Door {
        self.door.as_ref().expect("it is taken at the end alone")
    }

    /// One input's requests, on a host without slices, which is left without.
    fn life(&self, input: &mut Input<'_>) {
        let door = self.door();
        let mut before = Picture::of(door);
        assert!(before.slices.is_empty(), "{before:?}");
        for _ in 0..MAX_STEPS {
            if input.is_empty() {
                break;
            }
            let tag = input.u8();
            if tag < 0x20 {
                door.advance(Nanos::from_millis(input.number() % 20_000));
                continue;
            }
            let bytes = match tag {
                // All that is left, as it is.
                0x20..0x40 => input.rest().to_vec(),
                _ => request::make(input, tag),
            };
            let answer = Answer::read(&door.say(&bytes));
            let after = Picture::of(door);
            if let Some(answer) = &answer {
                answer.check(&before, &after);
            } else {
                assert!(tag < 0x40, "{:?} got no answer", String::from_utf8_lossy(&bytes));
            }
            if !answer.is_some_and(|answer| answer.is_done()) {
                assert_eq!(after, before, "a refused request has changed something");
            }
            before = after;
        }
        self.clear(&before);
    }

    /// Removes every slice. A contract that is written as it is shown changes nothing before.
    fn clear(&self, picture: &Picture) {
        let door = self.door();
        let mut before = picture.clone();
        for name in picture.slices.keys() {
            door.advance(LONG);
            let same = request::write("PATCH", &format!("/slices/{name}"), b"{\"contract\":{}}");
            let answer = Answer::read(&door.say(&same)).expect("an answer");
            // The dispatcher may still be on its way to the contract before.
            assert!(answer.is_done() || answer.status == 409, "{answer:?}");
            assert_eq!(Picture::of(door), before, "an empty change has changed something");
            let gone = request::write("DELETE", &format!("/slices/{name}"), b"");
            let answer = Answer::read(&door.say(&gone)).expect("an answer");
            let after = Picture::of(door);
            assert!(answer.is_done(), "{answer:?}");
            answer.check(&before, &after);
            before = after;
        }
        door.advance(LONG);
        let sockets = || std::fs::read_dir(self.folder.join("run")).expect("it is there").count();
        in_time("sockets were left behind", || sockets() == 0);
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        drop(self.door.take());
        // A folder that stays does no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Runs one life of a host's slices.
pub(crate) fn run(data: &[u8]) {
    HOST.with(|host| {
        let (open, threads) = (Open::now(), threads());
        host.life(&mut Input::new(data));
        // A thread that was joined may be listed for a moment longer.
        in_time("threads were left behind", || self::threads() == threads);
        open.check();
    });
}

/// A host waits 2 s for a slice's threads. Those that a busy machine does not let run end later.
fn in_time(otherwise: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{otherwise}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("this is Linux").count()
}
