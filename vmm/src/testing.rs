//! Helpers of the tests: tiny images, consoles, file descriptors.

pub(crate) mod device;

use crate::devices::serial::Console;
use crate::probe;
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// A PVH ELF image: `code` at `load`, entered at `entry`.
pub(crate) fn elf(load: u64, entry: u64, code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let note_at = HEADERS + code.len() as u64;
    let mut f = Vec::new();
    f.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let half = |f: &mut Vec<u8>, v: u16| f.extend_from_slice(&v.to_le_bytes());
    let word = |f: &mut Vec<u8>, v: u32| f.extend_from_slice(&v.to_le_bytes());
    let long = |f: &mut Vec<u8>, v: u64| f.extend_from_slice(&v.to_le_bytes());
    half(&mut f, 2); // executable
    half(&mut f, 62); // x86-64
    word(&mut f, 1);
    long(&mut f, entry);
    long(&mut f, 64); // program headers
    long(&mut f, 0);
    word(&mut f, 0);
    for v in [64, 56, 2, 0, 0, 0] {
        half(&mut f, v);
    }
    for (kind, offset, address, size) in
        [(1, HEADERS, load, code.len() as u64), (4, note_at, 0, 20)]
    {
        word(&mut f, kind);
        word(&mut f, 7);
        for v in [offset, address, address, size, size, 4] {
            long(&mut f, v);
        }
    }
    f.extend_from_slice(code);
    for v in [4, 4, 18] {
        word(&mut f, v); // note: name size, value size, XEN_ELFNOTE_PHYS32_ENTRY
    }
    f.extend_from_slice(b"Xen\0");
    word(&mut f, entry as u32);
    f
}

/// Remembers what guests print.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Console for Recorder {
    fn line(&mut self, guest: &str, line: &str) {
        self.0.lock().unwrap().push(format!("{guest}: {line}"));
    }
}

/// Whether KVM is usable here; if not, prints that `test` is skipped.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    let kind = probe::kvm();
    if !kind.usable() {
        println!("skip: {test}: {kind}");
    }
    kind.usable()
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Signals an eventfd once.
pub(crate) fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// The eventfd's count, which is then 0.
pub(crate) fn take(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(e) => panic!("{e}"),
    }
}

pub(crate) fn memfd(size: u64, sealed: bool) -> OwnedFd {
    let fd =
        rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    if sealed {
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    }
    fd
}

/// Code for the tests' guests: 32-bit, flat, as PVH enters it.
#[derive(Default)]
pub(crate) struct Asm(pub(crate) Vec<u8>);

impl Asm {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn with_word(self, opcode: &[u8], word: u32) -> Self {
        self.raw(opcode).raw(&word.to_le_bytes())
    }

    /// `mov dword [at], value`
    pub(crate) fn store(self, at: u32, value: u32) -> Self {
        self.with_word(&[0xc7, 0x05], at).raw(&value.to_le_bytes())
    }

    /// Writes `code` to `at`, filled up with `nop`.
    pub(crate) fn put(mut self, at: u32, code: &[u8]) -> Self {
        for (at, word) in (at..).step_by(4).zip(code.chunks(4)) {
            let mut bytes = [0x90; 4];
            bytes[..word.len()].copy_from_slice(word);
            self = self.store(at, u32::from_le_bytes(bytes));
        }
        self
    }

    /// Waits for a byte on the serial port, which is in al then.
    pub(crate) fn wait_for_key(self) -> Self {
        // mov dx, 0x3fd; in al, dx; test al, 1; jz to the mov; mov dx, 0x3f8; in al, dx
        self.port(0x3fd).raw(&[0xec, 0xa8, 0x01, 0x74, 0xf7]).port(0x3f8).raw(&[0xec])
    }

    /// `mov eax, [at]`
    pub(crate) fn load(self, at: u32) -> Self {
        self.with_word(&[0xa1], at)
    }

    /// `out dx, eax`
    pub(crate) fn out(self, port: u16, value: u32) -> Self {
        self.port(port).with_word(&[0xb8], value).raw(&[0xef])
    }

