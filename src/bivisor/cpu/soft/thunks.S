# Native glue between translated code and the engine, for x86-64 hosts (System V ABI). Its bytes stand in thunks.py; a test
# assembles this file again and compares:   as thunks.S -o t.o && objcopy -O binary -j .text t.o t.bin
#
# Why native: the library leaves a helper by longjmp when the guest faults or when the processor has to stop. That must
# not cross a Python frame, so whatever may longjmp happens here, after the Python callback has returned.
#
# The page begins with slots that private.py fills with addresses of the library's functions. A per-processor context, whose
# address is kept in the field of `env` that names the VMCB of a nested guest (there are none), holds the callbacks.
# A callback asks for the processor to stop, or raises a fault, by storing to cpu->exception_index; -1 means: go on.

        .intel_syntax noprefix
        .text

        .set ENV,           0x8a50              # env - cpu
        .set CPU_EXC,       0x81a0              # cpu->exception_index
        .set CPU_IO_PC,     0x8178              # cpu->mem_io_pc
        .set CPU_IREQ,      0x1c                # cpu->interrupt_request
        .set CPU_ICOUNT,    0x8a40              # cpu->neg.icount_decr: negative asks a running block loop to look
        .set UC_CPU,        440                 # uc->cpu
        .set UC_ERROR,      0x590               # uc->invalid_error
        .set FETCH_PROT,    14                  # UC_ERR_FETCH_PROT
        .set E_RCX,         8
        .set E_R11,         88
        .set E_EIP,         0x80
        .set E_EFLAGS,      0x88
        .set E_CC_SRC,      0x98
        .set E_CC_OP,       0xa8
        .set E_DF,          0xac
        .set E_HFLAGS,      0xb0
        .set E_CS,          0xb8 + 24           # segs[1]
        .set E_SS,          0xb8 + 48           # segs[2]
        .set E_TR,          0xb8 + 168          # its selector comes first
        .set E_EFER,        592
        .set E_STAR,        4824
        .set E_LSTAR,       4840
        .set E_CSTAR,       4848
        .set E_FMASK,       4856
        .set E_ERROR,       5384
        .set E_IS_INT,      5388
        .set E_NEXT_EIP,    5392
        .set E_CTX,         5504                # env->vm_vmcb

        .set C_OUT,         0                   # void out(port, size | denied << 8, value)
        .set C_IN,          8                   # u64 in(port, size | denied << 8)
        .set C_RDMSR,       16                  # int rdmsr(index): 1 asks for the library's own
        .set C_WRMSR,       24                  # int wrmsr(index, value)
        .set C_CPUID,       32                  # void cpuid()
        .set C_TRAP,        40                  # int trap(vector): 1 means that it is dealt with
        .set C_INTA,        48                  # int inta(): the vector to deliver, or -1
        .set C_READ_CR8,    56
        .set C_WRITE_CR8,   64
        .set C_MMIO_READ,   72                  # u64 mmio_read(gpa, size | own << 8)
        .set C_MMIO_WRITE,  80                  # void mmio_write(gpa, size | own << 8, value)
        .set C_TRAP_MASK,   88                  # u32: vectors that go to trap() first
        .set C_MORE,        92                  # u32: an interrupt waits behind the one being delivered
        .set C_INFLIGHT,    96                  # i32: the vector that is being delivered, or -1
        .set C_RETADDR,     104                 # where the translated code called from: names the instruction
        .set C_VECTORS,     112                 # u64[32]: how often each exception was raised
        .set C_BREAK,       368                 # int break(address): 1 stops before the instruction there
        .set C_RAM,         376                 # two slots of RAM: address, size, MemoryRegion *
        .set C_CODE_MAP,    424                 # u8 *: for each page of RAM, who has translated code of it
        .set C_CODE_PAGES,  432                 # u64: its length
        .set C_NEXT,        440                 # u64: where a second part of the last access to MMIO would be
        .set C_SYSCALL,     448                 # void syscall(): SYSCALL at CPL 0 of a supervised kernel, or 0
        .set C_READ_CR,     456                 # u64 read_cr(number), or 0
        .set C_WRITE_CR,    464                 # void write_cr(number, value), or 0
        .set C_PF_MASK,     472                 # u32: page faults go to trap() if these bits of the error code
        .set C_PF_MATCH,    476                 # u32: are these
        .set C_SHORT_NR,    480                 # u64: SYSCALL at CPL 0 with this in RAX is no call, but a jump
        .set C_SHORT_RIP,   488                 # u64: to here
        .set C_FAST_PORT,   496                 # u64: string input from this port is answered from a buffer: 0 for none
        .set C_FAST_AT,     504                 # u8 *: what comes next of it
        .set C_FAST_END,    512                 # u8 *: from here on the callback is asked again
        .set C_UC,          520                 # uc_struct *
        .set C_NATIVE,      528                 # u64 native(registers, state): SYSCALL at CPL 0 comes here first, or 0
        .set C_NATIVE_ST,   536                 # u64: its state
        .set C_CODE_BIT,    544                 # u64: this processor's bit in the code map
        .set C_PEERS,       552                 # {uc_struct *, bit} of each other processor of the machine, then 0; or 0

        .set UC_HOOKS_WRITE, 0x3d0              # uc->hook[UC_HOOK_MEM_WRITE]
        .set UC_HOOKS_READ, 0x3a0               # uc->hook[UC_HOOK_MEM_READ]
        .set TLB_WRITE,     8                   # CPUTLBEntry.addr_write
        .set TLB_CODE,      16                  # CPUTLBEntry.addr_code
        .set TLB_NOTDIRTY,  0x400

