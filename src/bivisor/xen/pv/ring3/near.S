# Hypercalls that a PV domain's machine carries out by itself: what Linux asks for most, without leaving the guest.
# Whatever is not plain goes on in stub.S and comes out. Its bytes stand in near.py; a test assembles this file again and
# compares:
#     as near.S -o n.o && objcopy -O binary -j .text n.o n.bin
#
# Where KVM has SYSCALL lead to CPL 0, and so runs CPL 0 at the processor's speed, it is entered at `start` where stub.S's
# `system_call` would be, with the same stack, and at `protection` where its exception 13 would be. Elsewhere stub.S comes
# to `some` with what is quicker here even if each instruction is interpreted. fast.S follows it, and after that are the
# addresses of four places in stub.S. `T` and the fields of a processor are as there.

        .intel_syntax noprefix
        .text

        .set MODE,      0
        .set ALLOWED,   3                       # u8: whether it may do anything
        .set INFO,      8
        .set KSP,       16
        .set KROOT,     24
        .set UROOT,     32
        .set STATE,     128                     # what fast.S knows of the processor
        .set USER_ROOT, STATE + 40
        .set VCPUS,     STATE + 80              # how many the domain has
        .set VERSION,   STATE + 88              # of the hypervisor
        .set DONE,      STATE + 96              # u64[4]: how often each of four was done here

        .set SECOND,    2048

        .set EVENT,     256
        .set GUEST_CS,  0xe033
        .set GUEST_SS,  0xe02b
        .set PLAIN,     0x202

        .set MMU_UPDATE, 1
        .set STACK_SWITCH, 3
        .set XEN_VERSION, 17
        .set VCPU_OP,   24
        .set SET_SEGMENT_BASE, 25
        .set MMUEXT_OP, 26
        .set IS_UP,     3                       # of VCPU_OP
        .set ENOENT,    2
        .set FS_BASE,   0xc0000100
        .set GS_BASE,   0xc0000101
        .set KERNEL_GS_BASE, 0xc0000102

        .set FRAME,     40                      # RIP, CS, RFLAGS, RSP, SS
        .set SAVED,     96                      # RAX to R10, in the order of their encoding, as fast.S has them

        .long   protection - some, start - some # offsets that near.py's user reads
        .balign 16, 0xcc
some:   mov     [rsp], rcx
        cmp     byte ptr [rsp + FRAME + ALLOWED], 0
        je      out
        cmp     rax, SET_SEGMENT_BASE
        je      base
        cmp     rax, STACK_SWITCH
        je      stack
        cmp     rax, XEN_VERSION
        je      version
        cmp     rax, VCPU_OP
        je      is_up
out:    mov     rcx, [rsp]
        jmp     [rip + come_out]

        .balign 16, 0xcc
start:  cmp     byte ptr [rsp + FRAME + ALLOWED], 0
        je      slow
        cmp     byte ptr [rsp + FRAME + MODE], 0
        je      slow                            # a program's
        cmp     rax, MMU_UPDATE
        je      tables
        cmp     rax, MMUEXT_OP
        je      tables
        cmp     rax, SET_SEGMENT_BASE
        je      base
        cmp     rax, STACK_SWITCH
        je      stack
        cmp     rax, XEN_VERSION
        je      version
        cmp     rax, VCPU_OP
        je      processor
slow:   mov     rcx, [rsp]
        mov     r11, [rsp + 16]
        jmp     [rip + system_call]

tables: sub     rsp, SAVED
        mov     [rsp], rax
        mov     [rsp + 16], rdx
        mov     [rsp + 48], rsi
        mov     [rsp + 56], rdi
        mov     [rsp + 64], r8
        mov     [rsp + 72], r9
        mov     [rsp + 80], r10
        mov     rdi, rsp
        lea     rsi, [rsp + SAVED + FRAME + STATE]
        call    fast
        mov     rcx, rax
        mov     rax, [rsp]
        mov     rdx, [rsp + 16]
        mov     rsi, [rsp + 48]
        mov     rdi, [rsp + 56]
        mov     r8, [rsp + 64]
        mov     r9, [rsp + 72]
        mov     r10, [rsp + 80]
        add     rsp, SAVED
        cmp     rcx, 1
        jb      slow
        je      done
        mov     cr3, rcx
        mov     [rsp + FRAME + KROOT], rcx
        mov     rcx, [rsp + FRAME + USER_ROOT]
        shl     rcx, 12
        mov     [rsp + FRAME + UROOT], rcx
        jmp     done

