"""The PV domain builder: notes, layout and page tables, without an engine."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bivisor.abi import elf
from bivisor.abi.xen import pv as abi
from bivisor.abi.xen.pv import ElfNote
from bivisor.boot import xenpv
from bivisor.errors import ImageError
from bivisor.memory import PAGE, GuestMemory

BASE = 0xFFFF_FFFF_8000_0000
LOAD = 1 << 20
MIB = 1 << 20
P, RW = 1, 2
NOTES: dict[ElfNote, bytes] = {
    ElfNote.GUEST_OS: b"tiny\0",
    ElfNote.LOADER: b"generic\0",
    ElfNote.XEN_VERSION: b"xen-3.0\0",
    ElfNote.VIRT_BASE: struct.pack("<Q", BASE),
    ElfNote.ENTRY: struct.pack("<Q", BASE + LOAD),
    ElfNote.FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb\0",
}


def kernel(path: Path, notes: dict[ElfNote, bytes], bits: int = 64) -> Path:
    data = b"".join(
        elf.NHDR.pack(4, len(text), kind) + elf.XEN_NOTE_NAME + text.ljust(-(-len(text) // 4) * 4, b"\0")
        for kind, text in notes.items()
    )
    start = elf.EHDR64.size + 2 * elf.PHDR64.size
    ident = elf.ELFMAG + bytes([elf.ELFCLASS64, elf.ELFDATA2LSB, 1]) + bytes(9)
    header = elf.EHDR64.pack(ident, elf.ET_EXEC, elf.EM_X86_64, 1, LOAD, elf.EHDR64.size, 0, 0, 64, 56, 2, 0, 0, 0)
    load = elf.PHDR64.pack(elf.PT_LOAD, 7, start, BASE + LOAD, LOAD, 4, 0x3000, PAGE)
    note = elf.PHDR64.pack(elf.PT_NOTE, 4, start + 4, 0, 0, len(data), len(data), 4)
    path.write_bytes(header + load + note + b"code" + data)
    return path


def walk(memory: GuestMemory, root: int, va: int) -> int:
    """The level-1 entry of `va`."""
    table = root * PAGE
    for shift in (39, 30, 21):
        entry = memory.read_u64(table + 8 * (va >> shift & 511))
        assert entry & P
        table = entry & ~(PAGE - 1)
    return memory.read_u64(table + 8 * (va >> 12 & 511))


@pytest.mark.parametrize("extra", [{}, {ElfNote.INIT_P2M: struct.pack("<Q", 0x80_0000_0000)}], ids=["inside", "own"])
def test_a_domain_finds_everything_where_start_info_says(tmp_path: Path, extra: dict[ElfNote, bytes]) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"module" * 1000)
    notes = {**NOTES, **extra, ElfNote.MOD_START_PFN: struct.pack("<Q", 1)}
    with GuestMemory(16 * MIB) as memory:
        ports = xenpv.Ports(3, 4, 0x1200)
        entry = xenpv.build(memory, kernel(tmp_path / "k", notes), ports, initrd=initrd, cmdline="a b")
        info = abi.START_INFO.unpack(memory.read(entry.rsi - BASE, abi.START_INFO.size))
        magic, pages, shared, flags, store, store_port, console, console_port, tables, count, p2m, module, size = info[
            :13
        ]
        assert magic.rstrip(b"\0") == b"xen-3.0-x86_64"
        assert (pages, shared, flags) == (4096, 0x1200 * PAGE, abi.SIF_MOD_START_PFN)
        assert (store_port, console_port, info[13].rstrip(b"\0")) == (3, 4, b"a b")
        assert (store, console, entry.rip) == (entry.store, entry.console, BASE + LOAD)
        assert memory.read(module * PAGE, size) == b"module" * 1000
        assert tables == BASE + entry.page_table * PAGE
        for frame in range(entry.page_table, entry.page_table + count):
            assert not walk(memory, entry.page_table, BASE + frame * PAGE) & RW
        for va in (entry.rip, entry.rsi, entry.rsp - 8, entry.rsp + (256 << 10)):
            assert walk(memory, entry.page_table, va) & (P | RW) == P | RW
        listed = walk(memory, entry.page_table, p2m) & ~(PAGE - 1)
        assert memory.read(listed, 8 * 512) == struct.pack("<512Q", *range(512))
        assert listed // PAGE == info[14]
        assert memory.read(LOAD, 4) == b"code"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({ElfNote.LOADER: b"grub\0"}, "wants the loader 'grub'"),
        ({ElfNote.XEN_VERSION: b"xen-9\0"}, "is for 'xen-9'"),
        ({ElfNote.FEATURES: b"!auto_translated_physmap\0"}, "needs the feature auto_translated_physmap"),
        ({ElfNote.VIRT_BASE: struct.pack("<Q", 0x40_0000)}, "not in the kernel's half"),
        ({ElfNote.ENTRY: b"123"}, "ENTRY has 3 bytes"),
        ({ElfNote.HYPERCALL_PAGE: struct.pack("<Q", BASE + 5)}, "its hypercall page"),
    ],
)
def test_a_kernel_that_wants_something_else_is_refused(
    tmp_path: Path, changed: dict[ElfNote, bytes], told: str
) -> None:
    path = kernel(tmp_path / "k", {**NOTES, **changed})
    with GuestMemory(16 * MIB) as memory, pytest.raises(ImageError, match=told):
        xenpv.build(memory, path, xenpv.Ports(1, 2, 0x1200))


def test_a_kernel_without_notes_or_room_is_refused(tmp_path: Path) -> None:
    with GuestMemory(16 * MIB) as memory, pytest.raises(ImageError, match="no Xen notes"):
        xenpv.build(memory, kernel(tmp_path / "k", {}), xenpv.Ports(1, 2, 0x1200))
    with GuestMemory(2 * MIB) as memory, pytest.raises(ImageError, match="too small"):
        xenpv.build(memory, kernel(tmp_path / "k", NOTES), xenpv.Ports(1, 2, 0x1200))
    with GuestMemory(16 * MIB) as memory, pytest.raises(ImageError, match="takes 1023"):
        xenpv.build(memory, kernel(tmp_path / "k", NOTES), xenpv.Ports(1, 2, 0x1200), cmdline="x" * 1024)
