use super::*;
use crate::devices::virtio::testing::{Driver, HIGH, memory};
use crate::devices::virtio::vhost::{Ring, VhostError, in_one_region};
use crate::testing::{signal, take};
use beamline_abi::virtio_pci::{common, feature, status};
use std::os::fd::OwnedFd;
use vm_memory::GuestMemoryMmap;

/// What a kernel was asked for.
#[derive(Default)]
struct Asked {
    running: bool,
    features: u64,
    sizes: Vec<u16>,
    kicks: Vec<OwnedFd>,
    calls: Vec<Option<Arc<OwnedFd>>>,
}

struct Fake(Arc<Mutex<Asked>>);

impl Server for Fake {
    fn features(&self) -> u64 {
        feature::VERSION_1 | 1 << 28 | 1 << 29 | SEQPACKET | 1 << 5
    }
    fn start(
        &mut self,
        _: &GuestMemoryMmap,
        features: u64,
        rings: &[Ring<'_>],
    ) -> Result<(), VhostError> {
        *self.0.lock().unwrap() = Asked {
            running: true,
            features,
            sizes: rings.iter().map(|r| virtio_queue::QueueT::size(r.queue)).collect(),
            kicks: rings.iter().map(|r| r.kick.try_clone().unwrap()).collect(),
            calls: rings.iter().map(|r| r.call.clone()).collect(),
        };
        Ok(())
    }
    fn stop(&mut self) {
        self.0.lock().unwrap().running = false;
    }
}

fn start() -> (Driver, Arc<Mutex<Asked>>) {
    let asked = Arc::<Mutex<Asked>>::default();
    (Driver::new(Vsock::new(7, Box::new(Fake(Arc::clone(&asked))))), asked)
}

#[test]
fn the_kernel_gets_the_drivers_queues_kicks_and_vectors() {
    let (mut d, asked) = start();
    assert_eq!(d.offered() & (SEQPACKET | 1 << 5), SEQPACKET);
    let mut cid = [0; 8];
    d.device_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 7);
    for round in 0..3 {
        d.agree(u64::MAX);
        let rings = [d.queue(0, 64), d.queue(1, 32), d.queue(2, 4)];
        d.ready();
        let asked = asked.lock().unwrap();
        assert!(asked.running, "{round}");
        assert_eq!(asked.sizes, [64, 32]);
        assert_eq!(asked.features & SEQPACKET, SEQPACKET);
        for (ring, kick) in rings.iter().zip(&asked.kicks) {
            d.kick(ring);
            assert_eq!(take(kick), 1, "the thread leaves it to the kernel");
        }
        // The kernel's interrupt is the guest's.
        signal(asked.calls[1].as_ref().expect("the vector is enabled"));
        d.wait_vector(2);
        d.kick(&rings[2]);
    }
    d.reset();
    assert!(!asked.lock().unwrap().running);
    d.agree(u64::MAX);
    let _rings = [d.queue(0, 64), d.queue(1, 32)];
    d.ready();
    drop(d);
    assert!(!asked.lock().unwrap().running);
}

#[test]
fn a_ring_in_two_regions_is_not_given_to_the_kernel() {
    let ram = memory();
    let near = crate::Gpa(crate::devices::virtio::testing::RAM - 4096);
    assert!(in_one_region(&ram, near, 4096));
    assert!(!in_one_region(&ram, near, 4097));
    assert!(!in_one_region(&ram, crate::Gpa(HIGH - 1), 1));
    assert!(!in_one_region(&ram, near, u64::MAX));
    let (mut d, asked) = start();
    d.agree(u64::MAX);
    let _one = d.queue(0, 64);
    let status = d.status() | status::DRIVER_OK;
    d.set(common::DEVICE_STATUS, 1, status.into());
    assert_ne!(d.status() & status::NEEDS_RESET, 0, "a queue is missing");
    assert!(!asked.lock().unwrap().running);
}

#[test]
fn a_kernel_without_it_is_named_with_a_remedy() {
    match VhostVsock::open(1234, memory()) {
        Ok(kernel) => {
            let mut d = Driver::over(
                crate::devices::virtio::Transport::new(
                    "vsock".into(),
                    Box::new(Vsock::new(1234, Box::new(kernel))),
                    memory(),
                )
                .unwrap(),
                memory(),
            );
            assert_ne!(d.offered() & feature::VERSION_1, 0);
        }
        Err(e) => {
            println!("skip: sockets of the kernel itself: {e}");
            let text = e.to_string();
            assert!(text.contains("vhost_vsock") || text.contains("refused"), "{text}");
        }
    }
}
