//! A guest that is no virtual machine: the guest driver and a scene in a thread of this process, over vfio-user.

use crate::port::Port;
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::{Params, Player, Progress, Stats, Targets};
use beamline_guest_driver::transport::{Transport, Wake};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Nobody looks where a message goes: eventfds are what counts.
const ANY: MsiTarget = MsiTarget { address: 0xfee0_0000, data: 0 };

/// What it has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// By the scene.
    pub(crate) stats: Stats,
    /// By the pacer's page.
    pub(crate) screen: Screen,
}

/// Which frame each vblank showed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Screen {
    vblank: u64,
    frame: u64,
    /// Looks at which not as many frames had been shown as vblanks come since the one before.
    pub(crate) uneven: u64,
}

impl Screen {
    /// The latest vblank, and the frame shown since.
    fn look(&mut self, vblank: u64, frame: u64) {
        if vblank == self.vblank {
            return;
        }
        let (vblanks, frames) = (vblank - self.vblank, frame.wrapping_sub(self.frame));
        self.uneven += u64::from(vblanks != frames);
        (self.vblank, self.frame) = (vblank, frame);
    }
}

/// What thread and test share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

/// A guest that draws at every vblank.
pub(crate) struct Neighbour {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Attaches to the two functions of a slice, and draws a scene without end.
    pub(crate) fn draw(pacer: &Path, gpu: &Path, scene: &'static str) -> Self {
        let mut port = Port::attach(pacer, gpu);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let targets = Targets { pacer: [ANY; 3], gpu: ANY };
            let params = Params::parse(scene).expect("a scene");
            let mut arena = Port::arena();
            let mut player = Player::new(&mut port, &mut arena, params, &targets).expect("a slice");
            player.start(&mut port).expect("resources");
            let mut screen = Screen::default();
            while !theirs.stop.load(Ordering::Relaxed) {
                match player.on_wake(&mut port).expect("the scene goes on") {
                    Progress::Wait if port.wait() == Wake::Stop => break,
                    Progress::Wait | Progress::Again => {}
                    Progress::Done => unreachable!("it has no last frame"),
                }
                if let Some(page) = player.pacer().timing(&mut port) {
                    screen.look(page.vblank_seq, page.presented.0);
                }
                let seen = Seen { stats: *player.stats(), screen };
                *theirs.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            }
            player.pacer().disable(&mut port);
        });
        Self { shared, thread: Some(thread) }
    }

    /// What it has counted.
    ///
    /// # Panics
    /// Where it has ended.
    pub(crate) fn seen(&self) -> Seen {
        assert!(self.thread.as_ref().is_some_and(|t| !t.is_finished()), "a neighbour has ended");
        *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it leave.
    ///
    /// # Panics
    /// Where its scene could not go on.
    pub(crate) fn leave(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it leaves once").join().expect("its thread ends well");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // Where the test has failed; its thread ends by itself.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_screen_counts_each_vblank_without_its_frame() {
    let mut screen = Screen::default();
    let mut after = |vblank, frame| {
        screen.look(vblank, frame);
        screen.uneven
    };
    // The first look is always uneven: nothing is known before it.
    assert_eq!((after(10, 4), after(11, 5), after(11, 5), after(13, 7)), (1, 1, 1, 1));
    // One was late and was passed over by the next.
    assert_eq!((after(14, 7), after(15, 9)), (2, 3));
}
