//! `beamline doctor`: what this machine can do, and how to mend what it cannot.

use crate::demo;
use crate::failure::refused;
use crate::output;
use anyhow::Context;
use beamline_vmm::interrupt::posted::{Abilities, Mode, Source};
use beamline_vmm::probe::{self, KvmKind};
use beamline_vmm::sandbox::{self, Landlock};
use serde::Serialize;
use std::process::{Command, Stdio};

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// It works, less well.
    Limited,
    /// It does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    seen: String,
    /// What to do about it, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, state: State::Good, seen: seen.into(), mend: None }
    }
    fn limited(what: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, state: State::Limited, seen: seen.into(), mend: Some(mend.into()) }
    }
    fn missing(what: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, state: State::Missing, seen: seen.into(), mend: Some(mend.into()) }
    }
}

/// The finding without which no virtual machine runs.
const KVM: &str = "KVM";

/// Looks at everything. Fails with exit code 2 where guests cannot run or nothing can render.
pub(crate) fn doctor(json: bool) -> anyhow::Result<()> {
    let kind = probe::kvm();
    let findings = [
        kvm(&kind),
        guests(&kind),
        interrupts(&Abilities::here(&kind)),
        vulkan(&adapters()?),
        cpus(),
        realtime(),
        files(),
        seccomp(sandbox::has_seccomp()),
        landlock(sandbox::landlock()),
    ];
    if json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            output::line(&show(finding));
        }
    }
    let missing: Vec<&str> =
        findings.iter().filter(|f| f.state == State::Missing).map(|f| f.what).collect();
    match &missing[..] {
        [] => Ok(()),
        // The demo has another way.
        [KVM] => Err(refused("no virtual machine can run here: KVM (see above)")),
        _ => {
            let missing = missing.join(", ");
            Err(refused(format!("`beamline demo` cannot run here: {missing} (see above)")))
        }
    }
}

fn show(finding: &Finding) -> String {
    let state = match finding.state {
        State::Good => "good",
        State::Limited => "limited",
        State::Missing => "MISSING",
    };
    let mut text = format!("{:<8} {:<10} {}", state, finding.what, finding.seen);
    if let Some(mend) = &finding.mend {
        text += &format!("\n{:19} mend: {mend}", "");
    }
    text
}

/// Fails with exit code 2 where no guest can run.
pub(crate) fn require_kvm() -> anyhow::Result<()> {
    required(kvm(&probe::kvm()))
}

/// The name of the GPU that renders: the best one with `adapter` in its name. Fails with exit code 2 where
/// there is none.
pub(crate) fn require_vulkan(adapter: Option<&str>) -> anyhow::Result<String> {
    let names = adapters()?;
    required(vulkan(&names))?;
    let adapter = adapter.unwrap_or_default();
    let wanted = adapter.to_lowercase();
    names.iter().find(|name| name.to_lowercase().contains(&wanted)).cloned().ok_or_else(|| {
        refused(format!(
            "no Vulkan device has `{adapter}` in its name; there are: {}; mend: correct gpu.adapter",
            names.join(", ")
        ))
    })
}

fn required(finding: Finding) -> anyhow::Result<()> {
    match (finding.state, finding.mend) {
        (State::Missing, Some(mend)) => {
            Err(refused(format!("{}: {}; mend: {mend}", finding.what, finding.seen)))
        }
        _ => Ok(()),
    }
}

/// Which way the demo would run.
fn guests(kind: &KvmKind) -> Finding {
    if kind.usable() {
        return Finding::good("guests", "`beamline demo` runs them as virtual machines");
    }
    Finding::limited(
        "guests",
        "`beamline demo` runs them as processes of the host over vfio-user, so that no figure of it is about a \
         virtual machine",
        "as for KVM",
    )
}

fn kvm(kind: &KvmKind) -> Finding {
    match kind {
        KvmKind::Missing { why, mend } | KvmKind::NoPermission { why, mend } => {
            Finding::missing(KVM, why, mend)
        }
        KvmKind::Hardware => Finding::good(KVM, kind.to_string()),
        KvmKind::Pvm => Finding::limited(
            KVM,
            format!(
                "{kind}: the guest image that comes with beamline runs, an ordinary Linux does not"
            ),
            "nothing for the demo; for Linux guests use a machine with VMX or SVM",
        ),
    }
}

fn interrupts(abilities: &Abilities) -> Finding {
    let (software, assigned) = (abilities.of(Source::Irqfd), abilities.of(Source::Assigned));
    let seen = format!("{software}; of assigned devices: {assigned}");
    let mend = match software.mode {
        Mode::Posted | Mode::Exitless => return Finding::good("interrupts", seen),
        Mode::WithExit => {
            "nothing for the demo; without an exit they take a CPU with APICv (kvm_intel.enable_apicv=1) or AVIC \
             (kvm_amd.avic=1)"
        }
        Mode::Unknown => {
            "let this process read /sys/module; a run tells what its interrupts cost in any case"
        }
    };
    Finding::limited("interrupts", seen, mend)
}

