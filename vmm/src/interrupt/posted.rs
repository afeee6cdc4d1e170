//! How this machine delivers an interrupt to a vCPU that runs, as far as it says so itself.
//!
//! The kernel tells it by the parameters of its modules and by what its IOMMUs can do. That is a claim: KVM may
//! leave the hardware's way for one guest. What a run has cost is told by KVM's counters
//! ([`stats`](super::stats)), and [`Delivery::checked`] holds the claim against them.

use crate::interrupt::stats::{Counter, Counts};
use crate::probe::KvmKind;
use std::io::Read;
use std::path::Path;

/// Bit 59 of an Intel IOMMU's capabilities: posted interrupts (VT-d specification, section 11.4.2).
const VTD_POSTED: u64 = 1 << 59;
/// Bit 3 of its extended capabilities: interrupt remapping, which posting needs (section 11.4.3).
const VTD_REMAPPING: u64 = 1 << 3;
/// Bit 7 of an AMD IOMMU's extended features: guest virtual APIC (IOMMU specification, section 3.4.9).
const AMD_GUEST_APIC: u64 = 1 << 7;
/// Most IOMMUs that are looked at.
const MAX_IOMMUS: usize = 256;
/// No file that is read here is longer.
const MAX_FILE: u64 = 128;

/// How an interrupt reaches a vCPU that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The IOMMU writes it into the vCPU's descriptor and notifies the CPU: no host software, no exit.
    Posted,
    /// Host software, here KVM's irqfd, writes it there and notifies the CPU: no exit.
    Exitless,
    /// KVM kicks the vCPU out of the guest and puts the interrupt in when it enters again.
    WithExit,
    /// The machine does not say.
    Unknown,
}

impl Mode {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Posted => "posted",
            Self::Exitless => "exitless injection",
            Self::WithExit => "injected with an exit",
            Self::Unknown => "unknown",
        }
    }
}

/// Who raises an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Software that signals an eventfd: the host's slices, and the VMM's own devices.
    Irqfd,
    /// A real device that is assigned to the guest.
    Assigned,
}

/// A mode, and how it was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// How.
    pub mode: Mode,
    /// What says so.
    pub found: String,
}

impl Delivery {
    fn new(mode: Mode, found: impl Into<String>) -> Self {
        Self { mode, found: found.into() }
    }

    /// Holds the claim against what KVM counted while `interrupts` came. KVM counts as `irq_injections` those that
    /// it put in itself, at an entry. A handful may be others', such as the timer's while a guest boots.
    #[must_use]
    pub fn checked(&self, counts: &Counts, interrupts: u64) -> Self {
        let Some(injected) = counts.get(Counter::IrqInjections) else {
            return Self::new(
                self.mode,
                format!("{}; this KVM does not count injections", self.found),
            );
        };
        if interrupts == 0 {
            return self.clone();
        }
        let by_software = injected >= interrupts.div_ceil(2);
        let seen = format!("KVM put {injected} in itself while {interrupts} vblanks came");
        match (self.mode, by_software) {
            // KVM-PVM counts none.
            (Mode::WithExit, _) if injected == 0 => {
                Self::new(self.mode, format!("{}; this KVM does not count injections", self.found))
            }
            (Mode::Exitless | Mode::Posted, true) => {
                Self::new(Mode::WithExit, format!("{seen}, although {}", self.found))
            }
            (Mode::Unknown, true) => Self::new(Mode::WithExit, seen),
            (mode, _) => Self::new(mode, format!("{}; {seen}", self.found)),
        }
    }
}

impl std::fmt::Display for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.mode.name(), self.found)
    }
}

/// What this machine can do, by who raises the interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    irqfd: Delivery,
    assigned: Delivery,
}

impl Abilities {
    /// Of the machine that this process runs on, whose KVM is of `kind`.
    pub fn here(kind: &KvmKind) -> Self {
        Self::below(Path::new("/sys"), kind)
    }

    /// How an interrupt from `source` is delivered.
    pub fn of(&self, source: Source) -> &Delivery {
        match source {
            Source::Irqfd => &self.irqfd,
            Source::Assigned => &self.assigned,
        }
    }

