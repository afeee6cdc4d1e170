//! The interface's state machine (TCG PC Client Platform TPM Profile 1.05, section 6.5.3.8): what each access does.
//! It has no thread, socket or clock.
//!
//! ```text
//!        cmdReady              start                answer
//!  Idle ──────────► Ready ───────────► Executing ──────────► Complete
//!    ▲               │ ▲                   ▲                  │ │ │
//!    │  goIdle       │ │ cmdReady          │ start            │ │ │
//!    └───────────────┴─┼───────────────────┼──────────────────┼─┼─┘
//!                      └───────────────────┼──────────────────┘ │
//!                                          └────────────────────┘
//! ```
//!
//! The states of the profile are these, but that *Ready* is also its *command reception*. A driver that has waited long
//! enough asks for `goIdle` or `cmdReady` during a command: that is done when the command's answer comes, which is
//! dropped then, and the bit stays set until then. Other writes than those of localities count only while the locality
//! is taken.

use super::command::{self, RC_FAILURE};
use super::registers::{
    BASE, BUFFER, BUFFER_SIZE, CANCEL, CMD_ADDR, CMD_READY, CMD_SIZE, CTRL_CANCEL, CTRL_REQ,
    CTRL_START, CTRL_STS, GO_IDLE, GRANTED, INTERFACE, INTF_ID, INTF_ID_HIGH, LOC_ASSIGNED,
    LOC_CTRL, LOC_STATE, LOC_STS, NOT_ESTABLISHED, REG_VALID, RELINQUISH, REQUEST_ACCESS, RSP_ADDR,
    RSP_SIZE, SIZE, START, TPM_IDLE, TPM_STS,
};
use beamline_abi::pacer::VENDOR_ID;

/// Bytes of a register.
const WIDTH: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Ready,
    Executing(Then),
    Complete,
}

/// What comes when a command has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Complete,
    Idle,
    Ready,
}

/// The place of each byte of an access at `offset`. Beyond the last address it is the last one.
fn places(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |n| offset.saturating_add(n))
}

/// A command that the TPM is to carry out, copied out of the guest's reach: [`command::length`] has passed it.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Command(pub(super) Vec<u8>);

/// The registers and the buffer.
#[derive(Debug)]
pub(super) struct Crb {
    state: State,
    /// The guest has taken locality 0.
    assigned: bool,
    /// A dynamic launch has happened to this TPM once.
    established: bool,
    cancel: bool,
    /// There is no TPM any more.
    failed: bool,
    buffer: Box<[u8]>,
}

impl Crb {
    /// The interface of a TPM that takes commands of `room` bytes at most, or fewer where the page ends before that.
    pub(super) fn new(room: usize, established: bool) -> Self {
        let buffer = vec![0; room.min(BUFFER_SIZE)].into();
        Self {
            state: State::Idle,
            assigned: false,
            established,
            cancel: false,
            failed: false,
            buffer,
        }
    }

    /// How many bytes a command or an answer has at most.
    pub(super) fn room(&self) -> usize {
        self.buffer.len()
    }