slots:
loop_exit_restore:      .quad 0                 # cpu_loop_exit_restore(cpu, retaddr)
loop_exit:              .quad 0                 # cpu_loop_exit(cpu)
do_interrupt:           .quad 0                 # x86_cpu_do_interrupt(cpu)
do_hardirq:             .quad 0                 # do_interrupt_x86_hardirq(env, vector, 1)
exec_interrupt_orig:    .quad 0                 # x86_cpu_exec_interrupt(cpu, request)
raise_err_ra:           .quad 0                 # raise_exception_err_ra(env, vector, error, retaddr)
cc_compute_all:         .quad 0                 # cpu_cc_compute_all(env, op)
map_ram_ptr:            .quad 0                 # qemu_map_ram_ptr(uc, block, address)
tlb_reset_dirty:        .quad 0                 # tlb_reset_dirty(cpu, host address, length)
invalidate_range:       .quad 0                 # tb_invalidate_phys_range(uc, start, end)
update_cr3:             .quad 0                 # cpu_x86_update_cr3(env, value)
orig_outb:              .quad 0
orig_outw:              .quad 0
orig_outl:              .quad 0
orig_inb:               .quad 0
orig_inw:               .quad 0
orig_inl:               .quad 0
orig_rdmsr:             .quad 0
orig_wrmsr:             .quad 0
orig_cpuid:             .quad 0
orig_syscall:           .quad 0
orig_read_crN:          .quad 0
orig_write_crN:         .quad 0
orig_find_mapping:      .quad 0
orig_protect_code:      .quad 0
orig_protect_linear:    .quad 0
orig_page_fast:         .quad 0
orig_abort:             .quad 0
orig_check_exit:        .quad 0

entries:                                        # offsets of the entry points from `slots`, read by private.py
        .long outb - slots, outw - slots, outl - slots, inb - slots, inw - slots, inl - slots
        .long rdmsr - slots, wrmsr - slots, cpuid - slots, syscall_ - slots, read_crN - slots, write_crN - slots
        .long find_mapping - slots, protect_code - slots, protect_linear - slots, page_fast - slots
        .long abort_ - slots, check_exit - slots
        .long exception - slots, exec_interrupt - slots, mmio_read - slots, mmio_write - slots, rdtsc - slots
        .long stored - slots, code - slots, fetch - slots

# denied(r8d): 0x100 if CPL > IOPL or in virtual-8086 mode, so that the callback looks into the I/O permission bitmap.
# Clobbers r9.
        .macro port_privilege
        mov     r8d, [rdi + E_HFLAGS]
        and     r8d, 3
        mov     r9d, [rdi + E_EFLAGS]
        shr     r9d, 12
        and     r9d, 3
        cmp     r9d, r8d
        sbb     r8d, r8d
        mov     r9d, [rdi + E_EFLAGS]
        shr     r9d, 9                          # VM is bit 17
        or      r8d, r9d
        and     r8d, 0x100
        .endm

        .balign 16
