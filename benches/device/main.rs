//! What the device models cost: a register over vfio-user, the error of vblanks, and slices that do nothing. Each
//! stands beside a baseline that is measured in the same run.

mod idle;
mod pacers;
mod register;
mod vblank;

use beamline_benches::report::{LABEL, write_json};
use std::process::ExitCode;

fn main() -> ExitCode {
    if !beamline_benches::asked_for() {
        return ExitCode::SUCCESS;
    }
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> anyhow::Result<()> {
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    for part in [register::bench, vblank::measure, idle::measure] {
        let (more_rows, more_gates) = part()?;
        rows.extend(more_rows);
        gates.extend(more_gates);
    }
    for gate in &gates {
        println!("gate: {}", gate.line(""));
    }
    let json =
        serde_json::json!({ "bench": "device", "label": LABEL, "rows": rows, "gates": gates });
    println!("{}\n", write_json("device", &json)?.display());
    Ok(())
}