    /// From the files below `sys`.
    fn below(sys: &Path, kind: &KvmKind) -> Self {
        let irqfd = by_kvm(sys, kind);
        let assigned = match by_iommu(sys) {
            Ok(found) if irqfd.mode == Mode::Exitless => Delivery::new(Mode::Posted, found),
            Ok(found) => Delivery::new(irqfd.mode, format!("{}, although {found}", irqfd.found)),
            // What the device raises takes the way over VFIO's eventfd.
            Err(why) => Delivery::new(irqfd.mode, format!("{}; {why}", irqfd.found)),
        };
        Self { irqfd, assigned }
    }
}

/// What KVM says of interrupts that software raises.
fn by_kvm(sys: &Path, kind: &KvmKind) -> Delivery {
    match kind {
        KvmKind::Pvm => {
            return Delivery::new(
                Mode::WithExit,
                "KVM-PVM virtualises in software and has no hardware for it",
            );
        }
        KvmKind::Missing { .. } | KvmKind::NoPermission { .. } => {
            return Delivery::new(Mode::Unknown, "KVM cannot be used here");
        }
        KvmKind::Hardware => {}
    }
    let modules = [("kvm_intel", "enable_apicv", "APICv"), ("kvm_amd", "avic", "AVIC")];
    for (module, parameter, what) in modules {
        let path = format!("module/{module}/parameters/{parameter}");
        let Some(value) = read(&sys.join(&path)) else { continue };
        return match value.as_str() {
            "Y" | "1" => Delivery::new(
                Mode::Exitless,
                format!("{module}.{parameter} says that {what} is used"),
            ),
            "N" | "0" => Delivery::new(
                Mode::WithExit,
                format!("{module}.{parameter} says that {what} is not used"),
            ),
            _ => Delivery::new(Mode::Unknown, format!("{module}.{parameter} is neither Y nor N")),
        };
    }
    Delivery::new(Mode::Unknown, "neither kvm_intel.enable_apicv nor kvm_amd.avic can be read")
}

/// Whether the IOMMUs can post: what says so, or why not.
fn by_iommu(sys: &Path) -> Result<String, String> {
    // Since Linux 6.16 KVM says it itself: its own parameter and the IOMMUs taken together.
    for module in ["kvm_intel", "kvm_amd"] {
        let name = format!("{module}.enable_device_posted_irqs");
        let path = format!("module/{module}/parameters/enable_device_posted_irqs");
        match read(&sys.join(path)).as_deref() {
            Some("Y" | "1") => return Ok(format!("{name} says that devices' are posted")),
            Some(_) => return Err(format!("{name} says that devices' are not posted")),
            None => {}
        }
    }
    let Ok(entries) = std::fs::read_dir(sys.join("class/iommu")) else {
        return Err("there is no IOMMU".into());
    };
    let mut units = 0;
    for entry in entries.flatten().take(MAX_IOMMUS) {
        let able =
            match (file_of(&entry.path(), "intel-iommu"), file_of(&entry.path(), "amd-iommu")) {
                (Some(folder), _) => {
                    let bits = |name, bit| hex(&folder.join(name)).is_some_and(|v| v & bit != 0);
                    bits("cap", VTD_POSTED) && bits("ecap", VTD_REMAPPING)
                }
                (_, Some(folder)) => {
                    hex(&folder.join("features")).is_some_and(|v| v & AMD_GUEST_APIC != 0)
                }
                // Another kind, such as virtio's, posts nothing.
                _ => false,
            };
        if !able {
            let name = entry.file_name();
            return Err(format!("IOMMU {} cannot post interrupts", name.to_string_lossy()));
        }
        units += 1;
    }
    match units {
        0 => Err("there is no IOMMU".into()),
        1 => Ok("the IOMMU can post interrupts".into()),
        n => Ok(format!("all {n} IOMMUs can post interrupts")),
    }
}

fn file_of(unit: &Path, folder: &str) -> Option<std::path::PathBuf> {
    Some(unit.join(folder)).filter(|path| path.is_dir())
}

