//! `contract`: asks the host for another contract.

use crate::{ended, ms, open};
use beamline_abi::{Nanos, Reason};
use beamline_guest_driver::pacer::{Answer, Ask, AskLatch};
use beamline_guest_driver::transport::{Transport, Wake};
use clap::Args;
use std::error::Error;
use std::process::ExitCode;
use std::str::FromStr;

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub(crate) struct Arguments {
    /// Vblanks per second: 90, 59.94 or 60000/1001
    #[arg(long, value_name = "HZ", group = "what")]
    rate: Option<Rate>,
    /// GPU time per frame
    #[arg(long, value_name = "MS", group = "what")]
    budget_ms: Option<Millis>,
    /// When a frame is due after its vblank; without it, after one period
    #[arg(long, value_name = "MS", group = "what")]
    deadline_ms: Option<Millis>,
    /// Length of the late-latch window; without it there is none
    #[arg(long, value_name = "MS", group = "what")]
    late_latch_ms: Option<Millis>,
    /// GPU time per frame within that window
    #[arg(long, value_name = "MS", requires = "late_latch_ms")]
    latch_budget_ms: Option<Millis>,
    /// Give up after so many seconds without an answer
    #[arg(long, value_name = "S", default_value_t = 30)]
    seconds: u32,
}

/// A period in ns, numerator and denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(u64, u64);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "give a rate in Hz from 1 to 1000, such as 90, 59.94 or 60000/1001";
        let (above, below) = match text.split_once('/') {
            Some((above, below)) => {
                (above.parse().map_err(|_| WRONG)?, below.parse().map_err(|_| WRONG)?)
            }
            None => decimal(text, 6).ok_or(WRONG)?,
        };
        let rate: (u64, u64) = (above, below);
        // Cross-multiplied, so that nothing is rounded; both are bounded before.
        if rate.0 > 1_000_000_000 || rate.1 > 1_000_000 || rate.1 == 0 {
            return Err(WRONG);
        }
        if rate.0 < rate.1 || rate.0 > 1000 * rate.1 {
            return Err(WRONG);
        }
        Ok(Self(1_000_000_000 * rate.1, rate.0))
    }
}

/// Milliseconds, as ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Millis(u64);

impl FromStr for Millis {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "give milliseconds above 0 and up to 1000, such as 3 or 2.5";
        let (above, below) = decimal(text, 6).ok_or(WRONG)?;
        if below > 1_000_000 || above == 0 || above > 1000 * below {
            return Err(WRONG);
        }
        Ok(Self(above * (1_000_000 / below)))
    }
}

/// A number with up to `places` decimals, as a fraction of a power of ten.
fn decimal(text: &str, places: usize) -> Option<(u64, u64)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || whole.is_empty() || part.len() > places {
        return None;
    }
    let below = 10u64.pow(part.len() as u32);
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    Some((whole.checked_mul(below)?.checked_add(part)?, below))
}

pub(crate) fn run(pacer: Option<&str>, arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let time = |ms: Option<Millis>| ms.map(|ms| Nanos(ms.0));
    let ask = Ask {
        period: arguments.rate.map(|rate| (rate.0, rate.1)),
        budget: time(arguments.budget_ms),
        deadline: time(arguments.deadline_ms),
        late_latch: arguments.late_latch_ms.map(|window| AskLatch {
            window: Nanos(window.0),
            budget: time(arguments.latch_budget_ms),
        }),
    };
    let mut paced = open(pacer, Some(arguments.seconds))?;
    paced.pacer.ask(&mut paced.port, &ask)?;
    let answer = loop {
        if let Some(answer) = paced.pacer.poll_answer(&mut paced.port) {
            break answer;
        }
        if paced.port.wait() == Wake::Stop {
            return Err(ended(&mut paced, "the host has not answered"));
        }
    };
    let because = |reason: Option<Reason>| reason.map_or("a reason unknown here", Reason::name);
    match answer {
        Answer::Granted => println!("granted"),
        Answer::Reduced { reason, budget } => {
            println!("reduced: {}: {:.3} ms of GPU time per frame", because(reason), ms(budget.0));
        }
        Answer::Refused { reason, fits } => {
            let fits = fits.map_or(String::new(), |fits| {
                format!("; {:.3} ms of GPU time per frame would fit", ms(fits.0))
            });
            println!("refused: {}{fits}", because(reason));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_exact() {
        let rate = |text: &str| text.parse::<Rate>().ok().map(|r| (r.0, r.1));
        assert_eq!(rate("90"), Some((1_000_000_000, 90)));
        assert_eq!(rate("59.94"), Some((100_000_000_000, 5994)));
        assert_eq!(rate("60000/1001"), Some((1_001_000_000_000, 60_000)));
        for wrong in [
            "",
            "0",
            "0.5",
            "1001",
            "-1",
            "1e2",
            "60/0",
            "60/",
            "1/2",
            "9.1234567",
            "99999999999999999999",
        ] {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_exact() {
        let ns = |text: &str| text.parse::<Millis>().ok().map(|m| m.0);
        assert_eq!(ns("3"), Some(3_000_000));
        assert_eq!(ns("2.5"), Some(2_500_000));
        assert_eq!(ns("0.000001"), Some(1));
        for wrong in ["", "0", "0.0", "1000.1", "-1", "1.0000001", "nan"] {
            assert_eq!(ns(wrong), None, "{wrong}");
        }
    }
}
