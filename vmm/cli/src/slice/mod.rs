//! `beamline slice`: looks at a running host's slices and changes them, over its control socket.

mod table;

use crate::client::{self, Client};
use crate::failure::refused;
use crate::output;
use crate::read;
use anyhow::Context;
use beamline_mdev::host::api::json::{SliceJson, SlicesJson};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  beamline slice list
  beamline slice create game2 --size 1280x720 refresh_hz=60 class=reserved budget_ms=3 max_job_ms=1
  beamline slice create vr2 --file vr2.toml       the keys of a [[slice]] section
  beamline slice change game2 budget_ms=2.5 refresh_hz=72
  beamline slice change vr2 late_latch.budget_ms=0.4
  beamline slice change vr2 late_latch=none
  beamline slice scanout game2 --out now.png
  beamline slice quiesce game2                    until `beamline slice resume game2`
  beamline slice remove game2 --host /run/beamline/gpu0

A change is admitted or refused as a whole; a refusal ends with exit code 2, says what is short and what
would fit, and leaves everything as it was. docs/control.md describes the API behind this.";

/// What is asked of a host.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Slice {
    /// The host's run_dir, where its control.sock is
    #[arg(long, global = true, default_value = "run", value_name = "RUN_DIR")]
    host: PathBuf,
    /// Print JSON, also of a refusal
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Every slice: its state, its contract and what it has done
    List,
    /// One slice in full
    Show {
        /// Its name
        name: String,
    },
    /// Admit a slice and serve it
    Create {
        /// Its name
        name: String,
        /// Pixels of its display
        #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
        size: Option<(u32, u32)>,
        /// GPU memory, such as 64M
        #[arg(long)]
        memory: Option<String>,
        /// TOML with the keys of a [[slice]] section; what is given beside it wins
        #[arg(long)]
        file: Option<PathBuf>,
        /// Keys of the contract
        #[arg(value_name = "KEY=VALUE", value_parser = pair)]
        contract: Vec<(String, Value)>,
    },
    /// Give a slice another contract; it keeps the one it has where that is refused
    Change {
        /// Its name
        name: String,
        /// Keys of the contract that become others; `none` takes one away
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
        contract: Vec<(String, Value)>,
    },
    /// End a slice: its guest sees its functions go away
    Remove {
        /// Its name
        name: String,
    },
    /// Ask a slice's guest to stop submitting; its state says `quiesced` once none of its work is left
    Quiesce {
        /// Its name
        name: String,
    },
    /// Let a slice's guest go on
    Resume {
        /// Its name
        name: String,
    },
    /// Save what a slice shows as PNG
    Scanout {
        /// Its name
        name: String,
        /// The file [default: NAME.png]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Runs the subcommand.
pub(crate) fn slice(options: Slice) -> anyhow::Result<()> {
    let Slice { host, json, command } = options;
    let client = Client::of_host(host.join("control.sock"), json);
    match command {
        Command::List => {
            let heard = client.ask("GET", "/slices", None)?;
            if !json {
                let list: SlicesJson = client::read(&heard)?;
                output::line(table::list(&list.slices).trim_end());
                return Ok(());
            }
            output::json(&client::read::<Value>(&heard)?)
        }
        Command::Show { name } => {
            let heard = client.ask("GET", &path(&name)?, None)?;
            show(&heard, json)
        }
        Command::Create { name, size, memory, file, contract } => {
            let mut keys = match &file {
                Some(file) => read_file(file)?,
                None => Map::new(),
            };
            keys.insert("name".into(), name.into());
            if let Some((width, height)) = size {
                keys.insert("width".into(), width.into());
                keys.insert("height".into(), height.into());
            }
            if let Some(memory) = memory {
                keys.insert("memory".into(), memory.into());
            }
            set_contract(&mut keys, contract);
            let heard = client.ask("POST", "/slices", Some(&Value::Object(keys)))?;
            show(&heard, json)
        }
        Command::Change { name, contract } => {
            let mut keys = Map::new();
            set_contract(&mut keys, contract);
            let heard = client.ask("PATCH", &path(&name)?, Some(&Value::Object(keys)))?;
            show(&heard, json)
        }
        Command::Remove { name } => {
            let heard = client.ask("DELETE", &path(&name)?, None)?;
            if json {
                return output::json(&client::read::<Value>(&heard)?);
            }
            output::line(&format!("{name} is removed"));
            Ok(())
        }
        Command::Quiesce { name } => {
            let heard = client.ask("POST", &format!("{}/quiesce", path(&name)?), None)?;
            show(&heard, json)
        }
        Command::Resume { name } => {
            let heard = client.ask("POST", &format!("{}/resume", path(&name)?), None)?;
            show(&heard, json)
        }
        Command::Scanout { name, out } => {
            let png = client.ask("GET", &format!("{}/scanout.png", path(&name)?), None)?;
            let out = out.unwrap_or_else(|| format!("{name}.png").into());
            std::fs::write(&out, &png)
                .with_context(|| format!("cannot write {}", out.display()))?;
            if json {
                return output::json(&json!({ "file": out, "bytes": png.len() }));
            }
            output::line(&format!("{} is written", out.display()));
            Ok(())
        }
    }
}

fn show(heard: &[u8], json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&client::read::<Value>(heard)?);
    }
    let slice: SliceJson = client::read(heard)?;
    output::line(table::show(&slice).trim_end());
    Ok(())
}