outb:   mov     ecx, 1
        movzx   edx, dl
        lea     r10, [rip + orig_outb]
        jmp     out_
        .balign 16
outw:   mov     ecx, 2
        movzx   edx, dx
        lea     r10, [rip + orig_outw]
        jmp     out_
        .balign 16
outl:   mov     ecx, 4
        mov     edx, edx
        lea     r10, [rip + orig_outl]
out_:   mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        port_privilege
        mov     r9, [rsp]
        mov     [rax + C_RETADDR], r9
        push    rdi
        mov     edi, esi
        mov     esi, ecx
        or      esi, r8d
        call    [rax + C_OUT]
        pop     rdi
        jmp     check
1:      jmp     [r10]

        .balign 16
inb:    mov     ecx, 1
        lea     r10, [rip + orig_inb]
        jmp     in_
        .balign 16
inw:    mov     ecx, 2
        lea     r10, [rip + orig_inw]
        jmp     in_
        .balign 16
inl:    mov     ecx, 4
        lea     r10, [rip + orig_inl]
in_:    mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        port_privilege
        cmp     esi, [rax + C_FAST_PORT]
        je      2f
3:
        mov     r9, [rsp]
        mov     [rax + C_RETADDR], r9
        push    rdi
        mov     edi, esi
        mov     esi, ecx
        or      esi, r8d
        call    [rax + C_IN]
        pop     rdi
check:  cmp     dword ptr [rdi + CPU_EXC - ENV], -1
        jne     leave_
        ret
1:      jmp     [r10]

# A device has put what the port gives next into a buffer (see `Machine.feed_port`): a string instruction takes it from there.
2:      test    r8d, r8d                        # a privilege to look up: not here
        jnz     3b
        test    esi, esi
        jz      3b
        mov     r9, [rax + C_FAST_AT]
        lea     r10, [r9 + rcx]
        cmp     r10, [rax + C_FAST_END]
        ja      3b
        mov     [rax + C_FAST_AT], r10
        cmp     ecx, 2
        ja      4f
        jb      5f
        movzx   eax, word ptr [r9]
        ret
4:      mov     eax, [r9]
        ret
5:      movzx   eax, byte ptr [r9]
        ret

# A callback asked to stop or raised a fault: rewind to the start of the instruction and leave the loop.
# At rdi: env. On the stack: the return address in the translated code.
leave_: mov     rsi, [rsp]
        lea     rdi, [rdi - ENV]
        sub     rsp, 8
        call    [rip + loop_exit_restore]

        .balign 16
rdmsr:  mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        mov     r9, [rsp]
        mov     [rax + C_RETADDR], r9
        push    rdi
        mov     edi, [rdi + E_RCX]
        call    [rax + C_RDMSR]
        pop     rdi
        test    eax, eax
        jz      check
1:      jmp     [rip + orig_rdmsr]

        .balign 16
wrmsr:  mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        mov     ecx, [rdi + E_RCX]
        lea     edx, [ecx - 0xc0000100]         # FS, GS and kernel GS base are loaded at every context switch
        cmp     edx, 3
        jb      1f
        mov     r9, [rsp]
        mov     [rax + C_RETADDR], r9
        mov     esi, [rdi + 16]                 # EDX:EAX
        shl     rsi, 32
        mov     edx, [rdi]
        or      rsi, rdx
        push    rdi
        mov     edi, ecx
        call    [rax + C_WRMSR]
        pop     rdi
        test    eax, eax
        jz      check
1:      jmp     [rip + orig_wrmsr]

        .balign 16
cpuid:  mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        mov     r9, [rsp]
        mov     [rax + C_RETADDR], r9
        push    rdi
        call    [rax + C_CPUID]
        pop     rdi
        jmp     check
1:      jmp     [rip + orig_cpuid]

        .balign 16
read_crN:
        mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        cmp     esi, 8
        jne     2f
        sub     rsp, 8
        call    [rax + C_READ_CR8]
        add     rsp, 8
        ret
2:      cmp     esi, 2                          # CR2 is what the processor last put there
        je      1f
        mov     rax, [rax + C_READ_CR]
        test    rax, rax
        jz      1f
        mov     edi, esi
        sub     rsp, 8
        call    rax
        add     rsp, 8
        ret
