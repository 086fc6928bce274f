"""Three tiny static programs for the default guest, made without a compiler.

A fork and an exec of busybox cost 4 to 5 ms in an emulated guest, and the guest's start is measured; so what is only a
list of system calls is one program of a few hundred bytes:

- `init`: process 1. Makes a list of system calls (mounts, modules), starts its one child with another list, then reaps
  and obeys the signals by which busybox's poweroff, halt and reboot talk to process 1. The child's end powers off.
- `load_modules`: `load-modules FILE...`, insmod(8) for many files in one process; its status counts the failures.
- `debug_exit`: `debug-exit STATUS PORT`, both decimal: writes dirty data back, then the byte STATUS to the I/O port.

System call numbers are those of arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from bivisor.image.program import Call, Program

SIGUSR1, SIGUSR2, SIGTERM, SIGCHLD = 10, 12, 15, 17
RT_SIGPROCMASK = 14
_SIG_BLOCK, _SIG_UNBLOCK = 0, 1
_SIGSET_SIZE = 8
_RESTART, _POWER_OFF = 0x0123_4567, 0x4321_FEDC  # LINUX_REBOOT_CMD_*, reboot(2)

_INIT = """
    bb =setup                   mov   ebx, setup
    e8 @@run                    call  run
    b8 39 00 00 00              mov   eax, 57              ; fork
    0f 05                       syscall
    85 c0                       test  eax, eax
    75 @parent                  jnz   parent
    bb =child                   mov   ebx, child
    e8 @@run                    call  run                  ; its last call does not come back
  parent:
    41 89 c4                    mov   r12d, eax
  wait:
    bf =signals                 mov   edi, signals
    31 f6                       xor   esi, esi
    31 d2                       xor   edx, edx
    41 ba 08 00 00 00           mov   r10d, 8
    b8 80 00 00 00              mov   eax, 128             ; rt_sigtimedwait
    0f 05                       syscall
    83 f8 1f                    cmp   eax, 31
    77 @wait                    ja    wait                 ; unsigned: an error is above, too
    8b 1c 85 =actions           mov   ebx, [actions + 4 * rax]
    85 db                       test  ebx, ebx
    75 @end                     jnz   end
  reap:
    83 cf ff                    or    edi, -1
    31 f6                       xor   esi, esi
    ba 01 00 00 00              mov   edx, 1               ; WNOHANG
    45 31 d2                    xor   r10d, r10d
    b8 3d 00 00 00              mov   eax, 61              ; wait4
    0f 05                       syscall
    85 c0                       test  eax, eax
    7e @wait                    jle   wait
    44 39 e0                    cmp   eax, r12d
    75 @reap                    jne   reap
    bb dc fe 21 43              mov   ebx, 0x4321fedc      ; LINUX_REBOOT_CMD_POWER_OFF
  end:
    b8 a2 00 00 00              mov   eax, 162             ; sync
    0f 05                       syscall
    bf ad de e1 fe              mov   edi, 0xfee1dead
    be 69 19 12 28              mov   esi, 672274793
    89 da                       mov   edx, ebx
    b8 a9 00 00 00              mov   eax, 169             ; reboot
    0f 05                       syscall
    eb @wait                    jmp   wait
  run:
    48 8b 03                    mov   rax, [rbx]
    48 85 c0                    test  rax, rax
    78 @done                    js    done
    48 8b 7b 08                 mov   rdi, [rbx + 8]
    48 8b 73 10                 mov   rsi, [rbx + 16]
    48 8b 53 18                 mov   rdx, [rbx + 24]
    4c 8b 53 20                 mov   r10, [rbx + 32]
    4c 8b 43 28                 mov   r8, [rbx + 40]
    0f 05                       syscall
    48 83 c3 30                 add   rbx, 48
    eb @run                     jmp   run
  done:
    c3                          ret
