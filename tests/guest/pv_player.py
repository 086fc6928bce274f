"""A PV kernel of sixty bytes that makes the hypercalls which a test has written into its memory, and stops.

    again:  mov rax, [rbx]          # number, five arguments, result, and eight bytes for nothing
            mov rdi, [rbx + 8]
            mov rsi, [rbx + 16]
            mov rdx, [rbx + 24]
            mov r10, [rbx + 32]
            mov r8, [rbx + 40]
            test rax, rax
            js copy
            syscall
    told:   mov [rbx + 48], rax
            add rbx, 64
            jmp again
    copy:   mov rcx, rdx            # no hypercall: RDX bytes from RSI to RDI
            rep movsb
            jmp told

RBX is loaded before with the address of the list, which is the second page of the kernel; the third is for arguments.
"""

from __future__ import annotations

import struct
from pathlib import Path

from bivisor.abi import elf
from bivisor.abi.xen.pv import ElfNote
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall, SchedOp, ShutdownReason
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenhost import XenHost

BASE = 0xFFFF_FFFF_8000_0000
KERNEL, LIST, ARGUMENTS, SPARE = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000
_SIZE = 0x8000
_LOOP = bytes.fromhex(
    "488b03 488b7b08 488b7310 488b5318 4c8b5320 4c8b4328 4885c0 780c 0f05 48894330 4883c340 ebd8 4889d1 f3a4 ebef"
)
COPY = 1 << 63
"""Stands for the number of a hypercall: what the kernel does itself."""
_START = b"\x48\xbb" + struct.pack("<Q", BASE + LIST)
_ENTRY = struct.Struct("<6QqQ")
PATIENCE_S = 60.0


def _note(kind: ElfNote, data: bytes) -> bytes:
    return elf.NHDR.pack(4, len(data), kind) + elf.XEN_NOTE_NAME + data.ljust(-(-len(data) // 4) * 4, b"\0")


def kernel(path: Path, code: bytes = _START + _LOOP) -> Path:
    """The kernel as a file."""
    notes = b"".join(
        (
            _note(ElfNote.GUEST_OS, b"player\0"),
            _note(ElfNote.LOADER, b"generic\0"),
            _note(ElfNote.XEN_VERSION, b"xen-3.0\0"),
            _note(ElfNote.VIRT_BASE, struct.pack("<Q", BASE)),
            _note(ElfNote.ENTRY, struct.pack("<Q", BASE + KERNEL)),
        )
    )
    start = elf.EHDR64.size + 2 * elf.PHDR64.size
    ident = elf.ELFMAG + bytes([elf.ELFCLASS64, elf.ELFDATA2LSB, 1]) + bytes(9)
    header = elf.EHDR64.pack(ident, elf.ET_EXEC, elf.EM_X86_64, 1, KERNEL, elf.EHDR64.size, 0, 0, 64, 56, 2, 0, 0, 0)
    load = elf.PHDR64.pack(elf.PT_LOAD, 7, start, BASE + KERNEL, KERNEL, len(code), max(_SIZE, len(code)), 4096)
    note = elf.PHDR64.pack(elf.PT_NOTE, 4, start + len(code), 0, 0, len(notes), len(notes), 4)
    path.write_bytes(header + load + note + code + notes)
    return path


class Player:
    """A domain with that kernel, paused. `root` is the frame of its level-4 table."""

    def __init__(self, host: XenHost, path: Path, name: str = "player", code: bytes = _START + _LOOP) -> None:
        self.domain: DomU = host.create(name, kernel(path, code), type="pv", memory=16, cmdline="", paused=True)
        self.memory = self.domain._built.domain.memory
        self.root: int = self.domain._built.guest.machine_view.root  # type: ignore[attr-defined]
        self._calls: list[tuple[int, ...]] = []
        self._next = ARGUMENTS

    def argument(self, data: bytes) -> int:
        """Put `data` where a hypercall finds it; its address."""
        at = self._next
        self._next += -(-len(data) // 16) * 16
        self.memory.write(at, data)
        return BASE + at

    def call(self, number: int, *arguments: int) -> None:
        """Have it make this hypercall."""
        self._calls.append((number, *arguments, *[0] * (5 - len(arguments))))

    def update(self, address: int, value: int) -> None:
        """One mmu_update of its own."""
        self.call(Hypercall.MMU_UPDATE, self.argument(struct.pack("<QQ", address, value)), 1, 0, DOMID_SELF)

    def extended(self, command: int, first: int, second: int = 0) -> None:
        """One mmuext_op of its own."""
        at = self.argument(struct.pack("<I4xQQ", command, first, second))
        self.call(Hypercall.MMUEXT_OP, at, 1, 0, DOMID_SELF)

    def entry(self, virtual: int) -> int:
        """The machine address of the level-1 entry of `virtual`."""
        machine = self.domain._built.guest.machine_view  # type: ignore[attr-defined]
        index = machine.pages.l1_index(machine.root, virtual)
        assert index is not None
        return int(index) * 8

    def play(self) -> list[int]:
        """Let it run to the end: what the hypercalls gave."""
        end = self.argument(struct.pack("<I", ShutdownReason.POWEROFF))
        calls = [*self._calls, (Hypercall.SCHED_OP, SchedOp.SHUTDOWN, end, 0, 0, 0)]
        for number, call in enumerate(calls):
            self.memory.write(LIST + _ENTRY.size * number, _ENTRY.pack(*call, 0, 0))
        self.domain.start()
        assert self.domain.wait(PATIENCE_S) is ShutdownReason.POWEROFF
        read = self.memory.read
        return [_ENTRY.unpack(read(LIST + _ENTRY.size * n, _ENTRY.size))[6] for n in range(len(self._calls))]
