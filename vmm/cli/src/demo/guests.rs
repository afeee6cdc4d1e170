//! What the guests of a demo are: virtual machines, or processes of the host where there is no KVM.

use beamline_vmm::probe::KvmKind;
use serde::Serialize;

/// What the guests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub(crate) enum Guests {
    /// Virtual machines on /dev/kvm
    #[serde(rename = "virtual machine")]
    Kvm,
    /// Processes of the host that run the same driver and scenes over vfio-user
    #[serde(rename = "host process")]
    Process,
}

/// What no figure of such a run is.
const NOT_A_VM: &str = "no figure is about a virtual machine";

impl Guests {
    /// As asked for; else virtual machines where `kvm` can run them. And what is to be said first of all.
    pub(crate) fn choose(asked: Option<Self>, kvm: &KvmKind) -> (Self, Option<String>) {
        match asked {
            Some(Self::Process) => (
                Self::Process,
                Some(format!(
                    "guests run as processes of the host over vfio-user, as --guests process asks: {NOT_A_VM}"
                )),
            ),
            None if !kvm.usable() => (
                Self::Process,
                Some(format!(
                    "no usable KVM ({kvm}): guests run as processes of the host over vfio-user, and {NOT_A_VM}"
                )),
            ),
            Some(Self::Kvm) | None => (Self::Kvm, None),
        }
    }

    /// The subcommand that is one of them.
    pub(crate) const fn subcommand(self) -> &'static str {
        match self {
            Self::Kvm => "run",
            Self::Process => "run-process",
        }
    }

    /// For people, behind the name of the GPU.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Kvm => "virtual machines".into(),
            Self::Process => format!("processes of the host over vfio-user; {NOT_A_VM}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kvm_the_first_line_says_why_and_what_the_guests_are() {
        let none = KvmKind::Missing { why: "no device".into(), mend: "load the module".into() };
        let (guests, said) = Guests::choose(None, &none);
        assert_eq!(guests, Guests::Process);
        let said = said.unwrap();
        for word in ["no device; load the module", "processes of the host", NOT_A_VM] {
            assert!(said.contains(word), "{said}");
        }
        let denied = KvmKind::NoPermission { why: "denied".into(), mend: "join kvm".into() };
        assert!(Guests::choose(None, &denied).1.unwrap().contains("denied"));
    }

    #[test]
    fn who_asks_gets_it_and_kvm_is_the_default_where_it_works() {
        let none = KvmKind::Missing { why: String::new(), mend: String::new() };
        for kvm in [KvmKind::Pvm, KvmKind::Hardware] {
            assert_eq!(Guests::choose(None, &kvm), (Guests::Kvm, None));
            let (guests, said) = Guests::choose(Some(Guests::Process), &kvm);
            assert_eq!(guests, Guests::Process);
            assert!(said.unwrap().contains("--guests process"));
        }
        // It is refused later, with what mends it.
        assert_eq!(Guests::choose(Some(Guests::Kvm), &none), (Guests::Kvm, None));
    }
}
