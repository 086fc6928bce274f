# The kernel of pv_questions.py, where its bytes stand: as pv_questions.S -o q.o && objcopy -O binary -j .text q.o q.bin
        .intel_syntax noprefix
        .text
        .set BASE, 0xffffffff80000000
        .set LIST, BASE + 0x101000
        .set FIXES, BASE + 0x108000
        mov     rbp, rsi
        mov     r12, [rsi + 104]                # start_info.mfn_list
        mov     r13, [rsi + 88]                 # pt_base
        movabs  rax, BASE
        sub     r13, rax
        shr     r13, 12
        movabs  rbx, FIXES
1:      mov     rdi, [rbx]                      # {address of a value, shift}: frame numbers become the machine's
        test    rdi, rdi
        jz      4f
        mov     rcx, [rbx + 8]
        mov     rax, [rdi]
        mov     rdx, rax
        shr     rdx, cl
        cmp     edx, 0xfffff
        jne     2f
        mov     rdx, r13
2:      mov     rdx, [r12 + rdx * 8]
        shl     rdx, cl
        and     eax, 4095
        test    ecx, ecx
        jnz     3f
        xor     eax, eax
3:      or      rax, rdx
        mov     [rdi], rax
        add     rbx, 16
        jmp     1b
4:      mov     rax, [rbp + 72]                 # the console's page, by the machine-to-physical table
        movabs  rdx, 0xffff800000000000
        mov     rax, [rdx + rax * 8]
        shl     rax, 12
        movabs  rdx, BASE
        lea     r13, [rax + rdx]
        movabs  rbx, LIST
ask:    mov     rax, [rbx]
        mov     rdi, [rbx + 8]
        mov     rsi, [rbx + 16]
        mov     rdx, [rbx + 24]
        mov     r10, [rbx + 32]
        mov     r8, [rbx + 40]
        syscall
        mov     [rbx + 48], rax
        mov     ecx, 8                          # the lower half in hexadecimal digits, and a line's end
5:      rol     eax, 4
        mov     edx, eax
        and     edx, 15
        add     edx, 48
        cmp     edx, 58
        jb      6f
        add     edx, 39
6:      call    put
        dec     ecx
        jnz     5b
        mov     edx, 10
        call    put
        mov     eax, 32                         # event_channel_op(EVTCHNOP_send, the console's port)
        mov     edi, 4
        lea     rsi, [rbp + 80]
        syscall
        add     rbx, 64
        jmp     ask
put:    mov     esi, [r13 + 3084]               # out_prod of 2048 bytes at 1024
        and     esi, 2047
        mov     [r13 + rsi + 1024], dl
        inc     dword ptr [r13 + 3084]
        ret