    /// A read of any size at `offset` in the page. Beyond the page, and the buffer while the locality is not taken,
    /// all bits are ones.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(places(offset)) {
            *byte = match at {
                ..BUFFER => (self.register(at / WIDTH * WIDTH) >> (8 * (at % WIDTH))) as u8,
                BUFFER..SIZE if self.assigned => {
                    self.buffer.get((at - BUFFER) as usize).copied().unwrap_or(0)
                }
                _ => 0xff,
            };
        }
    }

    /// A write of any size at `offset` in the page; the command that it starts. A register that is written in part
    /// has zeros for the rest.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Command> {
        let mut started = None;
        let end = offset.saturating_add(data.len() as u64);
        let mut register = offset / WIDTH * WIDTH;
        while register < end.min(BUFFER) {
            let bytes =
                data.iter().zip(places(offset)).filter(|(_, at)| at / WIDTH * WIDTH == register);
            let value =
                bytes.fold(0, |value, (byte, at)| value | u32::from(*byte) << (8 * (at % WIDTH)));
            started = self.write_register(register, value).or(started);
            register += WIDTH;
        }
        if self.assigned && matches!(self.state, State::Ready | State::Complete) {
            for (byte, at) in data.iter().zip(places(offset)) {
                let place = at.checked_sub(BUFFER).and_then(|at| self.buffer.get_mut(at as usize));
                if let Some(place) = place {
                    *place = *byte;
                }
            }
        }
        started
    }

    fn register(&self, at: u64) -> u32 {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        match at {
            // The active locality, bits 2 to 4, is 0.
            LOC_STATE => {
                REG_VALID
                    | flag(self.assigned, LOC_ASSIGNED)
                    | flag(!self.established, NOT_ESTABLISHED)
            }
            LOC_STS => flag(self.assigned, GRANTED),
            INTF_ID => INTERFACE,
            // Vendor; the device is 0.
            INTF_ID_HIGH => u32::from(VENDOR_ID),
            CTRL_REQ => match self.state {
                State::Executing(Then::Ready) => CMD_READY,
                State::Executing(Then::Idle) => GO_IDLE,
                _ => 0,
            },
            CTRL_STS => flag(self.failed, TPM_STS) | flag(self.state == State::Idle, TPM_IDLE),
            CTRL_CANCEL => flag(self.cancel, CANCEL),
            CTRL_START => flag(matches!(self.state, State::Executing(_)), START),
            CMD_SIZE | RSP_SIZE => self.buffer.len() as u32,
            CMD_ADDR | RSP_ADDR => (BASE + BUFFER) as u32,
            _ => 0,
        }
    }

    fn write_register(&mut self, at: u64, value: u32) -> Option<Command> {
        match at {
            LOC_CTRL => {
                self.assigned |= value & REQUEST_ACCESS != 0;
                // A command that runs goes on: it cannot be ended early.
                self.assigned &= value & RELINQUISH == 0;
            }
            CTRL_REQ if self.assigned => self.request(value),
            // A TPM need not end a command early, and swtpm does not.
            CTRL_CANCEL if self.assigned => self.cancel = value & CANCEL != 0,
            CTRL_START if self.assigned && value & START != 0 => return self.start(),
            _ => {}
        }
        None
    }

    /// The second counts where both are asked for.
    fn request(&mut self, value: u32) {
        for (bit, state, then) in
            [(CMD_READY, State::Ready, Then::Ready), (GO_IDLE, State::Idle, Then::Idle)]
        {
            if value & bit != 0 {
                let executing = matches!(self.state, State::Executing(_));
                self.state = if executing { State::Executing(then) } else { state };
            }
        }
    }

    /// A TPM that has failed starts nothing: the answer that says so is there.
    fn start(&mut self) -> Option<Command> {
        if !matches!(self.state, State::Ready | State::Complete) {
            return None;
        }
        if self.failed {
            self.answer(&command::refusal(RC_FAILURE));
            return None;
        }
        match command::length(&self.buffer) {
            Ok(length) => {
                self.state = State::Executing(Then::Complete);
                // `length` has just been measured in the buffer.
                self.buffer.get(..length).map(|command| Command(command.into()))
            }
            Err(code) => {
                self.answer(&command::refusal(code));
                None
            }
        }
    }

    fn answer(&mut self, answer: &[u8]) {
        self.buffer.iter_mut().zip(answer).for_each(|(to, byte)| *to = *byte);
        self.state = State::Complete;
    }

    /// The TPM has answered the command that was started last. An answer that nobody waits for is dropped.
    pub(super) fn complete(&mut self, answer: &[u8]) {
        match self.state {
            State::Executing(Then::Complete) => self.answer(answer),
            State::Executing(Then::Idle) => self.state = State::Idle,
            State::Executing(Then::Ready) => self.state = State::Ready,
            State::Idle | State::Ready | State::Complete => {}
        }
    }

    /// There is no TPM any more. The command that it was to carry out, if there is one, is answered so.
    pub(super) fn fail(&mut self) {
        self.failed = true;
        self.complete(&command::refusal(RC_FAILURE));
    }
}

#[cfg(test)]
#[path = "crb_tests.rs"]
mod tests;
