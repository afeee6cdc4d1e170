//! A virtio device as a modern PCI function (virtio 1.3, section 4.1).
//!
//! The registers are here; MSI-X is the bus's ([`crate::pci::msix`]). A kick is a KVM ioeventfd, an
//! interrupt an irqfd: neither passes through the vCPU's thread. Where KVM takes no ioeventfd the write
//! traps and signals the same eventfd.

mod common;
mod layout;

use super::queue::VirtQueue;
use super::shared::{self, Shared, Vectors};
use super::worker::Worker;
use super::{Activation, DeviceError, DeviceModel, MAX_QUEUE, Serve};
use crate::Gpa;
use crate::pci::bar::BarShapes;
use crate::pci::msix::Msix;
use crate::pci::{ConfigEffect, PciFunction, Wiring, nothing};
use crate::platform::Doorbell;
use beamline_abi::pci::{command, config};
use common::{Common, Effect};
use layout::{Access, ConfigSpace};
use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

/// Longest thread name that Linux keeps: bytes.
const MAX_THREAD_NAME: usize = 15;

/// Who serves the queues.
enum Engine {
    /// Nobody: the driver is not ready.
    Idle,
    /// A thread.
    Thread(#[expect(dead_code, reason = "dropping it stops the thread")] Worker),
    /// The caller: a kick is served within the write that is it.
    Inline(Box<dyn Serve>),
}

/// Where KVM listens for a queue's kicks.
struct Bell {
    kick: Arc<OwnedFd>,
    armed: Option<Doorbell>,
}

/// A device's PCI function.
pub struct Transport {
    label: String,
    device: Box<dyn DeviceModel>,
    memory: Arc<GuestMemoryMmap>,
    shared: Arc<Shared>,
    space: ConfigSpace,
    bars: BarShapes,
    msix: Msix,
    common: Common,
    bells: Vec<Bell>,
    engine: Engine,
    inline: bool,
    /// A device that cannot start is logged once.
    complained: bool,
}

impl Transport {
    /// Puts `device` behind a function called `label`, in front of `memory`.
    pub fn new(
        label: String,
        device: Box<dyn DeviceModel>,
        memory: Arc<GuestMemoryMmap>,
    ) -> Result<Self, DeviceError> {
        let sizes = device.queue_sizes();
        debug_assert!(sizes.len() <= layout::MAX_QUEUES);
        debug_assert!(sizes.iter().all(|s| s.is_power_of_two() && *s <= MAX_QUEUE));
        let mut bells = Vec::with_capacity(sizes.len());
        for _ in sizes {
            let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| {
                DeviceError::Os { what: "an eventfd cannot be made", source: e.into() }
            })?;
            bells.push(Bell { kick: Arc::new(kick), armed: None });
        }
        let space = ConfigSpace::new(device.kind(), sizes.len(), device.config_len());
        Ok(Self {
            label,
            shared: Arc::new(Shared::new(sizes.len(), space.msix.vectors.into())),
            bars: layout::bars(),
            msix: Msix::new(space.msix.clone()),
            space,
            common: Common::new(&*device),
            device,
            memory,
            bells,
            engine: Engine::Idle,
            inline: false,
            complained: false,
        })
    }

    /// Serves kicks within the trapped write, without a thread; the device's own descriptors in [`Self::look`] alone:
    /// for fuzzing and for tests of a device's answers.
    #[must_use]
    pub fn inline(mut self) -> Self {
        self.inline = true;
        self
    }