/// A name goes into a path: only what a slice can be called.
pub(crate) fn path(name: &str) -> anyhow::Result<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(fits) {
        return Err(refused(format!(
            "`{name}` is no slice's name: those have letters, digits, `-` and `_`"
        )));
    }
    Ok(format!("/slices/{name}"))
}

fn read_file(path: &std::path::Path) -> anyhow::Result<Map<String, Value>> {
    let said = |e: &dyn std::fmt::Display| refused(format!("{}: {e}", path.display()));
    let table: toml::Table = toml::from_str(&read::config(path)?).map_err(|e| said(&e))?;
    match serde_json::to_value(table).map_err(|e| said(&e))? {
        Value::Object(keys) => Ok(keys),
        _ => Err(said(&"write the keys of a [[slice]] section")),
    }
}

/// Puts `late_latch.window_ms` and its like into the contract.
fn set_contract(keys: &mut Map<String, Value>, pairs: Vec<(String, Value)>) {
    for (key, value) in pairs {
        let mut at = keys.entry("contract").or_insert_with(|| json!({}));
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if !at.is_object() {
                *at = json!({});
            }
            let Some(object) = at.as_object_mut() else { break };
            let next = object.entry(part).or_insert(Value::Null);
            if parts.peek().is_none() {
                *next = value.clone();
            }
            at = next;
        }
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let read = |side: &str| side.trim().parse::<u32>().ok();
    text.split_once('x')
        .and_then(|(width, height)| Some((read(width)?, read(height)?)))
        .ok_or_else(|| "write WIDTHxHEIGHT, such as 1280x720".into())
}

/// Keys whose values are words, whatever they look like.
const WORDS: [&str; 5] = ["refresh_hz", "class", "sink", "guard", "miss"];

/// `budget_ms=2.5`. Whether the key is known and the value does, the host says.
fn pair(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty() && key.split('.').all(|part| !part.is_empty()))
        .ok_or("write KEY=VALUE, such as budget_ms=2.5")?;
    let value = match value {
        "none" => Value::Null,
        word if WORDS.contains(&key) => word.into(),
        number => match number.parse::<serde_json::Number>() {
            Ok(number) => Value::Number(number),
            Err(_) => number.into(),
        },
    };
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_the_contracts_keys() {
        let pairs = ["refresh_hz=90", "budget_ms=2.5", "depth=2", "late_latch.window_ms=1"];
        let mut keys = Map::new();
        set_contract(&mut keys, pairs.map(|text| pair(text).unwrap()).to_vec());
        let contract = json!({
            "refresh_hz": "90", "budget_ms": 2.5, "depth": 2, "late_latch": { "window_ms": 1 },
        });
        assert_eq!(Value::Object(keys), json!({ "contract": contract }));
        assert_eq!(pair("late_latch=none").unwrap().1, Value::Null);
        assert!(["budget_ms", "=1", "a..b=1"].iter().all(|text| pair(text).is_err()));
    }

    #[test]
    fn sizes_and_names_are_checked() {
        assert_eq!(size("1280x720"), Ok((1280, 720)));
        assert!(["1280", "x", "1x-1"].iter().all(|text| size(text).is_err()));
        assert_eq!(path("vr-2").unwrap(), "/slices/vr-2");
        assert!(["", "../x", "a/b", "a b"].iter().all(|name| path(name).is_err()));
    }
}
