//! A root port with what belongs to its slot: the function that is in it, or one that waits to be put in.

use super::function::{Function, PciFunction};
use super::layout::PORT_WINDOW;
use super::port::{Pressed, RootPort, State};
use super::wiring::Wiring;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Why nothing is put into a slot, or taken out of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is no such port.
    #[error("there is no such root port")]
    NoPort,
    /// Something is in it.
    #[error("the slot has its function already")]
    Occupied,
    /// Nothing is in it.
    #[error("the slot is empty")]
    Empty,
    /// Nothing waits to be put in.
    #[error("no function waits to be put into the slot")]
    Nothing,
    /// It does not fit.
    #[error(
        "{label}: its BARs take {need:#x} bytes, and a root port passes on {PORT_WINDOW:#x}: it can be on bus 0 only"
    )]
    TooLarge {
        /// The function.
        label: String,
        /// Bytes.
        need: u64,
    },
    /// The guest is not ready to be asked.
    #[error("the guest is still busy with what was put into the slot")]
    Busy,
}

/// How far a function is that was to be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// The guest is asked, and has not let it go yet.
    Asked,
    /// It is out.
    Gone,
}

/// What is in a slot, for those who do not hold the machine.
#[derive(Debug, Default)]
pub struct SlotWatch {
    state: AtomicU8,
    changes: AtomicU64,
}

impl SlotWatch {
    /// What is in the slot.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Empty,
            1 => State::Plugged,
            _ => State::Asked,
        }
    }

    /// How often something was put in or taken out, by turns, since the guest started.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn set(&self, state: State) {
        let number = match state {
            State::Empty => 0,
            State::Plugged => 1,
            State::Asked => 2,
        };
        self.state.store(number, Ordering::Release);
    }
}

/// See the module.
pub struct Slot {
    root: Function<RootPort>,
    inside: Option<Function>,
    /// What waits to be put in.
    drawer: Option<Box<dyn PciFunction>>,
    watch: Arc<SlotWatch>,
}

impl Slot {
    /// An empty slot behind `root`, with nothing that waits.
    pub fn new(root: RootPort) -> Self {
        let root = Function::new(Box::new(root));
        Self { root, inside: None, drawer: None, watch: Arc::default() }
    }

    /// The port.
    pub fn root(&mut self) -> &mut Function<RootPort> {
        &mut self.root
    }

    /// The port, to look at.
    pub fn look(&self) -> &Function<RootPort> {
        &self.root
    }

    /// The function that is in the slot.
    pub fn inside(&mut self) -> Option<&mut Function> {
        self.inside.as_mut()
    }

    /// What is told of it outside.
    pub fn watch(&self) -> Arc<SlotWatch> {
        Arc::clone(&self.watch)
    }

    /// The BARs of what is in the slot that are decoded: number, address, bytes.
    pub fn decoded(&self) -> impl Iterator<Item = (usize, crate::Gpa, u64)> + '_ {
        let root = self.root.look();
        let window = root.window();
        let open = self.root.decodes() && root.link();
        let all = self.inside.iter().filter(move |_| open).flat_map(Function::decoded);
        all.filter(move |(_, at, size)| {
            let last = at.0.checked_add(size - 1);
            window.contains(&at.0) && last.is_some_and(|last| window.contains(&last))
        })
    }

    /// Has `function` wait to be put in.
    pub fn stock(&mut self, function: Box<dyn PciFunction>) -> Result<(), SlotError> {
        fits(&*function)?;
        self.drawer = Some(function);
        Ok(())
    }

    /// What waits is in the slot already when the guest starts.
    pub fn start_with_it(&mut self) -> Result<(), SlotError> {
        let function = self.drawer.take().ok_or(SlotError::Nothing)?;
        self.inside = Some(Function::new(function));
        self.root.inner().start_with_one();
        self.tell();
        Ok(())
    }

    /// Puts `function` in, or else what waits.
    pub fn plug(&mut self, function: Option<Box<dyn PciFunction>>) -> Result<(), SlotError> {
        if self.inside.is_some() {
            return Err(SlotError::Occupied);
        }
        if let Some(function) = &function {
            fits(&**function)?;
        }
        let function = function.or_else(|| self.drawer.take()).ok_or(SlotError::Nothing)?;
        self.inside = Some(Function::new(function));
        self.root.inner().insert();
        self.watch.changes.fetch_add(1, Ordering::AcqRel);
        self.tell();
        Ok(())
    }

    /// Asks the guest to let go what is in the slot. [`Leaving::Gone`]: nobody needs to be asked, take it out.
    pub fn ask(&mut self) -> Result<Leaving, SlotError> {
        if self.inside.is_none() {
            return Err(SlotError::Empty);
        }
        let pressed = self.root.inner().press();
        self.tell();
        match pressed {
            Pressed::Asked => Ok(Leaving::Asked),
            Pressed::Free => Ok(Leaving::Gone),
            Pressed::Busy => Err(SlotError::Busy),
        }
    }

    /// Takes out what is in the slot. None of its BARs is mapped.
    pub fn take_out(&mut self, wiring: &mut dyn Wiring) {
        let Some(function) = self.inside.take() else { return };
        if let Some(back) = function.into_inner().detach(wiring) {
            self.drawer = Some(back);
        }
        self.root.inner().remove();
        self.watch.changes.fetch_add(1, Ordering::AcqRel);
        self.tell();
    }

    /// Tells what is in the slot to those outside.
    pub fn tell(&self) {
        self.watch.set(self.root.look().state());
    }
}

/// Largest first, powers of two leave no holes: what they take together decides.
fn fits(function: &dyn PciFunction) -> Result<(), SlotError> {
    const PAGE: u64 = 4096;
    let sizes = function.bars().iter().flatten().map(|bar| bar.size.max(PAGE));
    let need = sizes.fold(0u64, u64::saturating_add);
    if need > PORT_WINDOW {
        return Err(SlotError::TooLarge { label: function.label().to_owned(), need });
    }
    Ok(())
}
