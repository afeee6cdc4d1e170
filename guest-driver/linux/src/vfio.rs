//! The kernel's VFIO interface (linux/vfio.h), as far as a driver of one function needs it.
#![allow(unsafe_code, reason = "VFIO is ioctls that take pointers")]

use crate::mapping::Mapping;
use crate::vectors::eventfds;
use rustix::fs::{Mode, OFlags, open, readlink};
use rustix::io::{Errno, pread, pwrite};
use std::ffi::{CString, c_int, c_ulong};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `_IO(';', 100 + n)`.
const fn request(n: c_ulong) -> c_ulong {
    0x3b64 + n
}

const SET_IOMMU: c_ulong = request(2);
const GROUP_SET_CONTAINER: c_ulong = request(4);
const GROUP_GET_DEVICE_FD: c_ulong = request(6);
const DEVICE_GET_REGION_INFO: c_ulong = request(8);
const DEVICE_SET_IRQS: c_ulong = request(10);
const IOMMU_MAP_DMA: c_ulong = request(13);

/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1_V2: c_ulong = 3;
/// `VFIO_PCI_CONFIG_REGION_INDEX`.
pub const CONFIG_REGION: u32 = 7;
/// `VFIO_PCI_MSIX_IRQ_INDEX`.
const MSIX_INDEX: u32 = 2;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
const TRIGGER_BY_EVENTFD: u32 = 1 << 2 | 1 << 5;
/// `VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE`.
const READ_WRITE: u32 = 1 << 0 | 1 << 1;
/// `VFIO_REGION_INFO_FLAG_MMAP`.
const MAPPABLE: u32 = 1 << 2;

/// The step that the kernel does not permit where interrupts are not remapped.
pub(crate) const CHOOSING: &str = "choosing the IOMMU";

/// `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// `struct vfio_irq_set`, before its data.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
}

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

/// What VFIO refuses.
#[derive(Debug, thiserror::Error)]
#[error("{what} failed: {errno}")]
pub struct VfioError {
    /// The step.
    pub what: String,
    /// Why.
    pub errno: Errno,
}

fn failed(what: impl Into<String>) -> impl FnOnce(Errno) -> VfioError {
    let what = what.into();
    move |errno| VfioError { what, errno }
}

/// Calls a VFIO ioctl and answers what it returns.
///
/// # Safety
/// `argument` is what this request takes: a number, or a pointer to as many bytes as it reads and writes.
unsafe fn call(
    fd: &OwnedFd,
    request: c_ulong,
    argument: c_ulong,
    what: &str,
) -> Result<c_int, VfioError> {
    // SAFETY: the caller's.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if answer < 0 {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
        return Err(failed(what)(errno));
    }
    Ok(answer)
}

/// An address space that devices share.
#[derive(Debug)]
pub struct Container(OwnedFd);

impl Container {
    /// An address space without devices.
    ///
    /// # Errors
    /// `/dev/vfio/vfio` is not there or may not be used.
    pub fn open() -> Result<Self, VfioError> {
        let fd = open("/dev/vfio/vfio", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        fd.map(Self).map_err(failed("opening /dev/vfio/vfio"))
    }

    /// Lets the devices of this address space read and write `memory` from `iova` on. The mapping must
    /// outlive them.
    ///
    /// # Errors
    /// The kernel's; also where no device has been added yet.
    pub fn map(&self, memory: &Mapping, iova: u64) -> Result<(), VfioError> {
        let map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: READ_WRITE,
            vaddr: memory.address(),
            iova,
            size: memory.len(),
        };
        // SAFETY: the request reads a `DmaMap`.
        unsafe {
            call(&self.0, IOMMU_MAP_DMA, (&raw const map) as c_ulong, "mapping memory for DMA")
        }?;
        Ok(())
    }
}

/// A function that this process drives.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    config: u64,
    /// Held as long as the device.
    _group: OwnedFd,
}

