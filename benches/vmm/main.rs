//! What the virtual machine monitor costs by itself: memory beside its guest's, and time until the guest runs; and
//! what the whole stack costs a guest that draws as fast as it can.
//!
//! The real command is measured, sandbox and all, as `make build` leaves it.

mod direct;
mod memory;
mod process;
mod start;
mod throughput;

use beamline_benches::report::{Gate, LABEL, Row, table, write_json};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    beamline_benches::run("vmm", || direct::is_role().unwrap_or_else(bench))
}

/// A file that `make bench-vmm` names; prints that `part` is skipped where it is not there.
fn file(part: &str, variable: &str, made_by: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        println!("skip: {part}: {variable} names no file; `{made_by}` makes it");
    }
    path
}

fn bench() -> anyhow::Result<()> {
    let kvm = beamline_vmm::probe::kvm();
    if !kvm.usable() {
        println!("skip: vmm: {kvm}");
        return Ok(());
    }
    let Some(beamline) = file("vmm", "BEAMLINE", "make build") else { return Ok(()) };
    let (mut rows, mut gates): (Vec<Row>, Vec<(Gate, &str)>) = (Vec::new(), Vec::new());
    let (row, gate) = start::measure(&beamline)?;
    rows.push(row);
    gates.push((gate, " ms"));
    if let Some(image) = file("memory", "BEAMLINE_GUEST", "make guest") {
        gates.push((memory::measure(&beamline, &image)?, " MiB"));
        gates.extend(throughput::measure(&beamline, &image)?.map(|gate| (gate, "×")));
    }
    print!("{}", table(&format!("The VMM on {kvm}"), &rows));
    for (gate, unit) in &gates {
        println!("gate: {}", gate.line(unit));
    }
    let gates: Vec<&Gate> = gates.iter().map(|(gate, _)| gate).collect();
    let json = serde_json::json!({ "bench": "vmm", "label": LABEL, "rows": rows, "gates": gates });
    println!("{}\n", write_json("vmm", &json)?.display());
    Ok(())
}
