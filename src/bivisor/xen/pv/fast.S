# The two requests of which a PV kernel makes most, carried out without Python where nothing is unusual about them: one
# mmu_update of a level-1 entry, and the pair of mmuext_op that changes the address space. Whatever is not plain is left
# to mmu.py, with nothing changed. fast.py holds the bytes; a test assembles this file again and compares:
#     as fast.S -o f.o && objcopy -O binary -j .text f.o f.bin
#
# u64 fast(u64 *registers, u64 *state): 0: ask Python; 1: done; else: done, and this goes into CR3 (cpu/soft/thunks.S).
# The rules are those of pages.py.

        .intel_syntax noprefix
        .text

        .set R_RAX,     0
        .set R_RDX,     16                      # third argument
        .set R_RSI,     48                      # second
        .set R_RDI,     56                      # first
        .set R_R10,     80                      # fourth

        .set S_WORDS,   0                       # the domain's memory
        .set S_FRAMES,  8                       # its size in frames
        .set S_KIND,    16                      # u8 of each frame: its type
        .set S_COUNT,   24                      # u32 of each frame: how often it is used as that
        .set S_ROOT,    32                      # level-4 tables in use
        .set S_USER,    40
        .set S_INFO,    48                      # struct vcpu_info
        .set S_UPDATES, 56                      # how often each of the two was done here
        .set S_SWITCHES, 64
        .set S_EXTRA,   72                      # bits that each present entry has whatever the guest says

        .set MMU_UPDATE, 1
        .set MMUEXT_OP, 26
        .set NEW_BASEPTR, 5
        .set NEW_USER_BASEPTR, 15
        .set DOMID_SELF, 0x7ff0

        .set NONE,      0
        .set L1,        1
        .set L4,        4
        .set WRITABLE,  6
        .set GONE,      7

        .set ADDRESS,   0x000ffffffffff000
        .set FORBIDDEN, 0x4000000000000098      # PWT, PCD, PAT, and bit 62
        .set COUNTED,   0x7ffffffffffff09b      # all but A, D, G, US, XD and the bits of the kernel's own

fast:   mov     rax, [rsi + S_INFO]
        cmp     byte ptr [rax + 1], 0           # an event that waits and is not masked is shown to the guest afterwards
        jne     1f
        cmp     byte ptr [rax], 0
        jne     slow
1:      mov     rax, [rdi + R_RAX]
        cmp     qword ptr [rdi + R_RDX], 0
        jne     slow
        cmp     qword ptr [rdi + R_R10], DOMID_SELF
        jne     slow
        cmp     rax, MMU_UPDATE
        je      update
        cmp     rax, MMUEXT_OP
        je      switch
slow:   xor     eax, eax
        ret

update: cmp     qword ptr [rdi + R_RSI], 1
        jne     slow
        mov     r8, [rdi + R_RDI]
        test    r8b, 7
        jnz     slow
        mov     eax, r8d
        and     eax, 4095
        cmp     eax, 4096 - 16
        ja      slow
        call    walk
        test    rax, rax
        jz      slow
        mov     r9, [rax]
        mov     r10, [rax + 8]
        test    r9b, 5                          # not aligned, or about the machine-to-physical table
        jnz     slow
        mov     r11d, r9d
        and     r9, -8
        mov     rcx, r9
        shr     rcx, 12
        cmp     rcx, [rsi + S_FRAMES]
        jae     slow
        mov     rdx, [rsi + S_KIND]
        movzx   ecx, byte ptr [rdx + rcx]
        add     r9, [rsi + S_WORDS]
        cmp     ecx, L1
        jne     upper
        mov     rax, [r9]
        test    r11b, 2                         # MMU_PT_UPDATE_PRESERVE_AD
        jz      1f
        mov     ecx, eax
        and     ecx, 0x60
        or      r10, rcx
1:      test    r10b, 1
        jz      store
        or      r10, [rsi + S_EXTRA]
        movabs  rcx, FORBIDDEN
        test    r10, rcx
        jnz     slow
        mov     rcx, rax
        xor     rcx, r10
        movabs  r8, COUNTED
        test    rcx, r8
        jz      plain                           # the same frame with the same rights
        movabs  rcx, ADDRESS
        and     rcx, r10
        shr     rcx, 12
        cmp     rcx, [rsi + S_FRAMES]
        jae     slow
        movzx   r8d, byte ptr [rdx + rcx]
        cmp     r8b, GONE
        je      slow
        test    r10b, 2
        jz      store
        mov     r11, [rsi + S_COUNT]
        cmp     r8b, WRITABLE
        je      2f
        cmp     dword ptr [r11 + rcx * 4], 0
        jne     slow                            # in use as something else
        mov     byte ptr [rdx + rcx], WRITABLE
