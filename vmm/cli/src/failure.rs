//! Exit codes: what went wrong decides which one a script sees.

use std::fmt;

/// Everything asked for was done.
pub(crate) const DONE: u8 = 0;
/// Something failed while running.
pub(crate) const FAILED: u8 = 1;
/// Bad input, or something that must be there is missing: running again as it is will not help.
pub(crate) const REFUSED: u8 = 2;

/// One life of a guest ended by a reset: between the process that runs it and the one that starts it again.
pub(crate) const RESET: u8 = 64;
/// The same, where the guest reset soon after its start.
pub(crate) const RESET_AT_ONCE: u8 = 65;

/// Bad input or a missing prerequisite. The message says what, where, and how to mend it.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// An error that ends the command with exit code 2.
pub(crate) fn refused(message: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Refused(message.to_string()))
}

/// An error and its sources on one line, ending the command with exit code 2.
pub(crate) fn refused_by(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    refused(format!("{:#}", anyhow::Error::new(error)))
}

/// An error that says that a signal ended the command before it was done.
pub(crate) fn interrupted() -> anyhow::Error {
    anyhow::anyhow!("stopped by a signal; everything that was started has been ended")
}

/// The exit code of an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Refused>().is_some() { REFUSED } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn context_keeps_the_exit_code() {
        let plain = anyhow::anyhow!("it broke");
        assert_eq!(exit_code(&plain), FAILED);
        let bad = Err::<(), _>(refused("no such file")).context("reading the demo").unwrap_err();
        assert_eq!(exit_code(&bad), REFUSED);
        assert_eq!(format!("{bad:#}"), "reading the demo: no such file");
    }
}