/// A short file's text.
fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// The hexadecimal number of a file. Of two, the larger: Linux has had AMD's features before and after its second
/// word of them, which has far fewer bits.
fn hex(path: &Path) -> Option<u64> {
    let text = read(path)?;
    text.split(':').filter_map(|word| u64::from_str_radix(word, 16).ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        folder
    }

    fn modes(files: &[(&str, &str)], kind: &KvmKind) -> (Mode, Mode) {
        let all = Abilities::below(sys(files).path(), kind);
        (all.of(Source::Irqfd).mode, all.of(Source::Assigned).mode)
    }

    const APICV: (&str, &str) = ("module/kvm_intel/parameters/enable_apicv", "Y");
    const CAP: &str = "class/iommu/dmar0/intel-iommu/cap";
    const ECAP: &str = "class/iommu/dmar0/intel-iommu/ecap";

    #[test]
    fn what_a_machine_can_do_is_told_by_its_files() {
        use Mode::{Exitless, Posted, Unknown, WithExit};
        let hardware = &KvmKind::Hardware;
        let missing = KvmKind::Missing { why: String::new(), mend: String::new() };
        let posting = "8d2078c106f0466";
        assert_eq!(modes(&[], hardware), (Unknown, Unknown));
        assert_eq!(modes(&[APICV], &missing), (Unknown, Unknown));
        assert_eq!(modes(&[APICV], &KvmKind::Pvm), (WithExit, WithExit));
        assert_eq!(modes(&[APICV], hardware), (Exitless, Exitless));
        let vtd = [APICV, (CAP, posting), (ECAP, "f020de")];
        assert_eq!(modes(&vtd, hardware), (Exitless, Posted));
        // One of several that cannot spoils it, and so does a lack of remapping.
        let two = ("class/iommu/dmar1/intel-iommu/cap", "d2078c106f0462");
        assert_eq!(modes(&[&vtd[..], &[two]].concat(), hardware), (Exitless, Exitless));
        assert_eq!(modes(&[APICV, (CAP, posting), (ECAP, "6")], hardware), (Exitless, Exitless));
        let off = ("module/kvm_intel/parameters/enable_apicv", "N");
        assert_eq!(modes(&[off, vtd[1], vtd[2]], hardware), (WithExit, WithExit));
        // KVM's own word goes before what the hardware could do.
        let word = ("module/kvm_intel/parameters/enable_device_posted_irqs", "N");
        assert_eq!(modes(&[&vtd[..], &[word]].concat(), hardware), (Exitless, Exitless));
        let avic = ("module/kvm_amd/parameters/avic", "1");
        for features in ["22294ade", "22294ade:20", "20:22294ade"] {
            let features = ("class/iommu/ivhd0/amd-iommu/features", features);
            assert_eq!(modes(&[avic, features], hardware), (Exitless, Posted));
        }
        let strange = ("module/kvm_amd/parameters/avic", "maybe");
        assert_eq!(modes(&[strange], hardware).0, Unknown);
    }

    #[test]
    fn a_claim_is_held_against_what_kvm_counted() {
        let claim = Delivery::new(Mode::Exitless, "a parameter");
        let counts = |n| Counts::default().with(Counter::IrqInjections, n);
        let kept = claim.checked(&counts(3), 1000);
        assert_eq!(kept.mode, Mode::Exitless);
        assert!(kept.found.contains("put 3 in itself while 1000"), "{kept}");
        assert_eq!(claim.checked(&counts(990), 1000).mode, Mode::WithExit);
        assert_eq!(
            Delivery::new(Mode::Unknown, "").checked(&counts(990), 1000).mode,
            Mode::WithExit
        );
        // Few injections do not show how they came instead.
        assert_eq!(Delivery::new(Mode::Unknown, "").checked(&counts(0), 1000).mode, Mode::Unknown);
        assert_eq!(claim.checked(&counts(9), 0), claim);
        assert!(claim.checked(&Counts::default(), 9).found.contains("does not count"));
    }

    #[test]
    fn this_machine_has_an_answer() {
        let all = Abilities::here(&crate::probe::kvm());
        for source in [Source::Irqfd, Source::Assigned] {
            println!("{source:?}: {}", all.of(source));
            assert!(!all.of(source).found.is_empty());
        }
    }
}
