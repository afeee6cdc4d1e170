//! A person's terminal as a guest's serial console.

use beamline_vmm::Console;
use beamline_vmm::sandbox::remember_terminal;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcsetattr,
};
use std::io::{Stdin, Stdout, Write, stdin, stdout};

/// Ctrl-A: the next key is for this program.
const ESCAPE: u8 = 1;
/// The key that ends the guest.
const END: u8 = b'x';

/// The terminal, in which every key goes to the guest. As it was before, when dropped.
pub(crate) struct Terminal {
    input: Stdin,
    before: Termios,
}

impl Terminal {
    /// Takes over the terminal; `None` where standard input or output is none.
    pub(crate) fn take() -> anyhow::Result<Option<Self>> {
        let input = stdin();
        if !isatty(&input) || !isatty(stdout()) {
            return Ok(None);
        }
        // Where the sandbox ends this process, nothing is dropped.
        remember_terminal();
        let before = tcgetattr(&input)?;
        let mut raw = before.clone();
        // Output is left alone, so that the lines of logs stay whole.
        raw.input_modes &=
            !(InputModes::IXON | InputModes::ICRNL | InputModes::INLCR | InputModes::ISTRIP);
        raw.local_modes &=
            !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&input, OptionalActions::Now, &raw)?;
        Ok(Some(Self { input, before }))
    }

    /// Where keys come from.
    pub(crate) fn input(&self) -> &Stdin {
        &self.input
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Fails where the terminal is gone.
        let _ = tcsetattr(&self.input, OptionalActions::Now, &self.before);
    }
}

/// The guest's bytes go to stdout as they are.
pub(crate) struct TerminalConsole(Stdout);

impl TerminalConsole {
    pub(crate) fn new() -> Self {
        Self(stdout())
    }
}

impl Console for TerminalConsole {
    fn line(&mut self, guest: &str, line: &str) {
        crate::output::line(&format!("{guest}: {line}"));
    }

    fn terminal(&mut self) -> Option<&mut dyn Write> {
        Some(&mut self.0)
    }
}

/// What a person types: all of it is the guest's, apart from what follows Ctrl-A.
#[derive(Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// What of `typed` the guest gets; whether it is to end.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for key in typed {
            match (std::mem::take(&mut self.escaped), *key) {
                (false, ESCAPE) => self.escaped = true,
                (true, END) => return (passed, true),
                // Ctrl-A twice is one; any other key stays without effect.
                (true, ESCAPE) | (false, _) => passed.push(*key),
                (true, _) => {}
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ctrl_a_x_ends_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(keys.pass(b"x\x03\r"), (b"x\x03\r".to_vec(), false));
        assert_eq!(keys.pass(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(keys.pass(b"q"), (vec![], false), "the key after it is ours");
        assert_eq!(keys.pass(b"\x01\x01x"), (b"\x01x".to_vec(), false));
        assert_eq!(keys.pass(b"b\x01"), (b"b".to_vec(), false));
        assert_eq!(keys.pass(b"xlost"), (vec![], true));
    }
}