1:      jmp     [rip + orig_read_crN]

        .balign 16
write_crN:
        mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      1f
        cmp     esi, 8
        jne     2f
        push    rdi
        mov     rdi, rdx
        call    [rax + C_WRITE_CR8]
        pop     rdi
        jmp     check
2:      mov     rax, [rax + C_WRITE_CR]
        test    rax, rax
        jz      1f
        mov     r9, [rsp]
        mov     rcx, [rdi + E_CTX]
        mov     [rcx + C_RETADDR], r9
        push    rdi
        mov     edi, esi
        mov     rsi, rdx
        call    rax
        pop     rdi
        jmp     check
1:      jmp     [rip + orig_write_crN]

# SYSCALL (SDM volume 2, SYSCALL; AMD APM volume 3 for the compatibility-mode target).
# rdi: env, esi: length of the instruction.
        .balign 16
syscall_:
        mov     rax, [rdi + E_CTX]
        test    rax, rax
        jz      9f
        mov     rdx, rax
        mov     rax, [rax + C_SYSCALL]
        test    rax, rax
        jz      7f
        test    byte ptr [rdi + E_HFLAGS], 3
        jnz     7f
        mov     rcx, [rdx + C_SHORT_NR]
        cmp     rcx, [rdi]
        je      5f
        movsxd  rsi, esi                        # a supervised kernel calls its hypervisor, and goes on behind it
        add     [rdi + E_EIP], rsi
        push    rdi
        mov     rcx, [rdx + C_NATIVE]
        test    rcx, rcx
        jz      3f
        push    rax
        sub     rsp, 8
        mov     rsi, [rdx + C_NATIVE_ST]
        call    rcx
        add     rsp, 8
        pop     rcx
        test    rax, rax
        mov     rdi, [rsp]
        jz      2f
        pop     rdi
        cmp     rax, 1
        je      4f
        mov     rsi, rax
        jmp     [rip + update_cr3]
4:      ret
2:      mov     rax, rcx
3:      call    rax
        pop     rdi
        cmp     dword ptr [rdi + CPU_EXC - ENV], -1
        jne     6f
        ret
5:      mov     rdx, [rdx + C_SHORT_RIP]
        mov     [rdi + E_EIP], rdx
        ret
6:      lea     rdi, [rdi - ENV]
        sub     rsp, 8
        call    [rip + loop_exit]
7:
        test    byte ptr [rdi + E_EFER], 1      # SCE
        jz      8f
        test    dword ptr [rdi + E_HFLAGS], 1 << 14     # LMA
        jz      8f
        push    rbx
        push    rbp
        push    r12
        mov     rbx, rdi
        movsxd  r12, esi
        add     r12, [rbx + E_EIP]
        mov     esi, [rbx + E_CC_OP]
        call    [rip + cc_compute_all]
        mov     edx, [rbx + E_EFLAGS]
        and     edx, 0xfffff32a
        mov     ecx, [rbx + E_DF]
        and     ecx, 0x400
        or      eax, edx
        or      eax, ecx
        and     eax, 0xfffeffff                 # RF is not saved
        mov     [rbx + E_R11], rax
        mov     [rbx + E_RCX], r12
        mov     rdx, [rbx + E_FMASK]
        not     edx
        and     eax, edx
        mov     edx, eax
        and     edx, 0x8d5
        mov     [rbx + E_CC_SRC], rdx
        mov     dword ptr [rbx + E_CC_OP], 1    # the flags are in CC_SRC
        mov     edx, eax
        shr     edx, 10
        and     edx, 1
        add     edx, edx
        mov     ecx, 1
        sub     ecx, edx
        mov     [rbx + E_DF], ecx
        and     eax, 0xfffff32a
        or      eax, 2
        mov     [rbx + E_EFLAGS], rax
        movzx   eax, word ptr [rbx + E_STAR + 4]
        and     eax, 0xfffc
        mov     [rbx + E_CS], eax
        mov     qword ptr [rbx + E_CS + 8], 0
        mov     dword ptr [rbx + E_CS + 16], -1
        mov     dword ptr [rbx + E_CS + 20], 0x00a09b00
        add     eax, 8
        mov     [rbx + E_SS], eax
        mov     qword ptr [rbx + E_SS + 8], 0
        mov     dword ptr [rbx + E_SS + 16], -1
        mov     dword ptr [rbx + E_SS + 20], 0x00c09300
        mov     eax, [rbx + E_HFLAGS]
        mov     rdx, [rbx + E_LSTAR]
        test    eax, 1 << 15                    # CS64: came from 64-bit mode
        cmovz   rdx, [rbx + E_CSTAR]
        and     eax, ~(3 | 1 << 6)              # CPL 0, no ADDSEG
        or      eax, 1 << 4 | 1 << 5 | 1 << 15  # CS32, SS32, CS64
        mov     [rbx + E_HFLAGS], eax
        mov     [rbx + E_EIP], rdx
        pop     r12
        pop     rbp
        pop     rbx
        ret
