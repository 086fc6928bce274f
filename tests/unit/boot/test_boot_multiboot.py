"""Multiboot 1, from an ELF file and from nothing but the header's addresses; and raw images."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import boot_images as images
import pytest

from bivisor import boot
from bivisor.abi import multiboot as abi
from bivisor.errors import ImageError
from bivisor.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(16 << 20) as memory:
        yield memory


def information(memory: GuestMemory, entry: boot.Entry) -> tuple[int, ...]:
    assert entry.regs.rax == abi.BOOTLOADER_MAGIC
    return abi.INFO.unpack(memory.read(entry.regs.rbx, abi.INFO.size))


def text(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 256).partition(b"\0")[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_elf32_kernel_is_loaded_by_its_segments(memory: GuestMemory, tmp_path: Path, pack: type[bytes]) -> None:
    entry = boot.load(memory, images.file(tmp_path, pack(images.elf32())))
    assert (entry.protocol, entry.regs.rip, entry.sregs.cr0 & 0x8000_0001) == ("multiboot", 0x10_0040, 1)
    assert memory.read(0x10_0000 + abi.HEADER.size, len(images.CODE)) == images.CODE


def test_the_information_has_memory_sizes_map_command_line_and_loader(memory: GuestMemory, tmp_path: Path) -> None:
    entry = boot.load(memory, images.file(tmp_path, images.elf32()), cmdline="dom0_mem=1G")
    flags, lower, upper, _, cmdline, count, _, *_, length, table, _, _, _, name = information(memory, entry)
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper, count) == (639, 15 << 10, 0)
    assert (text(memory, cmdline), text(memory, name)) == (b"dom0_mem=1G", b"Bivisor")
    assert list(abi.MEMORY_MAP_ENTRY.iter_unpack(memory.read(table, length))) == [
        (20, 0, 0x9FC00, 1),
        (20, 0x9FC00, 0x60400, 2),
        (20, 0x100000, 15 << 20, 1),
    ]


def test_modules_come_with_their_strings(memory: GuestMemory, tmp_path: Path) -> None:
    modules = [boot.Module(images.file(tmp_path, name.encode() * 3000, name), f"{name} args") for name in "ab"]
    entry = boot.load(memory, images.file(tmp_path, images.elf32()), modules=modules)
    count, list_ = information(memory, entry)[5:7]
    table = list(abi.MODULE.iter_unpack(memory.read(list_, count * abi.MODULE.size)))
    assert [memory.read(start, end - start) for start, end, _, _ in table] == [b"a" * 3000, b"b" * 3000]
    assert [text(memory, string) for _, _, string, _ in table] == [b"a args", b"b args"]


def test_the_kludge_loads_by_the_headers_addresses(memory: GuestMemory, tmp_path: Path) -> None:
    image = images.kludge(bss_end=0x30_0000)
    memory.view(0x20_0000, 0x10_0001)[:] = b"\xff" * 0x10_0001
    entry = boot.load(memory, images.file(tmp_path, image))
    assert entry.regs.rip == 0x20_0000 + 64 + 32
    assert memory.read(0x20_0000, len(image)) == image
    assert memory.read(0x20_0000 + len(image), 0x10_0001 - len(image)) == bytes(0x10_0000 - len(image)) + b"\xff"


def test_the_kludge_may_leave_out_the_end_of_the_file(memory: GuestMemory, tmp_path: Path) -> None:
    boot.load(memory, images.file(tmp_path, images.kludge(load_end=0x20_0100)))
    assert memory.read(0x20_0100, 16) == bytes(16)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (images.kludge(load_end=0x1F_0000), "contradict"),
        (images.kludge(bss_end=0x20_0001), "contradict"),
        (images.kludge(load_end=0x2F_0000), "truncated: .* bytes of the multiboot kernel are missing"),
        (images.kludge(load=0x9_F000), "reserved"),
        (images.kludge(load=0x100_0000), "does not fit"),
        (images.elf32(flags=1 << 5), "features 0x20"),
        (images.elf32(flags=1 << 2), "video mode"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(
    image: bytes, message: str, memory: GuestMemory, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=message):
        boot.load(memory, images.file(tmp_path, image))


def test_a_boot_sector_starts_at_0x7c00_in_real_mode(memory: GuestMemory, tmp_path: Path) -> None:
    sector = b"\xf4".ljust(510, b"\0") + b"\x55\xaa"
    entry = boot.load(memory, images.file(tmp_path, sector))
    assert (entry.protocol, entry.regs.rip, entry.regs.rdx, entry.sregs.cs.base) == ("raw", 0x7C00, 0x80, 0)
    assert entry.sregs.cr0 & 1 == 0
    assert memory.read(0x7C00, 512) == sector


def test_any_file_is_raw_if_asked_for_and_small_enough(memory: GuestMemory, tmp_path: Path) -> None:
    boot.load(memory, images.file(tmp_path, b"\xf4"), protocol="raw")
    assert memory.read(0x7C00, 1) == b"\xf4"
    with pytest.raises(ImageError, match="at most 558080 fit"):
        boot.load(memory, images.file(tmp_path, bytes(558081)), protocol="raw")
    with pytest.raises(ImageError, match="takes no command line"):
        boot.load(memory, images.file(tmp_path, b"\xf4"), protocol="raw", cmdline="x")