2:      inc     dword ptr [r11 + rcx * 4]
store:  mov     [r9], r10
        mov     ecx, eax                        # what was there goes
        and     ecx, 3
        cmp     ecx, 3
        jne     done
        movabs  rcx, ADDRESS
        and     rcx, rax
        shr     rcx, 12
        cmp     rcx, [rsi + S_FRAMES]
        jae     done
        cmp     byte ptr [rdx + rcx], WRITABLE
        jne     done
        mov     r11, [rsi + S_COUNT]
        dec     dword ptr [r11 + rcx * 4]
        jnz     done
        mov     byte ptr [rdx + rcx], NONE
        jmp     done
plain:  mov     [r9], r10
done:   inc     qword ptr [rsi + S_UPDATES]
        mov     qword ptr [rdi + R_RAX], 0
        mov     eax, 1
        ret

upper:  cmp     ecx, L1                         # of a table above: what leads nowhere and goes on to do so
        jb      slow
        cmp     ecx, L4
        jae     slow
        mov     rax, [r9]
        or      eax, r10d
        or      eax, r11d
        test    al, 3                           # present, writable, or MMU_PT_UPDATE_PRESERVE_AD
        jz      plain
        jmp     slow

switch: cmp     qword ptr [rdi + R_RSI], 2
        jne     slow
        mov     r8, [rdi + R_RDI]
        mov     eax, r8d
        and     eax, 4095
        cmp     eax, 4096 - 48
        ja      slow
        call    walk
        test    rax, rax
        jz      slow
        cmp     dword ptr [rax], NEW_BASEPTR
        jne     slow
        cmp     dword ptr [rax + 24], NEW_USER_BASEPTR
        jne     slow
        mov     r8, [rax + 8]
        mov     r9, [rax + 32]
        mov     r10, [rsi + S_USER]
        mov     rcx, [rsi + S_ROOT]
        mov     rdx, [rsi + S_KIND]
        mov     r11, [rsi + S_COUNT]
        test    r8, r8
        jz      slow
        cmp     r8, rcx
        je      slow
        cmp     r8, [rsi + S_FRAMES]
        jae     slow
        cmp     byte ptr [rdx + r8], L4         # so it has been looked through
        jne     slow
        xor     eax, eax
        cmp     r9, r10
        je      1f
        cmp     r9, [rsi + S_FRAMES]
        jae     slow
        test    r9, r9
        jz      2f
        cmp     byte ptr [rdx + r9], L4
        jne     slow
2:      test    r10, r10
        jz      1f
        cmp     dword ptr [r11 + r10 * 4], 1
        jbe     slow                            # its last use
        cmp     r10, rcx
        sete    al
1:      inc     eax
        cmp     [r11 + rcx * 4], eax
        jbe     slow
        inc     dword ptr [r11 + r8 * 4]
        dec     dword ptr [r11 + rcx * 4]
        mov     [rsi + S_ROOT], r8
        cmp     r9, r10
        je      5f
        test    r9, r9
        jz      3f
        inc     dword ptr [r11 + r9 * 4]
3:      test    r10, r10
        jz      4f
        dec     dword ptr [r11 + r10 * 4]
4:      mov     [rsi + S_USER], r9
5:      inc     qword ptr [rsi + S_SWITCHES]
        mov     qword ptr [rdi + R_RAX], 0
        mov     rax, r8
        shl     rax, 12
        ret

# r8: a linear address. rax: where the host has it, or 0. Clobbers rcx, rdx, r10.
walk:   mov     rax, r8
        sar     rax, 47
        inc     rax
        cmp     rax, 1
        ja      2f
        movabs  r10, ADDRESS
        mov     rax, [rsi + S_ROOT]
        shl     rax, 12
        mov     ecx, 39
1:      mov     rdx, r8
        shr     rdx, cl
        and     edx, 511
        add     rax, [rsi + S_WORDS]
        mov     rax, [rax + rdx * 8]
        test    al, 1
        jz      2f
        and     rax, r10
        mov     rdx, rax
        shr     rdx, 12
        cmp     rdx, [rsi + S_FRAMES]
        jae     2f
        sub     ecx, 9
        cmp     ecx, 3
        jne     1b
        mov     edx, r8d
        and     edx, 4095
        add     rax, rdx
        add     rax, [rsi + S_WORDS]
        ret
2:      xor     eax, eax
        ret
