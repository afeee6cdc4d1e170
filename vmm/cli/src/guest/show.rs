//! `beamline guest show` and `stats`: a guest for people.

use crate::api::json::{GuestJson, StatsJson};
use crate::client::{self, Client};
use crate::{device, output};
use serde_json::Value;

pub(super) fn show(client: &Client, json: bool) -> anyhow::Result<()> {
    let heard = client.ask("GET", "/v1/guest", None)?;
    if json {
        return output::json(&client::read::<Value>(&heard)?);
    }
    output::line(about(&client::read(&heard)?).trim_end());
    Ok(())
}

pub(super) fn stats(client: &Client, json: bool) -> anyhow::Result<()> {
    let heard = client.ask("GET", "/v1/guest/stats", None)?;
    if json {
        return output::json(&client::read::<Value>(&heard)?);
    }
    output::line(numbers(&client::read(&heard)?).trim_end());
    Ok(())
}

fn about(guest: &GuestJson) -> String {
    let boots = match (&guest.image, &guest.firmware) {
        (Some(image), _) => format!("image {}", image.display()),
        (None, Some(firmware)) => format!("firmware {}", firmware.display()),
        (None, None) => "boots something unknown".into(),
    };
    let mut text = format!(
        "{}: {}, up {}\n  {} vCPUs, {} MiB, {}\n  process {}, beamline {}\n",
        guest.name,
        guest.state,
        time(guest.uptime_ms),
        guest.vcpus,
        guest.memory_bytes >> 20,
        boots,
        guest.pid,
        guest.beamline,
    );
    for device in &guest.devices {
        let opens = device.opens.as_deref().unwrap_or("");
        let port = device::port_words(device.port.as_ref());
        let line = format!("  {}  {:<15} {opens}{port}", device.pci, device.kind);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if let Some(display) = &guest.display {
        text.push_str(&format!(
            "  display: slice {} of the host at {}\n",
            display.slice,
            display.host.display()
        ));
    }
    text
}

fn numbers(stats: &StatsJson) -> String {
    let mut text = format!("{}, up {}\n", stats.state, time(stats.uptime_ms));
    text.push_str("  vCPU   exits: ports      memory       other\n");
    for (index, vcpu) in stats.vcpus.iter().enumerate() {
        text.push_str(&format!(
            "  {index:>4} {:>14} {:>11} {:>11}\n",
            vcpu.io, vcpu.mmio, vcpu.other
        ));
    }
    for device in &stats.devices {
        let broken = if device.broken { ", broken until its driver resets it" } else { "" };
        text.push_str(&format!(
            "  {}  {:<15} {} interrupts{broken}\n",
            device.pci, device.kind, device.interrupts
        ));
    }
    if let Some(balloon) = &stats.balloon {
        text.push_str(&format!(
            "  balloon: asked for {} MiB, gave {} MiB\n",
            balloon.target_bytes >> 20,
            balloon.actual_bytes >> 20
        ));
    }
    text
}

/// `1 h 2 min 3.4 s`.
fn time(ms: u64) -> String {
    let (hours, minutes, seconds) =
        (ms / 3_600_000, ms / 60_000 % 60, (ms % 60_000) as f64 / 1000.0);
    match (hours, minutes) {
        (0, 0) => format!("{seconds:.1} s"),
        (0, _) => format!("{minutes} min {seconds:.1} s"),
        _ => format!("{hours} h {minutes} min {seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_at_a_glance() {
        assert_eq!(time(3_400), "3.4 s");
        assert_eq!(time(62_000), "1 min 2.0 s");
        assert_eq!(time(3_600_000), "1 h 0 min 0.0 s");
    }
}