    /// Serves those of the device's own descriptors that are ready now, where kicks are served inline.
    pub fn look(&mut self) {
        let Engine::Inline(serve) = &mut self.engine else { return };
        let mut found = Vec::new();
        serve.sources(&mut |number, fd, flags| {
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
                found.push((number, fds[0].revents()));
            }
        });
        for (number, flags) in found {
            serve.ready(number, flags);
        }
    }

    /// What its thread and its registers share.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn start(&mut self) -> Result<(), DeviceError> {
        let event_idx = self.common.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.common.queues.iter().zip(&self.bells).enumerate();
        let queues = queues.map(|(index, (setup, bell))| {
            let mut ring = setup.enabled.then(|| setup.build(&self.memory)).flatten()?;
            ring.set_event_idx(event_idx);
            let (memory, shared) = (Arc::clone(&self.memory), Arc::clone(&self.shared));
            Some(VirtQueue::new(index, ring, memory, shared, Arc::clone(&bell.kick)))
        });
        let mut kicks: Vec<_> =
            self.bells.iter().map(|b| Arc::clone(&b.kick)).enumerate().collect();
        let start = Activation {
            features: self.common.accepted,
            memory: Arc::clone(&self.memory),
            shared: Arc::clone(&self.shared),
            queues: queues.collect(),
        };
        let serve = self.device.activate(start)?;
        if self.inline {
            self.engine = Engine::Inline(serve);
            return Ok(());
        }
        kicks.retain(|(queue, _)| serve.has(*queue));
        let mut name = format!("{:?}/{}", self.device.kind(), self.label).to_lowercase();
        name.truncate(name.floor_char_boundary(MAX_THREAD_NAME));
        let shared = Arc::clone(&self.shared);
        self.engine = Engine::Thread(Worker::start(&name, serve, kicks, shared)?);
        Ok(())
    }

    /// Ends whatever serves the queues: when this returns nothing touches the guest's memory.
    fn stop(&mut self) {
        // Dropping a thread waits for it.
        self.shared.set_ending(true);
        let ran = !matches!(std::mem::replace(&mut self.engine, Engine::Idle), Engine::Idle);
        self.shared.set_ending(false);
        if ran {
            self.device.reset();
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.shared.reset();
        self.common.reset();
        for bell in &self.bells {
            shared::drain(&bell.kick);
        }
    }

    fn common_write(&mut self, offset: u64, data: &[u8]) {
        let Self { common, device, shared, memory, .. } = self;
        match common.write(&**device, shared, memory, offset, data) {
            Effect::None => {}
            Effect::Reset => self.reset(),
            Effect::Stop => self.stop(),
            Effect::Start => {
                if let Err(e) = self.start() {
                    if !std::mem::replace(&mut self.complained, true) {
                        tracing::warn!("{}: the device cannot start: {e}", self.label);
                    }
                    self.stop();
                    self.shared.needs_reset();
                }
            }
        }
    }

    fn kick(&mut self, queue: u64) {
        let Some((index, bell)) =
            usize::try_from(queue).ok().and_then(|i| Some((i, self.bells.get(i)?)))
        else {
            return;
        };
        match &mut self.engine {
            Engine::Inline(serve) => {
                serve.kick(index);
                // What is over is left to the next write.
                shared::drain(&bell.kick);
            }
            Engine::Idle | Engine::Thread(_) => shared::signal(&bell.kick),
        }
    }

    /// The guest turned bus mastering on or off.
    fn set_master(&mut self, on: bool) {
        if on && !self.shared.may_access_memory() {
            self.shared.set_master(true);
            // What was left lying meanwhile.
            self.bells.iter().for_each(|bell| shared::signal(&bell.kick));
        } else {
            self.shared.set_master(on);
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let c = self.msix.capability();
        if c.table.range.contains(&offset) {
            let at = offset - c.table.range.start;
            return self.msix.read_table(at, data);
        }
        if c.pba.range.contains(&offset) {
            let at = offset - c.pba.range.start;
            return self.msix.read_pba(at, data);
        }
        match offset {
            0..layout::ISR => self.common.read(&self.shared, offset, data),
            layout::ISR => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = self.shared.take_isr();
                }
            }
            layout::DEVICE..layout::NOTIFY => {
                data.fill(0);
                self.device.read_config(offset - layout::DEVICE, data);
            }
            _ => data.fill(0),
        }
    }

    fn write(&mut self, wiring: &mut dyn Wiring, offset: u64, data: &[u8]) {
        let table = self.msix.capability().table.range.clone();
        if table.contains(&offset) {
            return self.msix.write_table(wiring, offset - table.start, data);
        }
        match offset {
            0..layout::ISR => self.common_write(offset, data),
            layout::DEVICE..layout::NOTIFY => {
                self.device.write_config(offset - layout::DEVICE, data);
            }
            _ => {
                if let Some(at) = offset.checked_sub(layout::NOTIFY)
                    && at.is_multiple_of(layout::NOTIFY_STEP)
                {
                    self.kick(at / layout::NOTIFY_STEP);
                }
            }
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
    }
}

impl PciFunction for Transport {
    fn label(&self) -> &str {
        &self.label
    }

    fn bars(&self) -> &BarShapes {
        &self.bars
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if let Access::Window { offset, len } = self.space.access(offset) {
            let mut bytes = [0; 4];
            self.read(offset, &mut bytes[..len]);
            *self.space.window_data() = bytes;
        }
        self.space.read(offset, data);
        self.msix.overlay_control(offset, data);
    }

    fn config_write(&mut self, wiring: &mut dyn Wiring, offset: u16, data: &[u8]) -> ConfigEffect {
        if offset == config::COMMAND
            && let Some(low) = data.first()
        {
            self.set_master(u16::from(*low) & command::BUS_MASTER != 0);
        }
        self.space.write(offset, data);
        if let Access::Window { offset, len } = self.space.access(offset) {
            let bytes = *self.space.window_data();
            self.write(wiring, offset, &bytes[..len]);
        }
        let Ok(()) = self.msix.write_control(wiring, &mut Vectors(&self.shared), offset, data);
        ConfigEffect::None
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            0 => self.read(offset, data),
            _ => nothing(data),
        }
    }

    fn bar_write(&mut self, wiring: &mut dyn Wiring, bar: usize, offset: u64, data: &[u8]) {
        if bar == 0 {
            self.write(wiring, offset, data);
        }
    }

    fn map(&mut self, wiring: &mut dyn Wiring, bar: usize, at: Gpa) {
        if bar != 0 {
            return;
        }
        for (bell, offset) in
            self.bells.iter_mut().zip((layout::NOTIFY..).step_by(layout::NOTIFY_STEP as usize))
        {
            // Any width, since KVM is fastest where it need not look at the instruction.
            let doorbell = Doorbell { at: Gpa(at.0 + offset), size: 0, datamatch: None };
            match wiring.attach_doorbell(bell.kick.as_fd(), doorbell) {
                Ok(()) => bell.armed = Some(doorbell),
                Err(e) => tracing::warn!("{}: kicks trap: {e}", self.label),
            }
        }
    }

    fn unmap(&mut self, wiring: &mut dyn Wiring, bar: usize) {
        if bar != 0 {
            return;
        }
        for bell in &mut self.bells {
            if let Some(doorbell) = bell.armed.take()
                && let Err(e) = wiring.detach_doorbell(bell.kick.as_fd(), doorbell)
            {
                tracing::warn!("{}: a doorbell stays: {e}", self.label);
            }
        }
    }

    fn reset(&mut self, wiring: &mut dyn Wiring) {
        Transport::reset(self);
        self.set_master(false);
        let Ok(()) = self.msix.reset(wiring, &mut Vectors(&self.shared));
    }

    fn detach(mut self: Box<Self>, wiring: &mut dyn Wiring) -> Option<Box<dyn PciFunction>> {
        PciFunction::reset(&mut *self, wiring);
        Some(self)
    }
}

#[cfg(test)]
mod tests;
