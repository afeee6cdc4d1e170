//! The subcommands of `beamline guest` that do something to a running guest.

use crate::api::json::{
    ActJson, BalloonJson, GuestJson, InputJson, PortJson, SerialJson, StateJson, TakenJson,
    TargetJson, UnplugJson, WritesForJson, WritesJson,
};
use crate::client::{self, Client};
use crate::failure::refused;
use crate::{output, slice};
use anyhow::Context;
use beamline_vmm::config::InputKind;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Characters of one request: eight events each at most.
const PIECE: usize = 64;
/// How often a guest that is behind is asked again: a few seconds in all.
const TRIES: u32 = 50;

#[derive(clap::Subcommand)]
pub(super) enum Act {
    /// Take every vCPU out of the guest; it makes no progress until `resume`
    Pause,
    /// Let a paused guest go on
    Resume,
    /// Press the power button: a guest that listens shuts down
    PowerButton,
    /// Reset the guest: it boots again, where its file says on_reset = "reboot"
    Reset,
    /// End the guest at once, as if its power were cut
    Stop,
    /// Plug the device of a root port in: [[port]] in the guest's file names it
    Plug {
        /// The port's name
        port: String,
    },
    /// Ask the guest to let the device of a root port go; `show` tells when it has
    Unplug {
        /// The port's name
        port: String,
        /// Take it out at once, whatever the guest does with it
        #[arg(long)]
        force: bool,
    },
    /// Ask a guest with a balloon to give up memory in all, such as 512M; without it, what it has given up
    Balloon {
        /// How much the guest is to give up; 0 gives all of it back
        size: Option<String>,
    },
    /// Count the pages that the guest writes in a while, by KVM's log: what a copy of it would have to catch up with
    Writes {
        /// For how long
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10))]
        seconds: u64,
    },
    /// Type text on the guest's keyboard, as a US one
    Type {
        /// What is typed: printable ASCII, tabs and newlines
        text: String,
        /// Press Enter after it
        #[arg(long)]
        enter: bool,
        /// Type on its serial port in place of its keyboard
        #[arg(long)]
        serial: bool,
    },
    /// Press keys together and let them go, such as ctrl+alt+delete; one after the other where there are more
    Key {
        /// Names joined by +: a, 1, enter, esc, f1, left, ctrl, alt, shift, meta
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Point with the guest's tablet: 0 0 is the upper left, 1 1 the lower right
    Point {
        /// From the left, 0 to 1
        x: f64,
        /// From the top, 0 to 1
        y: f64,
        /// Press a button there: left, right or middle
        #[arg(long, value_name = "BUTTON")]
        click: Option<String>,
    },
    /// Use an input device, such as mouse '[{"move": [10, 0]}, {"tap": "left"}]'
    Do {
        /// keyboard, mouse, tablet or gamepad
        device: String,
        /// What happens, one after the other: a JSON list, as the API's `do` (docs/guest.md)
        acts: String,
    },
    /// Save what the guest's slice shows as PNG; the picture comes from the host
    Screenshot {
        /// The file [default: NAME.png]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl Act {
    pub(super) fn run(self, client: &Client, json: bool) -> anyhow::Result<()> {
        match self {
            Self::Pause => post(client, "pause", json),
            Self::Resume => post(client, "resume", json),
            Self::PowerButton => post(client, "power-button", json),
            Self::Reset => post(client, "reset", json),
            Self::Stop => post(client, "stop", json),
            Self::Plug { port } => of_port(client, &port, "plug", None, json),
            Self::Unplug { port, force } => {
                of_port(client, &port, "unplug", Some(&body(&UnplugJson { force })?), json)
            }
            Self::Balloon { size } => balloon(client, size.as_deref(), json),
            Self::Writes { seconds } => writes(client, seconds, json),
            Self::Type { mut text, enter, serial } => {
                if enter {
                    text.push('\n');
                }
                let done = if serial {
                    type_serial(client, &text)?
                } else {
                    let characters: Vec<char> = text.chars().collect();
                    let pieces = characters.chunks(PIECE).map(|piece| piece.iter().collect());
                    let mut done = json!({ "state": "running" });
                    for piece in pieces {
                        done = input(client, InputKind::Keyboard, vec![ActJson::Text(piece)])?;
                    }
                    done
                };
                said(&done, json, "typed")
            }
            Self::Key { keys } => {
                let acts = keys.into_iter().map(ActJson::Tap).collect();
                said(&input(client, InputKind::Keyboard, acts)?, json, "pressed")
            }
            Self::Point { x, y, click } => {
                let mut acts = vec![ActJson::Point([x, y])];
                acts.extend(click.map(ActJson::Tap));
                said(&input(client, InputKind::Tablet, acts)?, json, "done")
            }
            Self::Do { device, acts } => {
                let InputJson { device, acts } = listed(&device, &acts)?;
                said(&input(client, device, acts)?, json, "done")
            }
            Self::Screenshot { out } => screenshot(client, out, json),
        }
    }
}

fn post(client: &Client, verb: &str, json: bool) -> anyhow::Result<()> {
    let heard = client.ask("POST", &format!("/v1/guest/{verb}"), None)?;
    if json {
        return output::json(&client::read::<Value>(&heard)?);
    }
    let StateJson { state } = client::read(&heard)?;
    output::line(&format!("{verb}: the guest is {state}"));
    Ok(())
}

fn of_port(
    client: &Client,
    port: &str,
    verb: &str,
    body: Option<&Value>,
    json: bool,
) -> anyhow::Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if port.is_empty() || !port.bytes().all(plain) {
        return Err(refused(format!(
            "{port:?} is no port: names have lower-case letters, digits and dashes"
        )));
    }
    let heard = client.ask("POST", &format!("/v1/guest/ports/{port}/{verb}"), body)?;
    if json {
        return output::json(&client::read::<Value>(&heard)?);
    }
    let PortJson { port, state } = client::read(&heard)?;
    output::line(&format!("{verb}: port {port} is {state}"));
    Ok(())
}

