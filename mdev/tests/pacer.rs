//! A whole host, its pacer read by a VMM that has only just come.

use beamline_abi::pacer::TimingPage;
use beamline_mdev::config::HostConfig;
use beamline_mdev::host::{Host, RendererProgram};
use beamline_vfio_user::RegionIndex;
use beamline_vfio_user::client::Client;
use std::time::Duration;
use zerocopy::FromBytes;

const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
[[slice]]
name = "vr"
width = 64
height = 64
[slice.contract]
refresh_hz = "90"
class = "reserved"
budget_ms = 2.0
max_job_ms = 1.0
late_latch = { window_ms = 1.5, budget_ms = 0.5 }
"#;

#[test]
fn the_timing_page_tells_the_contract_before_the_first_vblank() {
    let folder = tempfile::tempdir().unwrap();
    let config = HostConfig::parse(HOST, &folder.path().join("host.toml")).unwrap();
    let renderer = RendererProgram { exe: "none".into(), args: Vec::new() };
    let host = Host::start(config, renderer).unwrap();
    let mut client =
        Client::connect(&host.ready().slices[0].pacer, Duration::from_secs(20)).unwrap();
    let mut bytes = [0; size_of::<TimingPage>()];
    client.region_read(RegionIndex::bar(2), 0, &mut bytes).unwrap();
    let page = TimingPage::read_from_bytes(&bytes).unwrap();
    assert_eq!((page.vblank_seq, page.vblank_time.0), (0, 0), "vblanks are off");
    assert_eq!((page.period_num, page.period_den), (100_000_000, 9));
    assert_eq!((page.budget.0, page.late_latch.0), (2_000_000, 1_500_000));
}