base:   mov     r11, rsi                        # neither half of the address space: an error, which is told elsewhere
        sar     r11, 47
        inc     r11
        cmp     r11, 1
        ja      out
        mov     ecx, FS_BASE
        test    rdi, rdi
        jz      1f
        mov     ecx, KERNEL_GS_BASE
        cmp     rdi, 1
        je      1f
        mov     ecx, GS_BASE
        cmp     rdi, 2
        je      1f
        cmp     rdi, 3                          # a selector: whatever it is, its base is 0
        jne     out
        mov     ecx, KERNEL_GS_BASE
        mov     r11, rdx
        xor     eax, eax
        xor     edx, edx
        jmp     2f
1:      mov     r11, rdx
        mov     rax, rsi
        mov     rdx, rsi
        shr     rdx, 32
2:      wrmsr
        mov     rdx, r11
        xor     eax, eax
        inc     qword ptr [rsp + FRAME + DONE]
        jmp     done

stack:  mov     rcx, rsi                        # the hypervisor's part is no place for it
        shr     rcx, 32
        sub     ecx, 0xffff8000
        cmp     ecx, 0x800
        jb      out
        mov     rcx, rsi
        and     rcx, -16
        mov     [rsp + FRAME + KSP], rcx
        xor     eax, eax
        inc     qword ptr [rsp + FRAME + DONE + 8]
        jmp     done

version:
        test    rdi, rdi
        jnz     out
        mov     rax, [rsp + FRAME + VERSION]
        inc     qword ptr [rsp + FRAME + DONE + 16]
        jmp     done

processor:
        cmp     rdi, IS_UP
        jne     slow
is_up:  cmp     rdi, IS_UP                      # of one that the domain does not have
        jne     out
        cmp     rsi, [rsp + FRAME + VCPUS]
        jb      out
        mov     rax, -ENOENT
        inc     qword ptr [rsp + FRAME + DONE + 24]

done:   mov     rcx, [rsp]
        mov     r11, [rsp + FRAME + INFO]
        cmp     word ptr [r11], 1               # pending, and not masked
        mov     r11d, PLAIN
        je      event
        mov     rsp, [rsp + 24]
        sysretq
event:  mov     [rsp + 16], r11
        mov     qword ptr [rsp + 8], GUEST_CS
        mov     qword ptr [rsp + 32], GUEST_SS
        push    r11
        push    rcx
        mov     r11d, EVENT
        jmp     [rip + bounce]

# CLI and STI of the kernel's, which Xen takes and does nothing for. On the second stack: error code, RIP, CS and so on.
        .balign 16, 0xcc
protection:
        cmp     byte ptr [rsp + 48 - SECOND + MODE], 0
        je      2f
        cmp     qword ptr [rsp], 0
        jne     2f
        test    byte ptr [rsp + 16], 3          # at CPL 0 this is IRETQ's in stub.S
        jz      2f
        test    byte ptr [rsp + 25], 1          # TF: a step ends behind the instruction
        jnz     2f
        push    rcx
        push    r11
        mov     rcx, [rsp + 24]
        mov     r11, rcx
        sar     r11, 47
        inc     r11
        cmp     r11, 1
        ja      1f
        mov     cl, [rcx]
        and     cl, 0xfe
        cmp     cl, 0xfa
        jne     1f
        inc     qword ptr [rsp + 24]
        pop     r11
        pop     rcx
        add     rsp, 8
        iretq
1:      pop     r11
        pop     rcx
2:      jmp     [rip + exception]

        .balign 16, 0xcc
fast:
        .set system_call, fast + 1024           # where the host puts them
        .set bounce, fast + 1032
        .set exception, fast + 1040
        .set come_out, fast + 1048