8:      mov     rcx, [rsp]
        mov     esi, 6
        xor     edx, edx
        sub     rsp, 8
        call    [rip + raise_err_ra]
9:      jmp     [rip + orig_syscall]

# Hook UC_HOOK_INTR(uc, vector, user data): an exception or a software interrupt is to be delivered.
        .balign 16
exception:
        push    rbx
        mov     rbx, [rdi + UC_CPU]
        mov     rax, [rbx + ENV + E_CTX]
        cmp     esi, 32
        jae     2f
        inc     qword ptr [rax + C_VECTORS + rsi * 8]
        # The library puts an IDT index of 64-bit mode into the error code of #NP and #GP doubled (SDM 6.13: index * 8).
        mov     ecx, [rbx + ENV + E_ERROR]
        and     ecx, 15
        cmp     ecx, 2
        jne     6f
        cmp     esi, 11
        je      7f
        cmp     esi, 13
        jne     6f
7:      test    dword ptr [rbx + ENV + E_HFLAGS], 1 << 14
        jz      6f
        mov     ecx, [rbx + ENV + E_ERROR]
        mov     edx, ecx
        and     edx, 3
        shr     ecx, 4
        shl     ecx, 3
        or      ecx, edx
        mov     [rbx + ENV + E_ERROR], ecx
6:
        bt      dword ptr [rax + C_TRAP_MASK], esi
        jnc     2f
        cmp     esi, 14
        jne     8f
        mov     ecx, [rbx + ENV + E_ERROR]
        xor     ecx, [rax + C_PF_MATCH]
        test    ecx, [rax + C_PF_MASK]
        jnz     2f
8:      push    rsi
        sub     rsp, 8
        mov     edi, esi
        call    [rax + C_TRAP]
        add     rsp, 8
        pop     rsi
        test    eax, eax
        jz      2f
        cmp     eax, 2
        jae     5f
        pop     rbx
        ret
2:      cmp     dword ptr [rbx + ENV + E_IS_INT], 0
        je      4f
        # The library has stepped over INT n already. A fault in the delivery has to name the INT itself: one byte
        # for INT3 and INTO, two for the others.
        mov     rcx, [rbx + ENV + E_NEXT_EIP]
        dec     rcx
        lea     eax, [rsi - 3]
        cmp     eax, 2
        jb      3f
        dec     rcx
3:      mov     [rbx + ENV + E_EIP], rcx
4:      mov     rdi, rbx
        pop     rbx
        jmp     [rip + do_interrupt]
5:      mov     dword ptr [rbx + CPU_EXC], 0x10000      # EXCP_INTERRUPT: leave, deliver nothing
        mov     rdi, rbx
        call    [rip + loop_exit]

# cpu_exec_interrupt(cpu, request): called while request is not zero. Bit 1 is ours: ask the local APIC.
        .balign 16
exec_interrupt:
        test    esi, 0x200 | 0x40 | 0x10 | 0x800        # NMI, SMI, poll, SIPI come first
        jz      1f
        push    rdi
        push    rsi
        sub     rsp, 8
        and     esi, ~2                                 # the library would deliver vector 0 for it
        call    [rip + exec_interrupt_orig]
        add     rsp, 8
        pop     rsi
        pop     rdi
        test    al, al
        jnz     3f
