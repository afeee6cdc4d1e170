//! What a decision costs in instructions, which repeats from run to run: this program runs itself under
//! callgrind, which counts inside [`counted`] only.

use crate::load::Load;
use anyhow::{Context, bail};
use beamline_sched::{Decision, PolicyKind};
use std::hint::black_box;
use std::process::Command;

/// The argument that makes this program the one that is counted.
pub(crate) const COUNT: &str = "--count";
/// Decisions that are counted.
const DECISIONS: u64 = 20_000;
/// Decisions before them.
const WARM_UP: u64 = 20_000;

/// Instructions per decision of `kind` with `tenants`; `None` where valgrind is not installed.
pub(crate) fn instructions(kind: PolicyKind, tenants: u16) -> anyhow::Result<Option<f64>> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .args(["--toggle-collect=*callgrind*counted*", "--"])
        .arg(program)
        .args([COUNT, kind.name(), &tenants.to_string()])
        .output();
    let run = match run {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context("cannot start valgrind")?,
    };
    let said = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        bail!("valgrind failed: {}", said.lines().last().unwrap_or("it said nothing"));
    }
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse::<u64>().ok())
        .context("valgrind does not say how many instructions it collected")?;
    if collected == 0 {
        bail!(
            "valgrind collected nothing: the program has no function of the name that is counted"
        );
    }
    Ok(Some(collected as f64 / DECISIONS as f64))
}

/// Runs what is counted: `COUNT POLICY TENANTS` are the arguments.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [kind, tenants] = arguments else { bail!("use: {COUNT} POLICY TENANTS") };
    let mut load = Load::new(kind.parse()?, tenants.parse().context("tenants are a number")?)?;
    let mut done = 0;
    while done < WARM_UP + DECISIONS {
        load.advance()?;
        loop {
            let decision = match done {
                n if n < WARM_UP => load.decide(),
                n if n < WARM_UP + DECISIONS => counted(&mut load),
                _ => break,
            };
            done += 1;
            if !load.follow(decision) {
                break;
            }
        }
    }
    Ok(())
}

#[inline(never)]
fn counted(load: &mut Load) -> Decision {
    black_box(load.decide())
}