fn said(done: &Value, json: bool, text: &str) -> anyhow::Result<()> {
    if json {
        return output::json(done);
    }
    output::line(text);
    Ok(())
}

fn body(value: &impl Serialize) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(value)?)
}

/// A device and what is to happen on it, as a person wrote them.
fn listed(device: &str, acts: &str) -> anyhow::Result<InputJson> {
    let read = serde_json::from_str::<Value>(acts)
        .and_then(|list| serde_json::from_value(json!({ "device": device, "do": list })));
    read.map_err(|error| {
        refused(format!(
            "{device} {acts}: {error}; give keyboard, mouse, tablet or gamepad, and a list such as \
             '[{{\"tap\": \"left\"}}]'; docs/guest.md has all acts"
        ))
    })
}

/// Sends acts; a guest that has not read what came before is asked again for a while.
fn input(client: &Client, device: InputKind, acts: Vec<ActJson>) -> anyhow::Result<Value> {
    let asked = body(&InputJson { device, acts })?;
    for _ in 0..TRIES {
        match client.try_ask("POST", "/v1/guest/input", Some(&asked))? {
            Ok(heard) => return client::read(&heard),
            Err(refusal) => match refusal.retry_after() {
                Some(wait) => std::thread::sleep(wait.min(Duration::from_secs(1))),
                None => return Err(client.tell(refusal)),
            },
        }
    }
    Err(refused(
        "the guest does not read its input: does it run, and has it a driver for the device?",
    ))
}

/// Types on the serial port, which takes as much as the guest leaves room for.
fn type_serial(client: &Client, text: &str) -> anyhow::Result<Value> {
    let mut rest = text;
    let mut tries = 0;
    while tries < TRIES {
        // Far less than the longest body, and whole characters.
        let piece = &rest[..rest.floor_char_boundary(4096)];
        let asked = body(&SerialJson { text: piece.to_owned() })?;
        let heard = client.ask("POST", "/v1/guest/serial", Some(&asked))?;
        let TakenJson { taken } = client::read(&heard)?;
        // Part of a character is sent again whole: text on a serial port is ASCII almost always.
        let done = piece.floor_char_boundary(taken);
        rest = &rest[done..];
        if rest.is_empty() {
            return Ok(json!({ "taken": text.len() }));
        }
        if done < piece.len() {
            std::thread::sleep(Duration::from_millis(100));
        }
        tries = if done == 0 { tries + 1 } else { 0 };
    }
    Err(refused(format!("the guest does not read its serial port: {} bytes are left", rest.len())))
}

