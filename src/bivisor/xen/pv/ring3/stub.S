# What runs at CPL 0 of a PV domain's machine on engine `kvm`, where kernel and programs are both at CPL 3: it makes Xen's
# bounce frames of exceptions, system calls and events, carries out HYPERVISOR_iret, and lets hypercalls out
# (arch-x86/xen.h, arch-x86/xen-x86_64.h). Its bytes stand in stub.py; a test assembles this file again and compares:
#     as stub.S -o s.o && objcopy -O binary -j .text s.o s.bin
#
# Each instruction counts: a KVM that runs guests' CPL 3 alone at the processor's speed interprets these, at half a
# microsecond each. So it has no registers of its own: each virtual processor enters at the top T of its own stack, and
# what belongs to the processor is found from there. From its lowest address a frame is RCX, R11, [error code], RIP, CS,
# RFLAGS, RSP, SS, here as on the guest's stack. R11 is the number of the handler: a vector, EVENT or SYSCALL.
#
# IST 1 leads to T, so that a fault of the stub's own (a guest's stack that is not there) has a place; its CS tells.
# IST 2 leads to T + 2048, for exceptions that IRETQ can have itself; those the host looks at first.

        .intel_syntax noprefix
        .text

        .set MODE,      0                       # u8: 1 while the kernel runs, 0 while a program does
        .set WORK,      1                       # u8: the host has left stores and an address space to load; ONE: after
                                                # CALL, a store alone, its address in RCX and what in R11
        .set BOUNCE,    2                       # u8: after TRAP, whether the guest gets it; OTHER: as one that has an
                                                # error code if this has none, and the other way round
        .set OTHER,     2
        .set ONE,       2
        .set INDEX,     4                       # u32: the number of the processor
        .set INFO,      8                       # where struct vcpu_info is
        .set KSP,       16                      # the kernel's stack, for entries from programs
        .set KROOT,      24
        .set UROOT,      32
        .set ROOT,      40                      # what WORK is to load, 0 for nothing
        .set SAVED_RSP, 48
        .set EARLIEST,  56                      # s64, system time: a timer set for then or later need not come out
        .set DEADLINE,  64                      # s64: to when it was set
        .set HANDLERS,  0x1000                  # u64[258]
        .set FLAGS,     0x1820                  # u8[258]: 4 where it wants events masked
        .set STORES,    0x2000                  # {u64 address, u64 value}, up to an address of 0; then addresses of
                                                # what are no page tables any more, up to 0
        .set SECOND,    2048                    # from T to the top of the second stack

        .set EVENT,     256
        .set SYSCALL,   257
        .set KERNEL_CS, 0xe030                  # what Xen tells the kernel of itself
        .set GUEST_CS,  0xe033
        .set GUEST_SS,  0xe02b
        .set INFO_MASK, 1
        .set INFO_CR2,  16
        .set PLAIN,     0x202                   # RFLAGS with IF alone
        .set GATE,      0xffff8100              # the upper half of the address where SYSCALL comes in at CPL 3

        .set shorter,   start + 0x2000 + 16     # `some` in near.S
        .set SOME,      1 << 3 | 1 << 17 | 1 << 25 # the hypercalls that it knows

        .set CALL_PORT,  0xe8
        .set TRAP_PORT,  0xe9
        .set CRASH_PORT, 0xea

start:
        .set vector, 0                          # 256 entries of 16 bytes
        .rept 256
        .balign 16, 0xcc
        .if vector == 3
        jmp     breakpoint
        .elseif vector == 0xf0
        push    r11
        push    rcx
        jmp     upcall
        .else
        push    r11
        mov     r11d, vector
        .endif
        .if vector == 3 || vector == 0xf0
        .elseif vector == 10 || vector == 11 || vector == 12 || vector == 13 || vector == 17 || vector == 21
        jmp     host_first_second
        .elseif vector == 14
        jmp     page_fault
        .elseif vector == 8
        jmp     crash
        .elseif vector == 1 || vector == 6 || vector == 7
        jmp     host_first
        .else
        jmp     without_error
        .endif
        .set vector, vector + 1
        .endr

        .balign 64, 0xcc
entries:                                        # offsets that stub.py's user reads
        .long   system_call - start, iretq_ - start, without - start, native - start, native_end - start
        .long   timeout - start, give_back - start, come_out - start
        .skip   116                             # so that each entry has a jump of the same size

# \n qwords are on the stack, T is \n * 8 above. The frame goes to the kernel's stack, and the kernel to its handler.
        .macro bounce n, cs
        mov     rcx, [rsp + 8 * \n + INFO]
        cmp     byte ptr [rcx + INFO_MASK], 0
        je      1f
        mov     byte ptr [rsp + \cs + 4], 1
        and     byte ptr [rsp + \cs + 9], 0xfd
1:      test    byte ptr [rsp + r11 + 8 * \n + FLAGS], 4
        jz      2f
        mov     byte ptr [rcx + INFO_MASK], 1
