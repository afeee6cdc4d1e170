//! A host with one slice, over the model of a GPU.

pub(crate) const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
[[slice]]
name = "vr"
width = 512
height = 288
[slice.contract]
refresh_hz = "90"
class = "reserved"
budget_ms = 2.2
max_job_ms = 3.0
late_latch = { window_ms = 1.2, budget_ms = 0.6 }
"#;
