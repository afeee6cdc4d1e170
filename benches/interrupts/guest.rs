//! The guest of both sides: it halts, and answers each interrupt with a doorbell.
//!
//! 32-bit code, flat, as PVH enters it; the same bytes for the loop and the handler on both sides, because
//! KVM without hardware support interprets them. The handler stamps its time-stamp counter, ends the
//! interrupt and writes the doorbell, whose address is in `ebx`. It leaves by `retf 4`, with interrupts off
//! until the next `sti; hlt`: KVM-PVM does not interpret a 32-bit `iret`.

use beamline_abi::pacer;
use beamline_abi::pci::{command, config, msix};
pub(crate) use beamline_benches::image::{BASE, elf};

/// Where the handler leaves its time-stamp counter, 64 bits.
pub(crate) const STAMP: u32 = BASE + 0x4000;
/// The interrupt that is answered.
pub(crate) const PING: u8 = 0x40;
/// The interrupt that ends the guest by a write to [`EXIT_PORT`].
pub(crate) const END: u8 = 0x41;
/// Where a message-signalled interrupt for the one vCPU goes.
pub(crate) const MSI_ADDRESS: u32 = 0xfee0_0000;
/// The port that ends a guest.
pub(crate) const EXIT_PORT: u16 = 0xf4;

const GDT: u32 = BASE + 0x1000;
const POINTERS: u32 = BASE + 0x1100;
const IDT: u32 = BASE + 0x2000;
const HANDLERS: u32 = BASE + 0x3000;
const HANDLER_BYTES: u32 = 0x40;
const IMAGE_BYTES: usize = 0x5000;
const STACK: u32 = 0x9_0000;

/// Registers of the local APIC (Intel SDM, volume 3, section 11.4).
const APIC_EOI: u32 = 0xfee0_00b0;
const APIC_SPURIOUS: u32 = 0xfee0_00f0;

/// Where the guest of the stack finds its functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Functions {
    /// The pacer's slot, and its MSI-X capability in configuration space.
    pub(crate) pacer: (u32, u32),
    /// The vGPU's slot, the BAR of its notifications and their offset.
    pub(crate) gpu: (u32, u32, u32),
}

/// An image whose doorbell is at a fixed address.
pub(crate) fn bare(doorbell: u32) -> Vec<u8> {
    image(&Asm::default().bytes(&[0xbb]).word(doorbell)) // mov ebx
}

/// An image that is paced by the pacer and rings the vGPU's first queue.
pub(crate) fn paced(functions: Functions) -> Vec<u8> {
    let on = u32::from(command::MEMORY | command::BUS_MASTER);
    let ((pacer, capability), (gpu, bar, notify)) = (functions.pacer, functions.gpu);
    let bar_register = |bar: u32| u32::from(config::BAR0) + 4 * bar;
    let entry = pacer::MSIX_TABLE_OFFSET;
    let asm = Asm::default()
        .config_write(pacer, config::COMMAND.into(), on)
        .config_read(pacer, bar_register(0))
        .bytes(&[0x83, 0xe0, 0xf0, 0x89, 0xc6]) // and eax, ~0xf; mov esi, eax
        .store_at_esi(entry, MSI_ADDRESS)
        .store_at_esi(entry + 4, 0)
        .store_at_esi(entry + 8, PING.into())
        .store_at_esi(entry + 12, 0)
        .config_write(pacer, capability, u32::from(msix::CONTROL_ENABLE) << 16)
        .store_at_esi(pacer::reg::CONTROL, pacer::control::VBLANK_ENABLE)
        .config_write(gpu, config::COMMAND.into(), on)
        .config_read(gpu, bar_register(bar))
        .bytes(&[0x83, 0xe0, 0xf0, 0x89, 0xc3]) // and eax, ~0xf; mov ebx, eax
        .bytes(&[0x81, 0xc3]) // add ebx
        .word(notify);
    image(&asm)
}

