# What stands between a PV kernel and the processor inside its domain: exceptions, system calls and events become Xen's
# bounce frames here (arch-x86/xen.h, arch-x86/xen-x86_64.h), and the frame of HYPERVISOR_iret becomes a return. Its
# bytes stand in stub.py; a test assembles this file again and compares:
#     as stub.S -o s.o && objcopy -O binary -j .text s.o s.bin
#
# It runs at CPL 0 with interrupts off, in pages that only the hypervisor's part of the address space has. The kernel
# above it runs at CPL 0 too, in a machine that holds nothing but its own domain, and its programs at CPL 3. A frame on the
# kernel's stack is, from its lowest address: RCX, R11, [error code], RIP, CS with the event mask in bits 32 to 39, RFLAGS,
# RSP, SS; a handler begins by taking RCX and R11, so both are free here once they are pushed. A stack that cannot take the
# frame ends in the double fault, which has a stack of its own.

        .intel_syntax noprefix
        .text

        .set D_TRAPS,      0                    # u64[256]: the guest's handler of each vector, 0 for none
        .set D_FLAGS,      2048                 # u8[256]: 4 where it wants events masked
        .set D_INFO,       2304                 # where struct vcpu_info is
        .set D_EVENT,      2312                 # callbacks
        .set D_SYSCALL,    2320
        .set D_SYSCALL32,  2328
        .set D_MASK,       2336                 # u8: 1 where the system call callback wants events masked
        .set D_MASK32,     2337
        .set D_IOPL,       2344                 # u64: what user programs have in RFLAGS.IOPL
        .set D_RAX,        2352
        .set D_RSP,        2360
        .set D_CS,         2368
        .set DATA,         0x4000               # from the start of this code
        .set STACK0,       0x5004               # TSS.RSP0

        .set KERNEL_CS,    0xe008
        .set GUEST_CS,     0xe030               # what Xen tells the kernel of itself, its privilege level taken off
        .set USER_CS,      0xe033
        .set USER_CS32,    0xe023
        .set USER_SS,      0xe02b
        .set INFO_PENDING, 0
        .set INFO_MASK,    1
        .set INFO_CR2,     16
        .set CRASH,        0x80000000           # calls to the hypervisor: see guest.py
        .set EVENTS,       0x80000001

start:
        .set vector, 0                          # 256 entries of 16 bytes
        .rept 256
        .balign 16
        push    r11
        push    rcx
        mov     ecx, vector
        .if vector == 8 || vector == 10 || vector == 11 || vector == 12 || vector == 13 || vector == 14 || vector == 17
        jmp     with_error
        .else
        jmp     without_error
        .endif
        .set vector, vector + 1
        .endr

        .balign 64
entries:                                        # offsets that stub.py's user reads
        .long   upcall - start, syscall_ - start, syscall32 - start, iret_ - start, double_fault - start
        .long   iret_user - start

# F: where RIP is in the frame. ecx: the vector.
        .macro bounce F
        lea     r11, [rip + start + DATA]
        mov     [r11 + D_RAX], rax
        mov     rax, [r11 + D_INFO]
        test    byte ptr [rsp + \F + 8], 3
        jz      1f
        swapgs
        jmp     2f
1:      mov     dword ptr [rsp + \F + 8], GUEST_CS
2:      cmp     byte ptr [rax + INFO_MASK], 0
        je      3f
        mov     byte ptr [rsp + \F + 12], 1
        and     byte ptr [rsp + \F + 17], 0xfd
3:      test    byte ptr [r11 + rcx + D_FLAGS], 4
        jz      4f
        mov     byte ptr [rax + INFO_MASK], 1
4:      mov     r11, [r11 + rcx * 8 + D_TRAPS]
        test    r11, r11
        jz      crash
        mov     rax, [rip + start + DATA + D_RAX]
        sti
        jmp     r11
        .endm

        .skip   128                             # so that each entry has a jump of the same size
        .balign 16
without_error:
        cmp     ecx, 7                          # #NM: Xen lets go of the FPU before it tells the guest
        jne     without
        clts
without:
        bounce  16

        .balign 16
with_error:
        cmp     ecx, 14
        jne     9f
        mov     r11, cr2
        mov     [rip + start + DATA + D_RAX], rax
        mov     rax, [rip + start + DATA + D_INFO]
        mov     [rax + INFO_CR2], r11
        mov     rax, [rip + start + DATA + D_RAX]
        jmp     with
9:      lea     r11, [rip + iret_user]          # did the return to a program fault? Then the program did.
        cmp     r11, [rsp + 24]
        je      bad_return