1:      test    esi, 2
        jz      2f
        test    byte ptr [rdi + ENV + E_EFLAGS + 1], 2  # IF
        jz      2f
        test    byte ptr [rdi + ENV + E_HFLAGS], 8      # the shadow of STI or MOV SS
        jnz     2f
        push    rbx
        mov     rbx, rdi
        push    r12
        sub     rsp, 8
        mov     r12, [rbx + ENV + E_CTX]
        call    [r12 + C_INTA]
        test    eax, eax
        js      4f
        mov     [r12 + C_INFLIGHT], eax
        mov     esi, eax
        mov     edx, 1
        lea     rdi, [rbx + ENV]
        call    [rip + do_hardirq]                      # a fault here leaves INFLIGHT set: it is delivered again
        mov     dword ptr [r12 + C_INFLIGHT], -1
        cmp     dword ptr [r12 + C_MORE], 0
        jne     5f
        and     dword ptr [rbx + CPU_IREQ], ~2
5:      mov     eax, 1
        jmp     6f
4:      and     dword ptr [rbx + CPU_IREQ], ~2
        xor     eax, eax
6:      add     rsp, 8
        pop     r12
        pop     rbx
        ret
2:      xor     eax, eax
3:      ret

# The callbacks of uc_mmio_map(uc, offset, size, ...): user data is the base of the mapping.
#
# mem_io_pc names the instruction whose access this is. The library sets it before each access of an instruction, sets it to
# zero when it delivers an exception, and leaves it alone when it walks page tables. So it is taken away here: zero means
# that the processor looks on its own behalf. The later parts of one access, which are called for without setting it again,
# are known by their address.
        .macro mmio_begin cpu, gpa, pc                  # rax: the context. esi: the size in edx, with 0x100 for "own"
        mov     rax, [\cpu + ENV + E_CTX]
        mov     \pc, [\cpu + CPU_IO_PC]
        mov     qword ptr [\cpu + CPU_IO_PC], 0
        mov     esi, edx
        test    \pc, \pc
        jnz     2f
        cmp     \gpa, [rax + C_NEXT]
        cmove   \pc, [rax + C_RETADDR]
        test    \pc, \pc
        jnz     2f
        or      esi, 0x100
2:      mov     [rax + C_RETADDR], \pc
        lea     r11, [\gpa + rdx]
        mov     [rax + C_NEXT], r11
        push    \cpu
        push    \pc
        sub     rsp, 8
        .endm

        .balign 16
mmio_read:
        mov     r8, [rdi + UC_CPU]
        lea     rdi, [rsi + rcx]
        mov     edx, edx
        mmio_begin r8, rdi, r9
        call    [rax + C_MMIO_READ]
        jmp     mmio_check
        .balign 16
mmio_write:                                     # (uc, offset, size, value, user data)
        mov     r9, [rdi + UC_CPU]
        lea     rdi, [rsi + r8]
        mov     edx, edx
        mmio_begin r9, rdi, r10
        mov     rdx, rcx
        call    [rax + C_MMIO_WRITE]
mmio_check:                                     # only for "stop": while an exception is delivered, its vector stands there
        add     rsp, 8
        pop     rsi
        pop     rdi
        cmp     dword ptr [rdi + CPU_EXC], 0x10000
        je      1f
        ret
1:      sub     rsp, 8
        call    [rip + loop_exit_restore]

# cpu_abort(cpu, ...): the library ends the process where the guest needs a stack from the task-state segment and TR has none
# (LTR of a null selector gets it there). A processor raises #TS.
        .balign 16
abort_: mov     rax, [rdi + ENV + E_CTX]
        test    rax, rax
        jz      1f
        mov     edx, [rdi + ENV + E_TR]
        and     edx, 0xfffc
        lea     rdi, [rdi + ENV]
        mov     esi, 10
        xor     ecx, ecx
        sub     rsp, 8
        call    [rip + raise_err_ra]
1:      jmp     [rip + orig_abort]

# check_exit_request(uc, delay slot): each block of translated code begins by calling this, which is a quarter of the time of
# code with short blocks. So the first call puts a comparison in the place of the call's arguments:
#       mov rdi, uc; xor esi, esi; call [rip + n]    becomes    cmp dword ptr [rbp - 16], 0; jns behind; nop; call [rip + n]
# `behind` is behind the call, whose return address stays what the library knows. Translated code has env in rbp.
        .balign 16
