# A PVH guest that plays hypercalls from a table in its memory, for any Xen: this program's or a real one.
#
# An entry is ten 64-bit words: number, six arguments, result, and address and length of what to print with the result.
# Served (mode 1), it waits until `wanted` changes, plays `count` entries and copies `wanted` to `done`. Alone (mode 0),
# it plays them once, prints a line for each on port 0xe9, which real Xen logs, and powers off.

        .set    CONTROL, 0x1ff000
        .set    MODE, CONTROL
        .set    WANTED, CONTROL + 8
        .set    DONE, CONTROL + 16
        .set    COUNT, CONTROL + 24
        .set    PLAYED, CONTROL + 32
        .set    TABLE, 0x200000
        .set    ENTRY, 80
        .set    PAGES, 0x180000

        .section .note.xen, "a", @note
        .long   4, 4, 18
        .asciz  "Xen"
        .long   start

        .section .table, "aw", @progbits
        .incbin "table.bin"

        .text
        .code32
        .globl  start
start:  cld
        mov     $PAGES, %edi            # a PML4, a directory-pointer table, and four directories of 2 MiB pages
        xor     %eax, %eax
        mov     $(6 * 1024), %ecx
        rep stosl
        movl    $(PAGES + 0x1003), PAGES
        mov     $4, %ecx
1:      lea     -1(%ecx), %edx
        mov     %edx, %eax
        shl     $12, %eax
        add     $(PAGES + 0x2003), %eax
        mov     %eax, PAGES + 0x1000(, %edx, 8)
        loop    1b
        mov     $0x83, %eax
        mov     $(PAGES + 0x2000), %edi
2:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x200000, %eax
        cmp     $(PAGES + 0x6000), %edi
        jne     2b
        mov     $PAGES, %eax
        mov     %eax, %cr3
        mov     $0x20, %eax
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     $0x80000011, %eax
        mov     %eax, %cr0
        lgdt    gdtr
        ljmp    $8, $long

        .align  8
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:   .word   23
        .long   gdt

        .code64
long:   mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $0x17f000, %esp
        cmpq    $0, MODE
        je      alone
served: mov     WANTED, %rax
        cmp     DONE, %rax
        jne     3f
        pause
        jmp     served
3:      push    %rax
        call    play
        pop     %rax
        mov     %rax, DONE
        jmp     served

alone:  call    play
        call    print
        mov     $29, %eax               # SCHEDOP_shutdown, for poweroff
        mov     $2, %edi
        push    $0
        mov     %rsp, %rsi
        call    hypercall
4:      hlt
        jmp     4b

        .align  16
hypercall:                              # a function of its own, as in a kernel
        vmmcall
        ret

play:   mov     $TABLE, %ebx
        mov     COUNT, %r12
        xor     %r13d, %r13d
5:      cmp     %r12, %r13
        jae     6f
        mov     (%rbx), %rax
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        mov     24(%rbx), %rdx
        mov     32(%rbx), %r10
        mov     40(%rbx), %r8
        mov     48(%rbx), %r9
        cmp     $-2, %rax               # not a hypercall: load from, or store to, the address of the first argument
        je      11f
        cmp     $-3, %rax
        je      12f
        cmp     $-4, %rax               # or call a function
        je      14f
        call    hypercall
13:     mov     %rax, 56(%rbx)
        add     $ENTRY, %rbx
        inc     %r13
        mov     %r13, PLAYED
        jmp     5b
6:      ret
11:     mov     (%rdi), %rax
        jmp     13b
12:     mov     %rsi, (%rdi)
        jmp     13b
14:     call    *%rdi
        jmp     13b

print:  mov     $TABLE, %ebx
        xor     %r13d, %r13d
7:      cmp     COUNT, %r13
        jae     6b
        mov     $'R', %al
        out     %al, $0xe9
        mov     %r13, %r14
        mov     $4, %ecx
        call    number
        mov     56(%rbx), %r14
        mov     $16, %ecx
        call    number
        mov     $' ', %al
        out     %al, $0xe9
        mov     64(%rbx), %rsi
        mov     72(%rbx), %r15
8:      test    %r15, %r15
        jz      9f
        movzbl  (%rsi), %r14d
        mov     $2, %ecx
        call    digits
        inc     %rsi
        dec     %r15
        jmp     8b
9:      mov     $'\n', %al
        out     %al, $0xe9
        add     $ENTRY, %rbx
        inc     %r13
        jmp     7b

number: mov     $' ', %al               # the low %ecx digits of %r14, after a space
        out     %al, $0xe9
digits: dec     %ecx                    # the same without the space
        mov     %r14, %rax
        shl     $2, %ecx
        shr     %cl, %rax
        shr     $2, %ecx
        and     $15, %eax
        add     $'0', %al
        cmp     $'9', %al
        jbe     10f
        add     $('a' - '9' - 1), %al
10:     out     %al, $0xe9
        test    %ecx, %ecx
        jnz     digits
        ret