fn balloon(client: &Client, size: Option<&str>, json: bool) -> anyhow::Result<()> {
    let path = "/v1/guest/balloon";
    let heard = match size {
        None => client.ask("GET", path, None)?,
        Some(size) => {
            let target_bytes = bytes(size).ok_or_else(|| {
                refused(format!("{size:?} is not a size: give bytes, or such as 512M or 1G"))
            })?;
            client.ask("PUT", path, Some(&body(&TargetJson { target_bytes })?))?
        }
    };
    if json {
        return output::json(&client::read::<Value>(&heard)?);
    }
    let BalloonJson { target_bytes, actual_bytes } = client::read(&heard)?;
    output::line(&format!("asked for {} MiB, gave {} MiB", target_bytes >> 20, actual_bytes >> 20));
    Ok(())
}

fn writes(client: &Client, seconds: u64, json: bool) -> anyhow::Result<()> {
    let asked = body(&WritesForJson { for_ms: seconds * 1000 })?;
    let heard = client.ask("POST", "/v1/guest/writes", Some(&asked))?;
    if json {
        return output::json(&client::read::<Value>(&heard)?);
    }
    let WritesJson { ms, pages, bytes } = client::read(&heard)?;
    let (mib, seconds) = (bytes as f64 / f64::from(1 << 20), ms as f64 / 1000.0);
    output::line(&format!("wrote {pages} pages of 4 KiB, {mib:.1} MiB, in {seconds:.1} s"));
    Ok(())
}

/// `512M` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, [('K', 10), ('M', 20), ('G', 30)]),
        None => (text, [(' ', 0); 3]),
    };
    let shift = shift.iter().find(|(unit, _)| text.ends_with(*unit)).map_or(0, |(_, by)| *by);
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The guest knows its slice, the host has the picture.
fn screenshot(client: &Client, out: Option<PathBuf>, json: bool) -> anyhow::Result<()> {
    let guest: GuestJson = client::read(&client.ask("GET", "/v1/guest", None)?)?;
    let Some(display) = guest.display else {
        return Err(refused(format!(
            "guest {} has no vGPU of a host: a picture is of a slice, so give it the slice's NAME-gpu.sock as a \
             [[device]] of type \"vfio-user\"",
            guest.name
        )));
    };
    let path = format!("{}/scanout.png", slice::path(&display.slice)?);
    let png = Client::of_host(display.host, json)
        .ask("GET", &path, None)
        .context("the picture is the host's to give")?;
    let out = out.unwrap_or_else(|| format!("{}.png", guest.name).into());
    std::fs::write(&out, &png).with_context(|| format!("cannot write {}", out.display()))?;
    said(
        &json!({ "file": out, "bytes": png.len() }),
        json,
        &format!("{} is written", out.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_read_or_it_is_said_what_is_right() {
        let asked = listed("gamepad", r#"[{"axis": {"name": "x", "value": -1}}]"#).unwrap();
        assert_eq!((asked.device, asked.acts.len()), (InputKind::Gamepad, 1));
        for (device, acts) in [("joystick", "[]"), ("mouse", "left"), ("mouse", r#"[{"fly": 1}]"#)]
        {
            let text = listed(device, acts).unwrap_err().to_string();
            assert!(text.contains(r#"'[{"tap": "left"}]'"#), "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(bytes("512M"), Some(512 << 20));
        assert_eq!((bytes("0"), bytes("1G"), bytes("8K")), (Some(0), Some(1 << 30), Some(8192)));
        for wrong in ["", "M", "1T", "-1M", "1.5G", "99999999999999999999", "18446744073709551615G"]
        {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