check_exit:
        mov     rax, [rbp + E_CTX]
        test    rax, rax
        jz      3f
        mov     rdx, [rsp]
        cmp     word ptr [rdx - 18], 0xbf48
        jne     1f
        cmp     dword ptr [rdx - 8], 0x15fff633
        jne     1f
        mov     rcx, 0x0f660c7900f07d83
        mov     [rdx - 18], rcx
        mov     dword ptr [rdx - 10], 0x0000441f
1:      cmp     dword ptr [rbp + CPU_ICOUNT - ENV], 0
        js      2f
        ret
2:      mov     rdi, [rax + C_UC]
        xor     esi, esi
3:      jmp     [rip + orig_check_exit]

# u64 rdtsc(): the host's time-stamp counter, which the guest's is an offset from.
        .balign 16
rdtsc:  rdtsc
        shl     rdx, 32
        or      rax, rdx
        ret

# Hook UC_HOOK_MEM_WRITE(uc, type, address, size, value, user data): mark the pages of a store in a slot's byte map.
# User data: the slot's address, its number of pages, its byte map.
        .balign 16
stored: sub     rdx, [r9]
        lea     rcx, [rdx + rcx - 1]
        shr     rdx, 12
        shr     rcx, 12
        mov     rax, [r9 + 16]
        cmp     rdx, [r9 + 8]
        jae     1f
        mov     byte ptr [rax + rdx], 1
1:      cmp     rcx, [r9 + 8]
        jae     2f
        mov     byte ptr [rax + rcx], 1
2:      ret

# Hook UC_HOOK_CODE(uc, address, size, user data): the host's breakpoint on execution.
        .balign 16
code:   push    rbx
        mov     rbx, [rdi + UC_CPU]
        mov     rax, [rbx + ENV + E_CTX]
        mov     rdi, rsi
        push    rsi
        sub     rsp, 8
        call    [rax + C_BREAK]
        add     rsp, 8
        pop     rsi
        test    eax, eax
        jnz     1f
        pop     rbx
        ret
1:      sub     rsi, [rbx + ENV + E_CS + 8]
        mov     [rbx + ENV + E_EIP], rsi
        mov     dword ptr [rbx + CPU_EXC], 0x10000
        mov     rdi, rbx
        call    [rip + loop_exit]

# Hook UC_HOOK_MEM_FETCH_PROT(uc, type, address, size, value, user data): the guest jumped to where no memory is. The library
# alone would note the error, and translate zeros until something stops it.
        .balign 16
fetch:  mov     dword ptr [rdi + UC_ERROR], FETCH_PROT
        mov     rdi, [rdi + UC_CPU]
        mov     dword ptr [rdi + CPU_EXC], 0x10000
        sub     rsp, 8
        call    [rip + loop_exit]

# Memory that holds code.
#
# The library marks a page's writable translations as "not dirty" when it translates code from it, so that a store finds
# out. But it marks only the linear address that the code ran at; a store through another mapping of the page (Linux's
# direct map) is not seen, and stale code runs. And it never takes the mark off a page that may be executed, so that every
# store to a kernel's data, which is executable until late in its boot, goes the slow way. Here it is done as in QEMU: by
# the page's memory, for all its mappings, with a map of the pages that hold code.

# MemoryRegion *find_memory_mapping(uc, address): asked at every slow access; nearly always it is RAM.
        .balign 16
find_mapping:
        mov     rax, [rdi + UC_CPU]
        test    rax, rax
        jz      2f
        mov     r8, [rax + ENV + E_CTX]
        test    r8, r8
        jz      2f
        mov     rdx, rsi
        sub     rdx, [r8 + C_RAM]
        cmp     rdx, [r8 + C_RAM + 8]
        jae     1f
        mov     rax, [r8 + C_RAM + 16]
        ret
1:      mov     rdx, rsi
        sub     rdx, [r8 + C_RAM + 24]
        cmp     rdx, [r8 + C_RAM + 32]
        jae     2f
        mov     rax, [r8 + C_RAM + 40]
        ret
2:      jmp     [rip + orig_find_mapping]

# tlb_protect_code(uc, address in RAM): the page gets its first code.
        .balign 16