impl Device {
    /// Opens the function at `address` (as in `/sys/bus/pci/devices`) and adds it to `container`.
    ///
    /// # Errors
    /// The kernel's, with the step; also where the function is not bound to vfio-pci.
    pub fn open(container: &Container, address: &str) -> Result<Self, VfioError> {
        let link = format!("/sys/bus/pci/devices/{address}/iommu_group");
        let group = readlink(&link, Vec::new()).map_err(failed(format!("reading {link}")))?;
        let group = group.to_string_lossy().into_owned();
        let path = format!("/dev/vfio/{}", group.rsplit('/').next().unwrap_or_default());
        let group = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed(format!("opening {path}")))?;
        let number = container.0.as_raw_fd();
        let name = CString::new(address)
            .map_err(|_| failed(format!("the address {address:?}"))(Errno::INVAL))?;
        // SAFETY: GROUP_SET_CONTAINER reads a descriptor's number; SET_IOMMU takes a number;
        // GROUP_GET_DEVICE_FD reads a string.
        let fd = unsafe {
            let number = (&raw const number) as c_ulong;
            call(&group, GROUP_SET_CONTAINER, number, "adding the group to the container")?;
            match call(&container.0, SET_IOMMU, TYPE1_V2, CHOOSING) {
                // Another device has chosen it already.
                Err(VfioError { errno: Errno::BUSY | Errno::INVAL, .. }) | Ok(_) => {}
                Err(error) => return Err(error),
            }
            call(&group, GROUP_GET_DEVICE_FD, name.as_ptr() as c_ulong, "opening the device")?
        };
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut device = Self { fd, config: 0, _group: group };
        device.config = device.region(CONFIG_REGION)?.offset;
        Ok(device)
    }

    fn region(&self, index: u32) -> Result<RegionInfo, VfioError> {
        let argsz = size_of::<RegionInfo>() as u32;
        let mut info = RegionInfo { argsz, index, ..RegionInfo::default() };
        let at = (&raw mut info) as c_ulong;
        // SAFETY: the request reads and writes a `RegionInfo`.
        unsafe { call(&self.fd, DEVICE_GET_REGION_INFO, at, "asking for a region") }?;
        Ok(info)
    }

    /// Maps a BAR; `None` where the function has none, or one that cannot be mapped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map_bar(&self, bar: u32) -> Result<Option<Mapping>, VfioError> {
        let info = self.region(bar)?;
        if info.size == 0 || info.flags & MAPPABLE == 0 {
            return Ok(None);
        }
        Mapping::of(&self.fd, info.offset, info.size as usize)
            .map(Some)
            .map_err(failed(format!("mapping BAR{bar}")))
    }

    /// Reads up to 4 bytes of configuration space; all ones where nobody answers.
    pub fn config_read(&self, offset: u16, bytes: usize) -> u32 {
        let mut value = [0; 4];
        match pread(&self.fd, &mut value[..bytes.min(4)], self.config + u64::from(offset)) {
            Ok(n) if n == bytes => u32::from_le_bytes(value),
            _ => u32::MAX,
        }
    }

    /// Writes up to 4 bytes of configuration space.
    pub fn config_write(&self, offset: u16, bytes: usize, value: u32) {
        let value = value.to_le_bytes();
        // As on a bus: a write that nobody takes is lost.
        let _ = pwrite(&self.fd, &value[..bytes.min(4)], self.config + u64::from(offset));
    }

    /// Routes the first `count` MSI-X vectors to eventfds of their own and switches MSI-X on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enable_msix(&self, count: u32) -> Result<Vec<OwnedFd>, VfioError> {
        let events = eventfds(count).map_err(failed("making an eventfd"))?;
        let argsz = size_of::<IrqSet>() as u32 + 4 * count;
        let head = IrqSet { argsz, flags: TRIGGER_BY_EVENTFD, index: MSIX_INDEX, start: 0, count };
        let mut set = head.as_bytes().to_vec();
        set.extend(events.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()));
        // SAFETY: the request reads a `struct vfio_irq_set` and as many descriptors as it says.
        unsafe { call(&self.fd, DEVICE_SET_IRQS, set.as_ptr() as c_ulong, "switching MSI-X on") }?;
        Ok(events)
    }
}
