//! From the PVH entry point to unprivileged 64-bit code.
//!
//! Privileged code is kept as short as it can be: where KVM runs without hardware support it is interpreted
//! instruction by instruction, without most of SSE. The page tables are therefore data of the image, and
//! interrupts only count.
//!
//! | vectors | stub |
//! |---|---|
//! | 0–31 | continue at `guest_fault`, unprivileged; a fault of a stub ends the guest |
//! | 3 | the call gate: `eax` selects halt or a port access |
//! | 0x40–0x43 | count and end the interrupt |
//! | 0xff | the APIC's spurious vector |
#![allow(unsafe_code, reason = "entry point, descriptor tables and interrupt stubs")]

use core::arch::global_asm;

/// The first interrupt vector; there are [`VECTORS`].
pub(crate) const FIRST_VECTOR: u8 = 0x40;
/// How many interrupt vectors have a counter.
pub(crate) const VECTORS: usize = 4;

/// What the call gate does, by number in `eax`.
pub(crate) mod call {
    pub(crate) const HALT: u64 = 0;
    pub(crate) const IN: [u64; 3] = [1, 2, 3];
    pub(crate) const OUT: [u64; 3] = [4, 5, 6];
}

unsafe extern "C" {
    /// Interrupts so far; the stubs alone write it.
    pub(crate) static irq_total: u64;
    /// The same by vector.
    pub(crate) static irq_counts: [u64; VECTORS];
    /// Physical address of the PVH start info.
    pub(crate) static start_info: u32;
}

global_asm!(
    r#"
.section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                  # name size, data size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry

.section .boot, "ax"
.code32
.global pvh_entry
pvh_entry:
    cld
    mov esp, offset trap_stack_top
    mov [start_info], ebx
    mov eax, offset pml4
    mov cr3, eax
    mov eax, 0x620                  # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080             # EFER: LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80010033             # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    push 0x08
    mov eax, offset start64
    push eax
    retf

.code64
start64:
    mov eax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov rsp, offset trap_stack_top  # its upper half was undefined in 32 bits
    mov eax, offset tss             # the one descriptor with a split address
    mov [gdt_tss + 2], ax
    shr eax, 16
    mov [gdt_tss + 4], al
    mov [gdt_tss + 7], ah
    mov eax, 0x18
    ltr ax

    mov rdi, offset idt
    mov rsi, offset exception_stubs
    mov ecx, 32
    mov edx, 16
    call set_gates
    mov rdi, offset idt + 16 * 3
    mov rsi, offset call_gate
    mov ecx, 1
    call set_gates
    mov byte ptr [idt + 16 * 3 + 5], 0xee   # callable from privilege level 3
    mov rdi, offset idt + 16 * {first}
    mov rsi, offset irq_stubs
    mov ecx, {vectors}
    mov edx, 64
    call set_gates
    mov rdi, offset idt + 16 * 0xff
    mov rsi, offset spurious_stub
    mov ecx, 1
    call set_gates
    lidt [idt_pointer]

    mov al, 0xff                    # no legacy interrupts
    out 0x21, al
    out 0xa1, al
    mov ecx, 0x1b                   # IA32_APIC_BASE: enabled, x2APIC
    rdmsr
    or eax, 0xc00
    wrmsr
    mov ecx, 0x80f                  # spurious vector 0xff, software enabled
    mov eax, 0x1ff
    xor edx, edx
    wrmsr

    push 0x2b
    push offset user_stack_top - 8
    push 0x202
    push 0x33
    push offset {main}
    iretq

# Fills ecx gates from rdi on with stubs from rsi on, edx bytes apart.
set_gates:
    mov rax, rsi
    mov [rdi], ax
    mov dword ptr [rdi + 2], 0x8e000008    # selector 8, interrupt gate
    shr eax, 16
    mov [rdi + 6], ax
    add rdi, 16
    add rsi, rdx
    dec ecx
    jnz set_gates
    ret

.balign 16
exception_stubs:
.set vec, 0
.rept 32
    .balign 16
    .if !(vec == 8 || vec == 10 || vec == 11 || vec == 12 || vec == 13 || vec == 14 || vec == 17 || vec == 21 || vec == 29 || vec == 30)
    .byte 0x6a, 0                   # push 0 in place of an error code
    .endif
    .byte 0x6a, vec                 # push the vector
    jmp exception
    .set vec, vec + 1
.endr

exception:
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, cr2
    mov eax, [rsp + 24]
    test al, 3
    jz stub_failed
    push 0x2b
    push offset fault_stack_top - 8
    push 0x202
    push 0x33
    push offset {fault}
    iretq
stub_failed:
    mov al, 0xee
    mov dx, 0xf4
    out dx, al
    cli
    hlt
    jmp stub_failed

# eax: what. rdi: interrupts seen (halt). edx: port. ecx: value. The answer goes to rax.
call_gate:
    cmp eax, 7
    jae 1f
    jmp [call_table + 8 * rax]
call_halt:
    cmp rdi, [irq_total]            # interrupts are off: none can come between this and the halt
    jne 1f
    sti
    hlt
1:  iretq
call_in8:
    xor eax, eax
    in al, dx
    iretq
call_in16:
    xor eax, eax
    in ax, dx
    iretq
call_in32:
    in eax, dx
    iretq
call_out8:
    mov eax, ecx
    out dx, al
    iretq
call_out16:
    mov eax, ecx
    out dx, ax
    iretq
call_out32:
    mov eax, ecx
    out dx, eax
    iretq

.balign 64
irq_stubs:
.set vec, 0
.rept {vectors}
    .balign 64
    inc qword ptr [irq_total]
    inc qword ptr [irq_counts + 8 * vec]
    push rax
    push rcx
    push rdx
    mov ecx, 0x80b                  # x2APIC end of interrupt
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
    .set vec, vec + 1
.endr
spurious_stub:
    iretq

.section .data
.balign 8
call_table:
    .quad call_halt, call_in8, call_in16, call_in32, call_out8, call_out16, call_out32
.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: code, 64 bits
    .quad 0x00cf93000000ffff        # 0x10: data
gdt_tss:
    .quad 0x0000890000000067, 0     # 0x18: task state
    .quad 0x00cff3000000ffff        # 0x28: data, level 3
    .quad 0x00affb000000ffff        # 0x30: code, 64 bits, level 3
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
idt_pointer:
    .word 16 * 256 - 1
    .quad idt
.balign 16
tss:
    .long 0
    .quad trap_stack_top
    .skip 90
    .word 104                       # no I/O bitmap
.balign 8
.global start_info, irq_total, irq_counts
start_info: .quad 0
irq_total: .quad 0
irq_counts: .skip 8 * {vectors}

# 4 GiB, mapped to itself in pages of 2 MiB, for both privilege levels.
.balign 4096
pml4:
    .quad pdpt + 7
    .skip 4088
pdpt:
    .quad directories + 0x0007, directories + 0x1007, directories + 0x2007, directories + 0x3007
    .skip 4064
directories:
.set page, 0
.rept 2048
    .quad (page << 21) + 0x87
    .set page, page + 1
.endr

.section .bss
.balign 4096
idt: .skip 16 * 256
    .skip 0x2000
trap_stack_top:
    .skip 0x4000
fault_stack_top:
    .skip 0x40000
user_stack_top:
"#,
    first = const FIRST_VECTOR,
    vectors = const VECTORS,
    main = sym crate::guest::guest_main,
    fault = sym crate::guest::guest_fault,
);