2:      cmp     byte ptr [rsp + 8 * \n + MODE], 0
        je      3f
        mov     ecx, [rsp + \cs]                # at CPL 0 this is a fault of the stub's own
        test    cl, 3
        jz      crash
        mov     word ptr [rsp + \cs], KERNEL_CS
        mov     ecx, [rsp + \cs + 20]           # RSP must not be in the hypervisor's part
        sub     ecx, 0xffff8000
        cmp     ecx, 0x800
        jb      crash
        mov     rcx, [rsp + \cs + 16]
        and     rcx, -16
        jmp     4f
3:      swapgs
        mov     rcx, [rsp + 8 * \n + KROOT]
        mov     cr3, rcx
        mov     byte ptr [rsp + 8 * \n + MODE], 1
        mov     rcx, [rsp + 8 * \n + KSP]
4:      .set at, 8 * \n
        .rept \n
        pop     [rcx - at]
        .set at, at - 8
        .endr
        mov     r11, [rsp + r11 * 8 + HANDLERS]
        lea     rsp, [rcx - 8 * \n]
        mov     rcx, r11
        mov     r11d, PLAIN
        sysretq
        .endm

# The host's stores to page tables, and its address space. T is \n * 8 above; RCX and R11 are free.
        .macro work n
        mov     byte ptr [rsp + 8 * \n + WORK], 0
        push    rax
        lea     r11, [rsp + 8 + 8 * \n + STORES]
        jmp     6f
5:      mov     rax, [r11 + 8]
        mov     [rcx], rax
        add     r11, 16
6:      mov     rcx, [r11]
        test    rcx, rcx
        jnz     5b
        jmp     9f
8:      lock or word ptr [rcx], 0               # two bytes: the engine takes it for a page table no longer
        add     r11, 8
9:      mov     rcx, [r11 + 8]
        test    rcx, rcx
        jnz     8b
        mov     rcx, [rsp + 8 + 8 * \n + ROOT]
        test    rcx, rcx
        jz      7f
        mov     cr3, rcx
7:      pop     rax
        .endm

        .balign 16, 0xcc
without_error:
        push    rcx
without:
        bounce  7, 24

        .balign 16, 0xcc
page_fault:
        push    rcx
        mov     rcx, cr2
        cmp     byte ptr [rsp + 64 + MODE], 0
        je      1f
        and     byte ptr [rsp + 16], 0xfb       # Xen's kernel has privilege in error codes
        cmp     byte ptr [rsp + 16], 3
        je      host_with                       # with the address in RCX
1:      mov     r11, [rsp + 64 + INFO]
        mov     [r11 + INFO_CR2], rcx
        mov     r11d, 14
with:   bounce  8, 32

# The host looks first: R11 is the vector, and the frame is complete. It may change it, and all registers.
host_first:
        push    rcx
        out     TRAP_PORT, al
        cmp     byte ptr [rsp + 56 + BOUNCE], OTHER
        je      2f
        cmp     byte ptr [rsp + 56 + BOUNCE], 0
        jne     without
        cmp     byte ptr [rsp + 56 + WORK], 0
        je      1f
        work    7
1:      pop     rcx
        pop     r11
        iretq
2:      sub     rsp, 8
        jmp     with

        .balign 16, 0xcc
host_first_second:
        push    rcx
        sub     rsp, SECOND                     # the host brings the frame
host_with:
        out     TRAP_PORT, al
        cmp     byte ptr [rsp + 64 + BOUNCE], OTHER
        je      2f
        cmp     byte ptr [rsp + 64 + BOUNCE], 0
        jne     with
        cmp     byte ptr [rsp + 64 + WORK], 0
        je      1f
        work    8
1:
give_back:
        pop     rcx
        pop     r11
        add     rsp, 8
        iretq
2:      add     rsp, 8
        jmp     without

crash:  out     CRASH_PORT, al
        jmp     crash

# INT3: that of a program, or of the gate where SYSCALL comes in at CPL 3 (RCX: the address behind it, R11: RFLAGS).
        .balign 16, 0xcc
breakpoint:
        cmp     dword ptr [rsp + 4], GATE
        jne     1f
system_call:
        cmp     byte ptr [rsp + 40 + MODE], 0
        je      program
        cmp     eax, 23
        je      iret_
        cmp     eax, 24
        je      vcpu_op
        mov     r11d, SOME
        bt      r11d, eax
        jc      shorter
come_out:
        out     CALL_PORT, al
        cmp     byte ptr [rsp + 40 + WORK], 0
        jne     called_with_work
called: mov     r11, [rsp + 40 + INFO]
        cmp     word ptr [r11], 1               # pending, and not masked
        je      event_after_call
        mov     rsp, [rsp + 24]
        mov     r11d, PLAIN
        sysretq
1:      push    r11
        mov     r11d, 3
        jmp     host_first                      # it may be a debugger's

