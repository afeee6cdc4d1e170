//! The TPM: a guest at its registers, and an emulator that says what it likes, while it is set up and afterwards.

use crate::input::Input;
use crate::peer::{Place, receive};
use beamline_vmm::devices::tpm::{SIZE, Tpm};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Registers (TCG PC Client Platform TPM Profile 1.05, section 6.5.3).
const LOC_CTRL: u64 = 0x08;
const CTRL_REQ: u64 = 0x40;
const CTRL_STS: u64 = 0x44;
const CTRL_START: u64 = 0x4c;
const CMD_SIZE: u64 = 0x58;
const RSP_SIZE: u64 = 0x64;
const BUFFER: u64 = 0x80;
const KNOWN: [u64; 10] =
    [0, LOC_CTRL, 0x0c, 0x30, CTRL_REQ, CTRL_STS, 0x48, CTRL_START, BUFFER, SIZE];
/// Bytes of a header: tag, size of the whole, code.
const HEADER: usize = 10;
/// The command that chooses a locality, which no guest may.
const SET_LOCALITY: [u8; 4] = [0x20, 0, 0x10, 0];
/// Requests while it is set up.
const REQUESTS: usize = 7;
const SET_DATAFD: u32 = 0x10;
const LAST: u32 = 0x04;

/// What the emulator does at one request.
#[derive(Clone, Copy)]
enum Deed {
    Answers,
    /// With one byte changed.
    Changes(u8, u8),
    /// With bytes too many.
    Adds(u8),
    /// With fewer bytes, and the connection ends.
    Breaks(u8),
}

impl Deed {
    fn read(input: &mut Input<'_>) -> Self {
        match input.u8() {
            0xf0.. => Self::Breaks(input.u8()),
            0xe8.. => Self::Adds(input.u8()),
            0xd0.. => Self::Changes(input.u8(), input.u8()),
            _ => Self::Answers,
        }
    }
}