with:   bounce  24

# On the stack: RCX, R11, error code, RIP of the IRETQ, CS, RFLAGS, RSP (of the frame that IRETQ took), SS.
bad_return:
        swapgs
        mov     [rip + start + DATA + D_RAX], rax
        mov     r11, [rsp + 16]                 # the error code
        mov     rax, [rsp + 48]
        mov     [rip + start + DATA + D_CS], rcx
        pop     rcx
        mov     rsp, [rsp]                      # the program's R11, kept while its frame moves
        xchg    rsp, rax
        mov     [rip + start + DATA + D_RSP], rax
        mov     rax, rsp
        mov     rsp, [rip + start + STACK0]
        push    [rax + 32]
        push    [rax + 24]
        push    [rax + 16]
        push    [rax + 8]
        push    [rax]
        push    r11
        push    [rip + start + DATA + D_RSP]
        push    rcx
        mov     rcx, [rip + start + DATA + D_CS]
        mov     rax, [rip + start + DATA + D_RAX]
        swapgs                                  # as it was in the program; `bounce` takes the kernel's again
        jmp     with

        .balign 16
upcall: push    r11
        push    rcx
        mov     rcx, [rip + start + DATA + D_INFO]
        cmp     byte ptr [rcx + INFO_MASK], 0
        jne     1f
        cmp     byte ptr [rcx + INFO_PENDING], 0
        je      1f
        mov     r11, [rip + start + DATA + D_EVENT]
        test    r11, r11
        jz      1f
        mov     byte ptr [rcx + INFO_MASK], 1
        test    byte ptr [rsp + 24], 3
        jz      2f
        swapgs
        sti
        jmp     r11
2:      mov     dword ptr [rsp + 24], GUEST_CS
        sti
        jmp     r11
1:      pop     rcx
        pop     r11
        iretq

        .macro system_call cs, callback, mask
        swapgs
        mov     [rip + start + DATA + D_RSP], rsp
        mov     rsp, [rip + start + STACK0]
        push    USER_SS
        push    [rip + start + DATA + D_RSP]
        push    r11
        push    \cs
        push    rcx
        push    r11
        push    rcx
        mov     rcx, [rip + start + DATA + D_INFO]
        cmp     byte ptr [rcx + INFO_MASK], 0
        je      1f
        mov     byte ptr [rsp + 28], 1
        and     byte ptr [rsp + 33], 0xfd
1:      mov     r11, [rip + start + DATA + \callback]
        test    r11, r11
        jz      2f
        test    byte ptr [rip + start + DATA + \mask], 1
        jz      3f
        mov     byte ptr [rcx + INFO_MASK], 1
3:      sti
        jmp     r11
2:      sub     qword ptr [rsp + 16], 2         # the kernel has none: an invalid opcode
        swapgs
        mov     ecx, 6
        jmp     without
        .endm

        .balign 16
syscall_:
        system_call USER_CS, D_SYSCALL, D_MASK
        .balign 16
syscall32:
        system_call USER_CS32, D_SYSCALL32, D_MASK32

# HYPERVISOR_iret. On the stack: RAX, R11, RCX, flags, RIP, CS, RFLAGS, RSP, SS (struct iret_context).
        .balign 16
iret_:  cli
        mov     rcx, [rip + start + DATA + D_INFO]
        mov     rax, [rsp + 48]
        bt      eax, 9
        setnc   byte ptr [rcx + INFO_MASK]
        and     eax, 0x240dd5                   # without IOPL, NT, VM, RF
        or      eax, 0x202
        test    byte ptr [rsp + 40], 3
        jz      1f
        or      eax, [rip + start + DATA + D_IOPL]
        mov     [rsp + 48], rax
        or      byte ptr [rsp + 64], 3
        mov     dword ptr [rsp + 44], 0
        cmp     word ptr [rcx + INFO_PENDING], 1        # pending and not masked
        jne     2f
        mov     eax, EVENTS
        syscall
2:      pop     rax
        pop     r11
        pop     rcx
        add     rsp, 8
        swapgs
iret_user:
        iretq
1:      mov     [rsp + 48], rax
        mov     qword ptr [rsp + 40], KERNEL_CS
        mov     qword ptr [rsp + 64], 0
        cmp     word ptr [rcx + INFO_PENDING], 1
        jne     3f
        mov     eax, EVENTS
        syscall
3:      pop     rax
        pop     r11
        pop     rcx
        add     rsp, 8
        iretq

        .balign 16
double_fault:
        mov     ecx, 8
crash:  mov     eax, CRASH
        syscall
        jmp     crash