/// The whole image; `set_up` leaves the doorbell's address in `ebx`.
fn image(set_up: &Asm) -> Vec<u8> {
    let code = Asm::default()
        .bytes(&[0xbc]) // mov esp
        .word(STACK)
        .bytes(&[0x0f, 0x01, 0x15]) // lgdt
        .word(POINTERS)
        .bytes(&[0x0f, 0x01, 0x1d]) // lidt
        .word(POINTERS + 8)
        .store(APIC_SPURIOUS, 0x1ff) // enabled, spurious vector 0xff
        .bytes(&set_up.0)
        .ring()
        .bytes(&[0xfb, 0xf4, 0xeb, 0xfc]); // sti; hlt; back to sti
    let ping = Asm::default()
        .bytes(&[0x0f, 0x31, 0xa3]) // rdtsc; mov [], eax
        .word(STAMP)
        .bytes(&[0x89, 0x15]) // mov [], edx
        .word(STAMP + 4)
        .store(APIC_EOI, 0)
        .ring()
        .bytes(&[0xca, 4, 0]); // retf 4
    let end = Asm::default().bytes(&[0xb0, 0, 0xe6, EXIT_PORT as u8, 0xf4, 0xeb, 0xfd]);
    let mut image = vec![0; IMAGE_BYTES];
    let mut put = |at: u32, bytes: &[u8]| {
        image[(at - BASE) as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    put(BASE, &code.0);
    // Null, code and data: flat, 32 bits.
    for (at, word) in (GDT..).step_by(4).zip([0, 0, 0xffff, 0x00cf_9b00, 0xffff, 0x00cf_9300]) {
        put(at, &u32::to_le_bytes(word));
    }
    put(POINTERS, &pointer(GDT, 3 * 8));
    put(POINTERS + 8, &pointer(IDT, 256 * 8));
    for (at, (vector, handler)) in
        (HANDLERS..).step_by(HANDLER_BYTES as usize).zip([(PING, ping), (END, end)])
    {
        put(at, &handler.0);
        let gate = IDT + 8 * u32::from(vector);
        put(gate, &(8 << 16 | at & 0xffff).to_le_bytes());
        put(gate + 4, &(at & 0xffff_0000 | 0x8e00).to_le_bytes());
    }
    image
}

/// What `lgdt` and `lidt` read.
fn pointer(at: u32, bytes: u16) -> [u8; 6] {
    let mut both = [0; 6];
    both[..2].copy_from_slice(&(bytes - 1).to_le_bytes());
    both[2..].copy_from_slice(&at.to_le_bytes());
    both
}

/// Machine code, appended instruction by instruction.
#[derive(Default)]
struct Asm(Vec<u8>);

impl Asm {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn word(self, word: u32) -> Self {
        self.bytes(&word.to_le_bytes())
    }

    /// `mov dword [at], value`
    fn store(self, at: u32, value: u32) -> Self {
        self.bytes(&[0xc7, 0x05]).word(at).word(value)
    }

    /// `mov dword [esi + offset], value`
    fn store_at_esi(self, offset: u32, value: u32) -> Self {
        self.bytes(&[0xc7, 0x86]).word(offset).word(value)
    }

    /// Writes 16 bits to the doorbell at `ebx`, as a virtio driver does.
    fn ring(self) -> Self {
        self.bytes(&[0x66, 0xc7, 0x03, 0, 0])
    }

    /// `mov dx, port; mov eax, value; out dx, eax`
    fn out(self, port: u16, value: u32) -> Self {
        self.bytes(&[0x66, 0xba])
            .bytes(&port.to_le_bytes())
            .bytes(&[0xb8])
            .word(value)
            .bytes(&[0xef])
    }

    fn config_address(self, slot: u32, register: u32) -> Self {
        self.out(0xcf8, 1 << 31 | slot << 11 | register)
    }

    fn config_write(self, slot: u32, register: u32, value: u32) -> Self {
        self.config_address(slot, register).out(0xcfc, value)
    }

    /// Reads a register to `eax`.
    fn config_read(self, slot: u32, register: u32) -> Self {
        self.config_address(slot, register).bytes(&[0x66, 0xba, 0xfc, 0x0c, 0xed])
    }
}
