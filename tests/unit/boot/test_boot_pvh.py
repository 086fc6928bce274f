"""PVH: what the kernel finds at the address in EBX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boot_images as images
import pytest

from bivisor import boot
from bivisor.abi import hvm_start_info as abi
from bivisor.errors import ImageError
from bivisor.memory import GuestMemory

KERNEL = images.elf64(notes=images.note())


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 << 20) as memory:
        yield memory


def start_info(memory: GuestMemory, entry: boot.Entry) -> tuple[int, ...]:
    return abi.HVM_START_INFO.unpack(memory.read(entry.regs.rbx, abi.HVM_START_INFO.size))


def test_an_elf_kernel_with_the_note_is_entered_in_32_bit_protected_mode(memory: GuestMemory, tmp_path: Path) -> None:
    entry = boot.load(memory, images.file(tmp_path, KERNEL))
    assert (entry.protocol, entry.regs.rip) == ("pvh", images.PVH_ENTRY)
    sregs = entry.sregs
    assert (sregs.cr0 & ~0x10, sregs.cr4, sregs.efer) == (1, 0, 0)
    assert (sregs.cs.db, sregs.cs.l, sregs.cs.limit) == (1, 0, 0xFFFF_FFFF)
    assert (sregs.tr.base, sregs.tr.limit, sregs.tr.type) == (0, 0x67, 11)
    assert entry.regs.rflags == 2
    assert memory.read(images.BASE, len(images.CODE)) == images.CODE


def test_the_start_information_has_command_line_memory_map_and_rsdp(memory: GuestMemory, tmp_path: Path) -> None:
    entry = boot.load(memory, images.file(tmp_path, KERNEL), cmdline="console=hvc0", rsdp=0xE0000)
    magic, version, flags, count, modules, cmdline, rsdp, memmap, entries, _ = start_info(memory, entry)
    assert (magic, version, flags, count, modules, rsdp) == (0x336EC578, 1, 0, 0, 0, 0xE0000)
    assert memory.read(cmdline, 13) == b"console=hvc0\0"
    table = memory.read(memmap, entries * abi.HVM_MEMMAP_TABLE_ENTRY.size)
    assert list(abi.HVM_MEMMAP_TABLE_ENTRY.iter_unpack(table)) == [
        (0, 0x9FC00, 1, 0),
        (0x9FC00, 0x60400, 2, 0),
        (0x100000, 63 << 20, 1, 0),
    ]


def test_the_initrd_is_the_first_module(memory: GuestMemory, tmp_path: Path) -> None:
    files = [images.file(tmp_path, text.encode(), text) for text in ("initrd", "one", "two")]
    modules = [boot.Module(files[1], "first"), boot.Module(files[2])]
    entry = boot.load(memory, images.file(tmp_path, KERNEL), initrd=files[0], modules=modules)
    count, list_ = start_info(memory, entry)[3:5]
    table = list(abi.HVM_MODLIST_ENTRY.iter_unpack(memory.read(list_, count * abi.HVM_MODLIST_ENTRY.size)))
    assert [memory.read(paddr, size) for paddr, size, *_ in table] == [b"initrd", b"one", b"two"]
    assert [bool(string) for _, _, string, _ in table] == [False, True, False]
    assert memory.read(table[1][2], 6) == b"first\0"
    assert all(paddr % 4096 == 0 for paddr, *_ in table)


def test_the_kernel_inside_a_bzimage_is_entered_by_pvh_if_asked(memory: GuestMemory, tmp_path: Path) -> None:
    kernel = images.file(tmp_path, images.bzimage(images.PACKERS["Zstandard"](KERNEL)))
    assert boot.load(memory, kernel, protocol="pvh").regs.rip == images.PVH_ENTRY


def test_a_kernel_without_the_note_is_refused(memory: GuestMemory, tmp_path: Path) -> None:
    kernel = images.file(tmp_path, images.bzimage(images.PACKERS["gzip"](images.elf64())))
    with pytest.raises(ImageError, match="x86-64 without PVH entry point"):
        boot.load(memory, kernel, protocol="pvh")


def test_a_32_bit_bzimage_is_refused_by_the_name_of_its_architecture(memory: GuestMemory, tmp_path: Path) -> None:
    kernel = images.file(tmp_path, images.bzimage(images.PACKERS["gzip"](images.elf32(flags=None)), xloadflags=0))
    with pytest.raises(ImageError, match="i386"):
        boot.load(memory, kernel)
