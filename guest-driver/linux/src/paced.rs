//! A pacer that this process drives: found on the bus, opened through vfio-pci.

use crate::port::Port;
use crate::vfio::VfioError;
use beamline_abi::pacer::{DEVICE_ID, TimingPage, VENDOR_ID, reg, vector};
use beamline_abi::{Nanos, pci::config};
use beamline_guest_driver::pacer::{Pacer, PacerError, Vblank, VblankPoll, host_time};
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::transport::{Gpa, Slot, Transport, Wake, Width};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the kernel lists PCI functions.
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// The only function of the port.
const PACER: Slot = Slot(0);
/// The kernel fills the MSI-X table in.
const ANY: MsiTarget = MsiTarget { address: 0, data: 0 };

/// Why there is no pacer to drive.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// None is there.
    #[error(
        "there is no pacer on this machine's PCI bus (vendor {VENDOR_ID:#06x}, device {DEVICE_ID:#06x}): \
         attach one to this guest"
    )]
    Nobody,
    /// More than one is there.
    #[error("there are several pacers: name one with --pacer: {}", list(.0))]
    Several(Vec<String>),
    /// It is another function's address, or no address.
    #[error("there is no pacer at {wanted}; pacers are at: {}", list(found))]
    Other {
        /// The address.
        wanted: String,
        /// Where pacers are.
        found: Vec<String>,
    },
    /// Nothing is between it and memory.
    #[error(
        "the pacer at {0} is behind no IOMMU that this kernel drives, and VFIO needs one. Give the guest an \
         IOMMU ([iommu] enabled = true in its file for `beamline run`), load its driver (modprobe \
         virtio_iommu), and bind the pacer to vfio-pci again"
    )]
    NoIommu(String),
    /// Another driver has it, or none.
    #[error("the pacer at {address} is bound to {}, not to vfio-pci. As root:\n{}",
        driver.as_deref().unwrap_or("no driver"), bind(address, driver.is_some()))]
    Unbound {
        /// Its address.
        address: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// Its IOMMU remaps no interrupts.
    #[error(
        "VFIO refuses an IOMMU that does not remap interrupts, as virtio's does not. Where this guest's user \
         space is trusted, put vfio_iommu_type1.allow_unsafe_interrupts=1 on its kernel's command line, or:\n  \
         echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    )]
    Interrupts,
    /// The kernel refuses something else.
    #[error(transparent)]
    Vfio(VfioError),
    /// It is no pacer that this driver knows.
    #[error(transparent)]
    Pacer(#[from] PacerError),
}

fn list(addresses: &[String]) -> String {
    if addresses.is_empty() { "none is there".to_owned() } else { addresses.join(", ") }
}

/// The commands that bind a function to vfio-pci.
fn bind(address: &str, bound: bool) -> String {
    let at = format!("{FUNCTIONS}/{address}");
    let unbind =
        if bound { format!("  echo {address} >{at}/driver/unbind\n") } else { String::new() };
    format!(
        "  modprobe virtio_iommu\n  modprobe vfio-pci\n  modprobe vfio_iommu_type1\n  echo vfio-pci >{at}/driver_override\n{unbind}  \
         echo {address} >/sys/bus/pci/drivers_probe"
    )
}

impl From<VfioError> for OpenError {
    fn from(error: VfioError) -> Self {
        if error.errno == Errno::PERM && error.what == crate::vfio::CHOOSING {
            Self::Interrupts
        } else {
            Self::Vfio(error)
        }
    }
}

/// The addresses of this machine's pacers, in order.
pub fn pacers() -> Vec<String> {
    pacers_in(Path::new(FUNCTIONS))
}

fn pacers_in(folder: &Path) -> Vec<String> {
    let number = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let mut found: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| {
            let at = entry.path();
            number(at.join("vendor")) == Some(VENDOR_ID)
                && number(at.join("device")) == Some(DEVICE_ID)
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort();
    found
}

/// The pacer at `wanted`, or the only one that is there, if it can be opened.
fn choose(folder: &Path, wanted: Option<&str>) -> Result<String, OpenError> {
    let found = pacers_in(folder);
    let address = match wanted {
        Some(wanted) if found.iter().any(|f| f == wanted) => wanted.to_owned(),
        Some(wanted) => return Err(OpenError::Other { wanted: wanted.to_owned(), found }),
        None => match &found[..] {
            [] => return Err(OpenError::Nobody),
            [only] => only.clone(),
            _ => return Err(OpenError::Several(found)),
        },
    };
    let at = folder.join(&address);
    let driver = fs::read_link(at.join("driver")).ok();
    let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    if driver.as_deref() != Some("vfio-pci") {
        return Err(OpenError::Unbound { address, driver });
    }
    // A function is put into a group when a driver is bound to it.
    if !at.join("iommu_group").exists() {
        return Err(OpenError::NoIommu(address));
    }
    Ok(address)
}

/// A pacer, driven by this process.
#[derive(Debug)]
pub struct Paced {
    /// What it is reached through.
    pub port: Port,
    /// Its driver.
    pub pacer: Pacer,
    address: String,
    registers: Gpa,
}

impl Paced {
    /// Opens the pacer at `address`, or the only one that there is. Waits end `patience` from now.
    ///
    /// # Errors
    /// See [`OpenError`]; the message says how to mend it.
    pub fn open(address: Option<&str>, patience: Duration) -> Result<Self, OpenError> {
        let address = choose(Path::new(FUNCTIONS), address)?;
        let mut port = Port::open(&[&address], patience)?;
        let pacer = Pacer::attach(&mut port, PACER, &[ANY; vector::COUNT as usize])?;
        // The pacer's BAR0 is 32-bit, and was checked by the driver.
        let base = port.config_read(PACER, config::BAR0, Width::Dword) & !0xf;
        Ok(Self { port, pacer, address, registers: Gpa(base.into()) })
    }

    /// Its PCI address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits for the next vblank, with vblanks switched on; `None` where the wait has ended without one:
    /// [`Port::take_failure`] says why, if there is more to it than the time.
    pub fn next_vblank(&mut self) -> Option<Vblank> {
        loop {
            match self.pacer.poll_vblank(&mut self.port) {
                VblankPoll::New(vblank) => return Some(vblank),
                VblankPoll::Busy => {}
                VblankPoll::None => {
                    if self.port.wait() == Wake::Stop {
                        return None;
                    }
                }
            }
        }
    }

    /// The host's time now: by the page's map of this guest's clock, else by the pacer's register.
    pub fn now(&mut self, page: &TimingPage) -> Nanos {
        let tsc = self.port.tsc();
        host_time(page, tsc).unwrap_or_else(|| self.register_time())
    }

    /// The host's time, by the pacer's register. An exit.
    pub fn register_time(&mut self) -> Nanos {
        // Reading the low half latches the high one.
        let at = u64::from(reg::TIME);
        let low = self.port.mmio_read(self.registers.at(at), Width::Dword);
        let high = self.port.mmio_read(self.registers.at(at + 4), Width::Dword);
        Nanos(high << 32 | low & 0xffff_ffff)
    }

    /// How many interrupts of a vector have come.
    pub fn interrupts(&self, vector: u16) -> u64 {
        self.port.interrupts(PACER, vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn function(folder: &Path, address: &str, device: u16) -> PathBuf {
        let at = folder.join(address);
        fs::create_dir(&at).unwrap();
        fs::write(at.join("vendor"), format!("{VENDOR_ID:#06x}\n")).unwrap();
        fs::write(at.join("device"), format!("{device:#06x}\n")).unwrap();
        at
    }

    #[test]
    fn what_is_missing_is_said_with_what_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let message = |wanted| choose(folder, wanted).unwrap_err().to_string();
        assert!(message(None).contains("no pacer"));
        function(folder, "0000:00:02.0", DEVICE_ID + 1);
        let at = function(folder, "0000:00:01.0", DEVICE_ID);
        assert!(message(Some("0000:00:02.0")).contains("pacers are at: 0000:00:01.0"));
        let text = message(None);
        assert!(text.contains("no driver") && text.contains("drivers_probe"), "{text}");
        assert!(!text.contains("unbind"));
        symlink("../drivers/other", at.join("driver")).unwrap();
        let text = message(None);
        assert!(text.contains("bound to other") && text.contains("driver/unbind"), "{text}");
        fs::remove_file(at.join("driver")).unwrap();
        symlink("../drivers/vfio-pci", at.join("driver")).unwrap();
        assert!(message(None).contains("no IOMMU"));
        // The kernel has a link there.
        fs::create_dir(at.join("iommu_group")).unwrap();
        assert_eq!(choose(folder, None).unwrap(), "0000:00:01.0");
        function(folder, "0000:00:03.0", DEVICE_ID);
        assert!(message(None).contains("0000:00:01.0, 0000:00:03.0"));
        assert!(message(Some("0000:00:03.0")).contains("no driver"));
    }
}
