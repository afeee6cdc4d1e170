//! What the test needs of this machine, and what it sees of it in /proc.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The command and the guest image, if this machine can run guests that render; if not, prints that `test`
/// is skipped, and why.
pub(crate) fn ready(test: &str) -> Option<(PathBuf, PathBuf)> {
    match look() {
        Ok(found) => Some(found),
        Err(why) => {
            println!("skip: {test}: {why}");
            None
        }
    }
}

fn look() -> Result<(PathBuf, PathBuf), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    // A test program is at <target>/<profile>/deps/<name>-<hash>.
    let profile = program.ancestors().nth(2).ok_or("this program is not in a target folder")?;
    let target = profile.parent().ok_or("this program is not in a target folder")?;
    let image = std::env::var_os("BEAMLINE_GUEST").map_or_else(
        || target.join("x86_64-unknown-linux-gnu/guest/beamline-microguest"),
        PathBuf::from,
    );
    if !image.is_file() {
        return Err(format!("there is no guest image {}; `make guest` builds it", image.display()));
    }
    let beamline = crate::command::newest(target, profile)?;
    usable(&beamline)?;
    Ok((beamline, image))
}

/// Whether guests can run and render here, as `beamline doctor` sees it.
fn usable(beamline: &Path) -> Result<(), String> {
    let out = Command::new(beamline)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{} cannot be started: {e}", beamline.display()))?;
    let findings: Vec<serde_json::Value> =
        serde_json::from_slice(&out.stdout).expect("`beamline doctor --json` writes JSON");
    for what in ["KVM", "Vulkan"] {
        let finding = findings.iter().find(|f| f["what"] == what);
        let finding =
            finding.unwrap_or_else(|| panic!("`beamline doctor` does not tell of {what}"));
        if !matches!(finding["state"].as_str(), Some("good" | "limited")) {
            return Err(format!("{what}: {}; {}", finding["seen"], finding["mend"]));
        }
    }
    Ok(())
}

/// Process IDs by /proc, in rising order.
fn processes() -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

/// The children of process `parent` that are not zombies.
pub(crate) fn children(parent: u32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // The name before may hold anything; state and parent follow its bracket.
        let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
        let mut fields = rest.split(' ');
        let (state, ppid) = (fields.next(), fields.next());
        state != Some("Z") && ppid == Some(&parent.to_string())
    };
    processes().into_iter().filter(is_child).collect()
}

/// Processes whose working directory is `folder`, with their command lines.
pub(crate) fn inhabitants(folder: &Path) -> Vec<String> {
    let lives_there =
        |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder);
    let name = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " "))
    };
    processes().into_iter().filter(lives_there).map(name).collect()
}