    fn port(self, port: u16) -> Self {
        self.raw(&[0x66, 0xba]).raw(&port.to_le_bytes())
    }

    /// Writes a register of the function in `slot`.
    pub(crate) fn config_write(self, slot: u32, offset: u32, value: u32) -> Self {
        self.out(0xcf8, 1 << 31 | slot << 11 | offset).out(0xcfc, value)
    }

    /// Reads a register of the function in `slot` to eax.
    pub(crate) fn config_read(self, slot: u32, offset: u32) -> Self {
        self.out(0xcf8, 1 << 31 | slot << 11 | offset).port(0xcfc).raw(&[0xed])
    }

    /// Ends the guest with `code` unless eax is `value`.
    pub(crate) fn expect(self, value: u32, code: u8) -> Self {
        self.with_word(&[0x3d], value).raw(&[0x74, 0x04]).exit(code)
    }

    /// Ends the guest.
    pub(crate) fn exit(self, code: u8) -> Self {
        self.raw(&[0xb0, code, 0xe6, 0xf4])
    }

    /// Prints on the serial port.
    pub(crate) fn print(mut self, text: &str) -> Self {
        self = self.port(0x3f8);
        for byte in text.bytes() {
            self = self.raw(&[0xb0, byte, 0xee]);
        }
        self
    }

    /// Halts with interrupts on until the word at `at` is `value`.
    pub(crate) fn halt_until(self, at: u32, value: u8) -> Self {
        // cli; cmp dword [at], value; je +4; sti; hlt; jmp to the cli
        self.raw(&[0xfa])
            .with_word(&[0x83, 0x3d], at)
            .raw(&[value, 0x74, 0x04, 0xfb, 0xf4, 0xeb, 0xf2])
    }

    /// Loads a flat GDT and an IDT, and puts the local APIC and interrupts to use; the handler of
    /// `vectors[i]` counts in the word at `counters + 4 * i`.
    pub(crate) fn interrupts(mut self, vectors: &[u8], counters: u32) -> Self {
        const GDT: u32 = 0x8000;
        const IDT: u32 = 0x9000;
        const HANDLERS: u32 = 0xa000;
        self = self.with_word(&[0xbc], 0x9_0000); // mov esp
        for (i, word) in [0, 0, 0xffff, 0x00cf_9b00, 0xffff, 0x00cf_9300].into_iter().enumerate() {
            self = self.store(GDT + 4 * i as u32, word);
        }
        self = self.store(0x7f00, GDT << 16 | 0x17).store(0x7f04, GDT >> 16);
        self = self.store(0x7f10, IDT << 16 | 0x7ff).store(0x7f14, IDT >> 16);
        self = self.with_word(&[0x0f, 0x01, 0x15], 0x7f00).with_word(&[0x0f, 0x01, 0x1d], 0x7f10);
        for (i, vector) in (0..).zip(vectors) {
            let handler = HANDLERS + 64 * i;
            self = self.store(IDT + 8 * u32::from(*vector), 8 << 16 | handler);
            self = self.store(IDT + 8 * u32::from(*vector) + 4, 0x8e00);
            // inc dword [counter]; mov dword [EOI], 0; retf 4, which leaves interrupts off: KVM-PVM
            // does not interpret a 32-bit iret
            let code = Self::default()
                .with_word(&[0xff, 0x05], counters + 4 * i)
                .store(0xfee0_00b0, 0)
                .raw(&[0xca, 0x04, 0x00]);
            self = self.put(handler, &code.0);
        }
        self.store(0xfee0_00f0, 0x1ff)
    }
}

/// A guest called "vr" that runs `code`, and the folder its files are in.
pub(crate) fn guest(code: &Asm) -> (crate::Config, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), elf(0x10_0000, 0x10_0000, &code.0)).unwrap();
    let text = "[guest]\nname = \"vr\"\nimage = \"image\"\n[memory]\nsize = \"4M\"\n";
    let config = crate::Config::parse(text, &dir.path().join("vr.toml")).unwrap();
    (config, dir)
}
