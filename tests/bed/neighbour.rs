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

/// What thread and test share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    stats: Mutex<Stats>,
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
            while !theirs.stop.load(Ordering::Relaxed) {
                match player.on_wake(&mut port).expect("the scene goes on") {
                    Progress::Wait if port.wait() == Wake::Stop => break,
                    Progress::Wait | Progress::Again => {}
                    Progress::Done => unreachable!("it has no last frame"),
                }
                *theirs.stats.lock().unwrap_or_else(PoisonError::into_inner) = *player.stats();
            }
            player.pacer().disable(&mut port);
        });
        Self { shared, thread: Some(thread) }
    }

    /// What it has counted.
    ///
    /// # Panics
    /// Where it has ended.
    pub(crate) fn stats(&self) -> Stats {
        assert!(self.thread.as_ref().is_some_and(|t| !t.is_finished()), "a neighbour has ended");
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
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