/// The names of this machine's Vulkan devices, looked up by a process of its own: drivers may crash, or
/// write what nobody asked for.
fn adapters() -> anyhow::Result<Vec<String>> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let out = Command::new(program)
        .arg("adapters")
        // Mesa's layer that orders devices by display would look for a desktop.
        .env("NODEVICE_SELECT", "1")
        .stdin(Stdio::null())
        .output()
        .context("cannot start a process that looks for Vulkan devices")?;
    // A driver that crashed is as good as none.
    Ok(serde_json::from_slice(&out.stdout).unwrap_or_default())
}

/// `beamline adapters`: the names of this machine's Vulkan devices as JSON.
pub(crate) fn print_adapters() -> anyhow::Result<()> {
    output::json(&beamline_mdev::renderer::adapters())
}

fn vulkan(names: &[String]) -> Finding {
    if names.is_empty() {
        return Finding::missing(
            "Vulkan",
            "no Vulkan device",
            "install the GPU's Vulkan driver, or mesa-vulkan-drivers for a software GPU \
             (`make setup` does, as root)",
        );
    }
    Finding::good("Vulkan", names.join(", "))
}

fn cpus() -> Finding {
    let mend =
        "give this process two or more CPUs: one renders on a software GPU, the rest keep time";
    match demo::cpus() {
        Ok(cpus) if cpus.len() >= 2 => Finding::good("CPUs", format!("{} usable", cpus.len())),
        Ok(cpus) => Finding::limited("CPUs", format!("{} usable", cpus.len()), mend),
        Err(error) => Finding::limited("CPUs", format!("{error:#}"), mend),
    }
}

fn realtime() -> Finding {
    if demo::realtime_permitted() {
        return Finding::good("real time", "SCHED_FIFO is permitted");
    }
    Finding::limited(
        "real time",
        "SCHED_FIFO is not permitted: other programs can delay the scheduler",
        "run as root, give the program CAP_SYS_NICE, or set an rtprio limit in /etc/security/limits.conf",
    )
}

fn files() -> Finding {
    use rustix::process::{Resource, getrlimit};
    match getrlimit(Resource::Nofile).current {
        Some(n) if n < 256 => Finding::limited(
            "files",
            format!("at most {n} open files: few slices fit into one host"),
            "ulimit -n 1024",
        ),
        Some(n) => Finding::good("files", format!("at most {n} open files")),
        None => Finding::good("files", "any number of open files"),
    }
}

fn seccomp(there: bool) -> Finding {
    if there {
        return Finding::good("seccomp", "system calls are held to a list per process");
    }
    Finding::missing(
        "seccomp",
        "this kernel has no seccomp filters: `beamline run` and `beamline host` refuse to start",
        "use a kernel with CONFIG_SECCOMP_FILTER; --no-sandbox starts them without",
    )
}

/// The interface since which all that the sandbox asks for is enforced: devices' requests, abstract sockets and
/// signals (Linux 6.12).
const WHOLE_LANDLOCK: u32 = 6;

fn landlock(landlock: Landlock) -> Finding {
    let limited = |seen: String, mend| Finding::limited("Landlock", seen, mend);
    match landlock {
        Landlock::Version(version) if version >= WHOLE_LANDLOCK => {
            Finding::good("Landlock", format!("version {version} of its interface"))
        }
        Landlock::Version(version) => limited(
            format!(
                "version {version} of its interface: files are confined, some of the rest is not"
            ),
            "use Linux 6.12 or newer",
        ),
        Landlock::Off => limited(
            "it is off: files are within reach that a process does not need".into(),
            "add `landlock` to the kernel's parameter lsm=",
        ),
        Landlock::Missing => limited(
            "this kernel has none: files are within reach that a process does not need".into(),
            "use Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_permission_on_kvm_ends_with_how_to_mend_it() {
        let kind = KvmKind::NoPermission { why: "denied".into(), mend: "join kvm".into() };
        let error = required(kvm(&kind)).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), crate::failure::REFUSED);
        assert_eq!(error.to_string(), "KVM: denied; mend: join kvm");
    }

    #[test]
    fn software_virtualisation_is_enough() {
        assert!(required(kvm(&KvmKind::Pvm)).is_ok());
        assert!(required(kvm(&KvmKind::Hardware)).is_ok());
    }

    #[test]
    fn every_finding_that_is_not_good_says_how_to_mend_it() {
        let one = ["a GPU".to_owned()];
        let landlocks =
            [Landlock::Version(7), Landlock::Version(1), Landlock::Off, Landlock::Missing];
        let sandbox = [seccomp(true), seccomp(false)].into_iter().chain(landlocks.map(landlock));
        let none = KvmKind::Missing { why: String::new(), mend: String::new() };
        let ways = [none, KvmKind::Hardware].map(|k| guests(&k));
        let kinds = [KvmKind::Pvm, KvmKind::Hardware].map(|k| interrupts(&Abilities::here(&k)));
        let others = [kvm(&probe::kvm()), vulkan(&[]), vulkan(&one), cpus(), realtime(), files()];
        for finding in others.into_iter().chain(sandbox).chain(kinds).chain(ways) {
            assert_eq!(finding.mend.is_none(), finding.state == State::Good, "{finding:?}");
        }
    }
}