called_with_work:
        cmp     byte ptr [rsp + 40 + WORK], ONE
        jne     1f
        mov     [rcx], r11
        mov     byte ptr [rsp + 40 + WORK], 0
        mov     rcx, [rsp]
        jmp     called
1:      mov     [rsp], rcx
        work    5
        mov     rcx, [rsp]
        jmp     called

event_after_call:
        mov     r11d, PLAIN
        mov     [rsp], rcx
        mov     [rsp + 16], r11
        mov     qword ptr [rsp + 8], GUEST_CS
        mov     qword ptr [rsp + 32], GUEST_SS
event:  push    r11
        push    rcx
        mov     r11d, EVENT
        jmp     without

program:
        mov     [rsp], rcx
        mov     [rsp + 16], r11
        mov     qword ptr [rsp + 8], GUEST_CS
        mov     qword ptr [rsp + 32], GUEST_SS
        push    r11
        push    rcx
        mov     r11d, SYSCALL
        jmp     without

# VCPUOP_set_singleshot_timer of the processor itself, to a time at which the host looks anyway: RDX leads to the time.
# A fault there is the host's, which finds the kernel's stack in RAX, and goes on at give_back.
vcpu_op:
        cmp     edi, 8
        jne     shorter
        cmp     esi, [rsp + 40 + INDEX]
        jne     come_out
        mov     rax, [rsp + 24]
timeout:
        mov     r11, [rdx]
        cmp     r11, [rsp + 40 + EARLIEST]
        jl      1f
        mov     [rsp + 40 + DEADLINE], r11
        mov     rsp, rax
        xor     eax, eax
        mov     r11d, PLAIN
        sysretq
1:      mov     eax, 24
        jmp     come_out

# HYPERVISOR_iret. On the guest's stack: RAX, R11, RCX, flags, RIP, CS, RFLAGS, RSP, SS (struct iret_context).
iret_:  mov     rax, [rsp + 24]
        add     rsp, 40
        push    [rax + 64]
        push    [rax + 56]
        push    [rax + 48]
        mov     ecx, [rax + 40]
        push    rcx
        push    [rax + 32]
        mov     r11, [rsp + 40 + INFO]
        test    byte ptr [rsp + 17], 2
        setz    byte ptr [r11 + INFO_MASK]
        or      byte ptr [rsp + 32], 3
        and     qword ptr [rsp + 16], 0x240dd5  # without IOPL, NT, VM, RF
        or      dword ptr [rsp + 16], PLAIN
        cmp     word ptr [r11], 1
        je      event_before_return
        mov     r11, [rax + 8]
        test    cl, 3
        jz      1f
        push    [rax + 16]
        mov     rcx, [rsp + 48 + UROOT]
        mov     rax, [rax]
        jrcxz   2f
        mov     cr3, rcx
        swapgs
        mov     byte ptr [rsp + 48 + MODE], 0
        pop     rcx
iretq_: iretq
1:      mov     qword ptr [rsp + 8], GUEST_CS
        mov     rcx, [rax + 16]
        mov     rax, [rax]
        jmp     iretq_
2:      jmp     crash

event_before_return:
        push    [rax + 8]
        push    [rax + 16]
        mov     rax, [rax]
        test    cl, 3
        jnz     upcall_of_program
        mov     qword ptr [rsp + 24], GUEST_CS
        jmp     upcall_of_kernel

# An event: an interrupt of the host's, which comes at CPL 3 only.
        .balign 16, 0xcc
upcall: cmp     byte ptr [rsp + 56 + MODE], 0
        jne     1f
        swapgs
        mov     r11, [rsp + 56 + KROOT]
        mov     cr3, r11
        mov     byte ptr [rsp + 56 + MODE], 1
upcall_of_program:                              # of what was to be returned to, or has just been left
        mov     rcx, [rsp + 56 + INFO]
        mov     byte ptr [rcx + INFO_MASK], 1
        mov     r11, [rsp + 56 + KSP]
        .irp at, 56, 48, 40, 32, 24, 16, 8
        pop     [r11 - \at]
        .endr
        mov     rcx, [rsp + 8 * EVENT + HANDLERS]
        lea     rsp, [r11 - 56]
        mov     r11d, PLAIN
        sysretq
1:      mov     rcx, [rsp + 56 + INFO]
        cmp     word ptr [rcx], 1
        jne     2f
upcall_of_kernel:
        mov     r11d, EVENT
        jmp     without
2:      pop     rcx
        pop     r11
        iretq

# Where SYSCALL brings the processor to CPL 0, it comes here: a copy for each processor, in the page before its stack.
        .balign 16, 0xcc
native: mov     [rip + native + 4096 + 4096 + SAVED_RSP], rsp
        lea     rsp, [rip + native + 4096 + 4096]
        push    GUEST_SS
        push    [rsp + 8 + SAVED_RSP]
        push    r11
        push    GUEST_CS
        push    rcx
        .byte   0xff, 0x25                      # jmp [rip]
        .long   0
native_end:
