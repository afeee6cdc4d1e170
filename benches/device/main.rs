//! What the device models cost: a register over vfio-user, a doorbell, the mediation of a submission, the error
//! of vblanks, and slices that do nothing. Each stands beside a baseline that is measured in the same run.

mod allocations;
mod doorbell;
mod flood;
mod guest;
mod idle;
mod mediation;
mod pacers;
mod register;
mod vblank;

use beamline_benches::report::{Gate, LABEL, Row, write_json};
use std::process::ExitCode;

/// Measures rows, and judges gates.
type Part = fn() -> anyhow::Result<(Vec<Row>, Vec<Gate>)>;

fn main() -> ExitCode {
    beamline_benches::run("device", bench)
}

fn bench() -> anyhow::Result<()> {
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    let parts: [(&str, Part); 5] = [
        ("register", register::bench),
        ("doorbell", doorbell::measure),
        ("mediation", mediation::measure),
        ("vblank", vblank::measure),
        ("idle", idle::measure),
    ];
    // `cargo bench --bench device -- mediation` measures one part alone.
    let named = |name: &str| std::env::args().any(|argument| argument == name);
    let all = !parts.iter().any(|(name, _)| named(name));
    for (name, part) in parts {
        if !all && !named(name) {
            continue;
        }
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