/// What swtpm says to request `number` where all is well, with a buffer of `room` bytes.
fn good(number: u32, room: u32) -> Vec<u8> {
    let words: &[u32] = match number {
        0x01 => &[0, 0xffff],
        LAST => &[0, 0],
        0x11 => &[0, room, 10, 0x1000],
        _ => &[0],
    };
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Serves the control connection until the TPM is set up; it, and the socket for commands.
fn set_up(mut control: UnixStream, deeds: [Deed; REQUESTS], room: u32) -> Option<[UnixStream; 2]> {
    let mut data = None;
    for deed in deeds {
        // One may follow at once on another, where an answer came too early.
        let mut number = [0; 4];
        let (len, mut fds) = receive(&control, &mut number)?;
        control.read_exact(&mut number[len..]).ok()?;
        let number = u32::from_be_bytes(number);
        let body = match number {
            0x02 | 0x11 => 4,
            0x05 => 1,
            _ => 0,
        };
        control.read_exact(&mut [0; 4][..body]).ok()?;
        if number == SET_DATAFD {
            data = fds.pop().map(UnixStream::from);
        }
        assert!(fds.is_empty(), "one descriptor comes, with one request");
        let mut answer = good(number, room);
        match deed {
            Deed::Answers => {}
            Deed::Changes(at, value) => {
                let at = usize::from(at) % answer.len();
                answer[at] ^= value;
            }
            Deed::Adds(count) => answer.extend(std::iter::repeat_n(0, count.into())),
            Deed::Breaks(len) => answer.truncate(usize::from(len) % answer.len()),
        }
        // The other end may have given up.
        let _ = control.write_all(&answer);
        if matches!(deed, Deed::Breaks(_)) {
            return None;
        }
        if number == LAST {
            return data.map(|data| [control, data]);
        }
    }
    None
}

/// A TPM, and the emulator's ends of its connections.
pub(super) struct Bench {
    tpm: Tpm,
    data: UnixStream,
    /// Held open.
    _control: UnixStream,
    room: usize,
    /// Bytes that the emulator has said and nobody has waited for yet.
    said: Vec<u8>,
    /// It has ended, or said what is no answer.
    lost: bool,
    /// A command has been taken from the guest and not been answered.
    asked: bool,
    /// It has answered before it was asked: nobody can tell from here which command has which answer.
    loose: bool,
}

impl Bench {
    /// Sets up a TPM; `None` where its emulator does not behave.
    pub(super) fn connect(input: &mut Input<'_>) -> Option<Self> {
        let room = match input.u8() {
            0xf0.. => input.number32(),
            small => 0xf80 - u32::from(small % 8) * 500,
        };
        let deeds = std::array::from_fn(|_| Deed::read(input));
        let well = deeds.iter().all(|deed| matches!(deed, Deed::Answers));
        let place = Place::new();
        let (tpm, ends) = place.meet(
            || Tpm::connect("fuzz", &place.path, &mut || true),
            move |control| set_up(control, deeds, room),
        );
        let fits = (HEADER..=(SIZE - BUFFER) as usize).contains(&(room as usize));
        match tpm {
            Err(error) => {
                assert!(!well || !fits, "{error}");
                assert!(!error.to_string().is_empty());
                None
            }
            Ok(tpm) => {
                assert!(fits || !well);
                // What was said too early may have been enough for all requests.
                assert!(ends.is_some() || !well);
                let [control, data] = ends?;
                let mut bench = Self {
                    tpm,
                    data,
                    _control: control,
                    room: 0,
                    said: Vec::new(),
                    lost: false,
                    asked: false,
                    loose: false,
                };
                bench.room = bench.register(CMD_SIZE) as usize;
                assert!((HEADER..=(SIZE - BUFFER) as usize).contains(&bench.room));
                Some(bench)
            }
        }
    }

    fn register(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.tpm.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    /// A guest's write, and what it may have started.
    fn write(&mut self, at: u64, data: &[u8]) {
        let mut before = vec![0; self.room];
        self.tpm.read(BUFFER, &mut before);
        self.tpm.write(at, data);
        let reaches = at < CTRL_START + 4 && at.saturating_add(data.len() as u64) > CTRL_START;
        if reaches && !self.asked {
            self.started(&before);
        }
    }

    /// Looks whether a command runs now: whether the emulator has it.
    fn started(&mut self, buffer: &[u8]) {
        if self.lost {
            // Nobody carries it out, which the TPM's thread may have to find out.
            return self.wait();
        }
        self.loose |= !self.said.is_empty();
        if self.loose || self.register(CTRL_START) == 0 {
            return;
        }
        self.asked = true;
        let mut command = vec![0; HEADER];
        self.data.read_exact(&mut command).expect("a command comes");
        let tag = [command[0], command[1]];
        assert!(tag == [0x80, 1] || tag == [0x80, 2], "{tag:x?}");
        assert_ne!(command[6..HEADER], SET_LOCALITY, "no guest chooses a locality");
        let size = u32::from_be_bytes([command[2], command[3], command[4], command[5]]) as usize;
        assert!((HEADER..=self.room).contains(&size), "{size}");
        command.resize(size, 0);
        self.data.read_exact(&mut command[HEADER..]).expect("all of it comes");
        // What the same write put into the buffer is part of the next command at the earliest.
        assert_eq!(command, buffer[..size], "it is what the guest had written");
    }

    /// Waits until nothing runs any more.
    fn wait(&self) {
        while self.register(CTRL_START) != 0 {
            std::thread::yield_now();
        }
    }

    /// What comes of all that the emulator has said so far.
    fn judge(&mut self) {
        if !self.asked || self.said.len() < HEADER {
            return;
        }
        let size = u32::from_be_bytes([self.said[2], self.said[3], self.said[4], self.said[5]]);
        let size = size as usize;
        if !(HEADER..=self.room).contains(&size) {
            self.lose();
        } else if self.said.len() >= size {
            self.wait();
            self.asked = false;
            self.said.drain(..size);
        }
    }

    /// The emulator is gone, or is no emulator.
    fn lose(&mut self) {
        self.lost = true;
        self.wait();
        let sts = self.register(CTRL_STS);
        assert!(!self.asked || sts & 1 != 0, "the guest is told: {sts:#x}");
        self.asked = false;
    }

    fn say(&mut self, bytes: &[u8]) {
        // More than the socket holds is nothing that anybody waits for.
        if self.lost || self.said.len() > 64 << 10 {
            return;
        }
        if self.data.write_all(bytes).is_ok() {
            self.said.extend(bytes);
            self.judge();
        }
    }

    pub(super) fn step(&mut self, input: &mut Input<'_>) {
        match input.below(9) {
            0 => {
                let at = Self::place(input);
                self.tpm.read(at, &mut [0; 8][..input.below(9)]);
                assert_eq!(self.register(CMD_SIZE), self.room as u32);
                assert_eq!(self.register(RSP_SIZE), self.room as u32);
            }
            1 | 2 => {
                let (at, value) = (Self::place(input), input.u64().to_le_bytes());
                self.write(at, &value[..input.below(9)]);
            }
            3 | 4 => self.command(input),
            5 => {
                let bytes = input.bytes(64);
                self.say(bytes);
            }
            6 | 7 => {
                let (size, code) = (input.number32(), input.u32());
                let mut answer =
                    [&[0x80, 1][..], &size.to_be_bytes(), &code.to_be_bytes()].concat();
                let whole = (size as usize).min(SIZE as usize);
                // Some end early: the rest may come later.
                answer.resize(if input.flag() { answer.len() } else { whole.max(HEADER) }, 0x55);
                self.say(&answer);
            }
            _ => {
                // Only where the input says so again: it is the end of what can be found.
                if input.u8() > 0xc0 && !self.lost {
                    // Fails only where the other end has gone.
                    let _ = self.data.shutdown(Shutdown::Both);
                    self.lose();
                }
            }
        }
    }

    fn place(input: &mut Input<'_>) -> u64 {
        KNOWN[input.below(KNOWN.len())].wrapping_add(input.number() % 16)
    }

    /// What a driver does: a command, mostly a right one.
    fn command(&mut self, input: &mut Input<'_>) {
        self.set(LOC_CTRL, 1);
        self.set(CTRL_REQ, 1);
        let tag = if input.u8() < 0xf0 { [0x80, 1 + input.u8() % 2] } else { [input.u8(), 0] };
        let code = if input.u8() < 0xf0 { input.u32().to_be_bytes() } else { SET_LOCALITY };
        let size = input.number32();
        let header = [&tag[..], &size.to_be_bytes(), &code].concat();
        for (at, bytes) in (BUFFER..).step_by(8).zip(header.chunks(8)) {
            self.write(at, bytes);
        }
        self.set(CTRL_START, 1);
    }

    /// An emulator that ends leaves a TPM that says so, at once and to each command.
    pub(super) fn finish(mut self) {
        if !self.lost {
            let _ = self.data.shutdown(Shutdown::Both);
            self.lose();
        }
        self.set(LOC_CTRL, 1);
        self.set(CTRL_REQ, 1);
        self.write(BUFFER, &[0x80, 1, 0, 0, 0, 10, 0, 0]);
        self.write(BUFFER + 8, &[1, 0x7b]);
        self.set(CTRL_START, 1);
        assert_eq!(self.register(CTRL_STS) & 1, 1, "it has failed");
        let mut answer = [0; HEADER];
        self.tpm.read(BUFFER, &mut answer);
        assert_eq!(answer, [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1], "TPM_RC_FAILURE");
    }
}