protect_code:
        mov     rax, [rdi + UC_CPU]
        test    rax, rax
        jz      1f
        mov     r8, [rax + ENV + E_CTX]
        test    r8, r8
        jz      1f
        mov     rdx, rsi
        shr     rdx, 12
        cmp     rdx, [r8 + C_CODE_PAGES]
        jae     1f
        mov     rcx, [r8 + C_CODE_MAP]
        mov     r9, [r8 + C_CODE_BIT]
        or      byte ptr [rcx + rdx], r9b
        push    [r8 + C_PEERS]
        push    rax
        sub     rsp, 8
        mov     rdx, rsi
        and     rdx, -4096
        xor     esi, esi
        call    [rip + map_ram_ptr]
        add     rsp, 8
        pop     rdi
        pop     rcx
        mov     rsi, rax
        mov     edx, 4096
        test    rcx, rcx
        jz      3f
        push    rbx
        push    r12
        sub     rsp, 8
        mov     rbx, rcx
        mov     r12, rax
2:      call    [rip + tlb_reset_dirty]         # the others find out too when they store to it
        mov     rdi, [rbx]
        add     rbx, 16
        mov     rsi, r12
        mov     edx, 4096
        test    rdi, rdi
        jz      4f
        mov     rdi, [rdi + UC_CPU]
        jmp     2b
4:      add     rsp, 8
        pop     r12
        pop     rbx
        ret
3:      jmp     [rip + tlb_reset_dirty]
1:      jmp     [rip + orig_protect_code]

# tlb_reset_dirty_by_vaddr(cpu, start, length): what protect_code did is enough.
        .balign 16
protect_linear:
        cmp     qword ptr [rdi + ENV + E_CTX], 0
        je      1f
        ret
1:      jmp     [rip + orig_protect_linear]

# tb_invalidate_phys_page_fast(uc, pages, address in RAM, length, retaddr): a store to a page whose translation is marked.
# Its one caller keeps the CPUTLBEntry in rbp.
        .balign 16
page_fast:
        mov     rax, [rdi + UC_CPU]
        mov     r9, [rax + ENV + E_CTX]
        test    r9, r9
        jz      3f
        mov     r10, rdx
        shr     r10, 12
        cmp     r10, [r9 + C_CODE_PAGES]
        jae     3f
        mov     r11, [r9 + C_CODE_MAP]
        movzx   eax, byte ptr [r11 + r10]
        test    eax, eax
        jz      4f
        cmp     eax, [r9 + C_CODE_BIT]
        jne     forget_elsewhere
5:      test    byte ptr [r11 + r10], 0xff
        jnz     2f
4:
        cmp     qword ptr [rdi + UC_HOOKS_WRITE], 0     # a dirty log wants to see every store
        jne     1f
        cmp     qword ptr [rdi + UC_HOOKS_READ], 0
        jne     1f
        and     qword ptr [rbp + TLB_WRITE], ~TLB_NOTDIRTY
1:      ret
2:      cmp     qword ptr [rbp + TLB_CODE], -1
        jne     3f
        # Through a mapping that cannot be executed: the caller takes the mark off, so all of the page's code has to go.
        mov     byte ptr [r11 + r10], 0
        mov     rsi, rdx
        and     rsi, -4096
        lea     rdx, [rsi + 4096]
        jmp     [rip + invalidate_range]
3:      jmp     [rip + orig_page_fast]

# Others have translated code of this page. None of them executes now: it is this one's turn.
forget_elsewhere:
        push    rdi
        push    rsi
        push    rdx
        push    rcx
        push    r8
        push    r9
        push    rbx
        push    r12
        push    r13
        mov     rbx, [r9 + C_PEERS]
        lea     r12, [r11 + r10]
        mov     r13, rdx
        and     r13, -4096
        test    rbx, rbx
        jz      3f
1:      mov     rdi, [rbx]
        test    rdi, rdi
        jz      3f
        mov     rax, [rbx + 8]
        test    [r12], al
        jz      2f
        not     eax
        and     [r12], al
        mov     rsi, r13
        lea     rdx, [r13 + 4096]
        call    [rip + invalidate_range]
2:      add     rbx, 16
        jmp     1b
3:      pop     r13
        pop     r12
        pop     rbx
        pop     r9
        pop     r8
        pop     rcx
        pop     rdx
        pop     rsi
        pop     rdi
        mov     r11, [r9 + C_CODE_MAP]
        mov     r10, rdx
        shr     r10, 12
        jmp     5b