"""

_LOAD_MODULES = """
    48 8d 5c 24 10              lea   rbx, [rsp + 16]      ; argv + 1
    45 31 e4                    xor   r12d, r12d           ; failures
  next:
    48 8b 3b                    mov   rdi, [rbx]
    48 85 ff                    test  rdi, rdi
    74 @done                    jz    done
    48 83 c3 08                 add   rbx, 8
    31 f6                       xor   esi, esi             ; O_RDONLY
    b8 02 00 00 00              mov   eax, 2               ; open
    0f 05                       syscall
    89 c5                       mov   ebp, eax             ; what fails here fails at finit_module
    89 c7                       mov   edi, eax
    be =nothing                 mov   esi, nothing
    31 d2                       xor   edx, edx
    b8 39 01 00 00              mov   eax, 313             ; finit_module
    0f 05                       syscall
    85 c0                       test  eax, eax
    74 @loaded                  jz    loaded
    83 f8 ef                    cmp   eax, -17             ; EEXIST: loaded already
    74 @loaded                  je    loaded
    41 ff c4                    inc   r12d
  loaded:
    89 ef                       mov   edi, ebp
    b8 03 00 00 00              mov   eax, 3               ; close
    0f 05                       syscall
    eb @next                    jmp   next
  done:
    44 89 e7                    mov   edi, r12d
    b8 3c 00 00 00              mov   eax, 60              ; exit
    0f 05                       syscall
"""

_DEBUG_EXIT = """
    bf 02 00 00 00              mov   edi, 2
    48 83 3c 24 03              cmp   qword [rsp], 3       ; argc
    75 @exit                    jne   exit
    48 8b 74 24 10              mov   rsi, [rsp + 16]
    e8 @@number                 call  number
    89 c3                       mov   ebx, eax
    48 8b 74 24 18              mov   rsi, [rsp + 24]
    e8 @@number                 call  number
    89 c5                       mov   ebp, eax
    b8 a2 00 00 00              mov   eax, 162             ; sync: the port ends the machine at once
    0f 05                       syscall
    bf 03 00 00 00              mov   edi, 3
    b8 ac 00 00 00              mov   eax, 172             ; iopl
    0f 05                       syscall
    bf 01 00 00 00              mov   edi, 1
    85 c0                       test  eax, eax
    75 @exit                    jnz   exit
    89 d8                       mov   eax, ebx
    89 ea                       mov   edx, ebp
    ee                          out   dx, al
  exit:
    b8 3c 00 00 00              mov   eax, 60              ; exit
    0f 05                       syscall
  number:
    31 c0                       xor   eax, eax
    80 3e 00                    cmp   byte [rsi], 0
    74 @bad                     je    bad                  ; an empty string
  digit:
    0f b6 0e                    movzx ecx, byte [rsi]
    85 c9                       test  ecx, ecx
    74 @end                     jz    end
    83 e9 30                    sub   ecx, '0'
    83 f9 09                    cmp   ecx, 9
    77 @bad                     ja    bad                  ; unsigned: not a digit
    6b c0 0a                    imul  eax, eax, 10
    01 c8                       add   eax, ecx
    3d ff ff 00 00              cmp   eax, 0xffff
    77 @bad                     ja    bad                  ; no port, and no overflow either
    48 ff c6                    inc   rsi
    eb @digit                   jmp   digit
  bad:
    bf 02 00 00 00              mov   edi, 2
    eb @exit                    jmp   exit
  end:
    c3                          ret
"""


def init(setup: Iterable[Call], child: Iterable[Call]) -> bytes:
    """Process 1: makes the calls of `setup`, forks, and the child makes those of `child`, of which the last has to be
    one that does not return (execve, or exit after it). A call that fails is passed over."""
    program = Program(_INIT)
    signals = program.place(struct.pack("<Q", sum(1 << n - 1 for n in (SIGUSR1, SIGUSR2, SIGTERM, SIGCHLD))))
    actions = [0] * 32
    # busybox init/halt.c: halt, poweroff, reboot. A halted machine would only wait to be ended, so it is powered off.
    actions[SIGUSR1], actions[SIGUSR2], actions[SIGTERM] = _POWER_OFF, _POWER_OFF, _RESTART
    return program.elf(
        {
            "signals": signals,
            "actions": program.place(struct.pack("<32I", *actions)),
            "setup": program.place_calls([Call(RT_SIGPROCMASK, (_SIG_BLOCK, signals, 0, _SIGSET_SIZE)), *setup]),
            "child": program.place_calls([Call(RT_SIGPROCMASK, (_SIG_UNBLOCK, signals, 0, _SIGSET_SIZE)), *child]),
        }
    )


def load_modules() -> bytes:
    """`load-modules FILE...`."""
    program = Program(_LOAD_MODULES)
    return program.elf({"nothing": program.place(b"\0")})


def debug_exit() -> bytes:
    """`debug-exit STATUS PORT`. Its own status is 1 where it may not use ports or nothing ends the machine, 2 for bad
    arguments."""
    return Program(_DEBUG_EXIT).elf({})
