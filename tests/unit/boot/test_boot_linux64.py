"""The 64-bit Linux boot protocol, seen in the guest memory and registers that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import boot_images as images
import pytest

from bivisor import boot
from bivisor.abi import boot_params as abi
from bivisor.boot.placement import memory_map
from bivisor.errors import ImageError, UsageError
from bivisor.memory import HOLE_END, HOLE_START, GuestMemory

KERNEL = images.bzimage(images.PACKERS["LZ4"](images.elf64(notes=images.note())))
LOW = [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2)]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 << 20) as memory:
        yield memory


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return images.file(tmp_path, KERNEL, "kernel")


def e820(memory: GuestMemory, zero_page: int) -> list[tuple[int, ...]]:
    count = memory.read(zero_page + abi.E820_ENTRIES, 1)[0]
    table = memory.read(zero_page + abi.E820_TABLE, count * abi.E820_ENTRY.size)
    return list(abi.E820_ENTRY.iter_unpack(table))


def string(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 4096).partition(b"\0")[0]


def test_the_kernel_inside_is_entered_in_long_mode_with_the_zero_page_in_rsi(memory: GuestMemory, kernel: Path) -> None:
    entry = boot.load(memory, kernel, cmdline="console=ttyS0 quiet", rsdp=0xE0000)
    assert (entry.protocol, entry.regs.rip) == ("linux64", images.BASE)
    assert memory.read(images.BASE, len(images.CODE)) == images.CODE
    page = entry.regs.rsi
    assert memory.read(page + abi.HEADER_AT, 4) == b"HdrS"
    assert memory.read(page + abi.TYPE_OF_LOADER, 1) == b"\xff"
    assert memory.read_u64(page + abi.ACPI_RSDP_ADDR) == 0xE0000
    assert string(memory, memory.read_u32(page + abi.CMD_LINE_PTR)) == b"console=ttyS0 quiet"
    assert memory.read_u32(page + abi.RAMDISK_SIZE) == 0
    assert entry.sregs.efer == 0x500
    assert entry.sregs.cr0 & 0x8000_0001 == 0x8000_0001
    assert (entry.sregs.cs.selector, entry.sregs.cs.l, entry.sregs.cs.db) == (0x10, 1, 0)
    assert (entry.sregs.ds.selector, entry.sregs.tr.type) == (0x18, 11)


def test_the_page_tables_map_the_first_4_gib_one_to_one(memory: GuestMemory, kernel: Path) -> None:
    cr3 = boot.load(memory, kernel).sregs.cr3
    for address in (0, 0x1000, images.BASE, 0xBFFF_FFFF, 0xFFFF_FFFF):
        pdpt = memory.read_u64(cr3) & ~0xFFF
        directory = memory.read_u64(pdpt + 8 * (address >> 30)) & ~0xFFF
        page = memory.read_u64(directory + 8 * (address >> 21 & 511))
        assert page & 0x83 == 0x83
        assert (page & ~0x1F_FFFF) + (address & 0x1F_FFFF) == address
    assert memory.read_u64(cr3 + 8) == 0


def test_the_descriptors_in_memory_agree_with_the_segment_registers(memory: GuestMemory, kernel: Path) -> None:
    for protocol, code in (("linux64", 0x00AF_9B00_0000_FFFF), ("pvh", 0x00CF_9B00_0000_FFFF)):
        gdt = boot.load(memory, kernel, protocol=protocol).sregs.gdt
        assert memory.read_u64(gdt.base + 0x10) == code
        assert memory.read_u64(gdt.base + 0x18) == 0x00CF_9300_0000_FFFF


def test_the_memory_map_has_the_classic_first_mib(memory: GuestMemory, kernel: Path) -> None:
    entry = boot.load(memory, kernel)
    assert e820(memory, entry.regs.rsi) == [*LOW, (1 << 20, 63 << 20, 1)]


def test_reserved_ranges_are_taken_out_of_the_ram(memory: GuestMemory, kernel: Path) -> None:
    entry = boot.load(memory, kernel, reserve=[(0x3FF_F000, 0x1000), (0xB000_0000, 0x1000_0000)])
    assert e820(memory, entry.regs.rsi)[2:] == [
        (1 << 20, 0x3FF_F000 - (1 << 20), 1),
        (0x3FF_F000, 0x1000, 2),
        (0xB000_0000, 0x1000_0000, 2),
    ]


def test_ram_goes_on_above_the_hole() -> None:
    entries = memory_map([(0, HOLE_START), (HOLE_END, 1 << 30)])
    assert [(e.base, e.size, e.type) for e in entries] == [
        *LOW,
        (1 << 20, HOLE_START - (1 << 20), 1),
        (HOLE_END, 1 << 30, 1),
    ]


def test_the_initrd_lies_at_the_top_untouched(memory: GuestMemory, kernel: Path, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40 + b"end"
    initrd = images.file(tmp_path, content, "initrd")
    page = boot.load(memory, kernel, initrd=initrd).regs.rsi
    start, size = memory.read_u32(page + abi.RAMDISK_IMAGE), memory.read_u32(page + abi.RAMDISK_SIZE)
    assert (start, size) == ((64 << 20) - 0x3000, len(content))
    assert memory.read(start, size) == content


def test_the_initrd_respects_the_kernels_limit(memory: GuestMemory, tmp_path: Path) -> None:
    kernel = images.file(
        tmp_path, images.bzimage(images.PACKERS["gzip"](images.elf64()), initrd_addr_max=0x1FF_FFFF), "kernel"
    )
    page = boot.load(memory, kernel, initrd=images.file(tmp_path, b"x" * 5000)).regs.rsi
    assert memory.read_u32(page + abi.RAMDISK_IMAGE) == 0x1FF_E000


def test_an_initrd_that_fits_only_above_4_gib_goes_there(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(16 << 20)
        file.write(b"cpio")
    for xloadflags, fits in ((3, True), (1, False)):
        packed = images.bzimage(
            images.PACKERS["gzip"](images.elf64()), initrd_addr_max=0x80_0000, xloadflags=xloadflags
        )
        kernel = images.file(tmp_path, packed, "kernel")
        with GuestMemory(HOLE_START + (32 << 20)) as memory:
            if not fits:
                with pytest.raises(ImageError, match="does not fit"):
                    boot.load(memory, kernel, initrd=initrd)
                continue
            page = boot.load(memory, kernel, initrd=initrd).regs.rsi
            start = memory.read_u32(page + abi.RAMDISK_IMAGE) | memory.read_u32(page + abi.EXT_RAMDISK_IMAGE) << 32
            assert start == HOLE_END + (16 << 20)
            assert memory.read(start, 4) == b"cpio"


def test_nothing_overlaps_and_nothing_is_put_where_roms_are(memory: GuestMemory, kernel: Path, tmp_path: Path) -> None:
    initrd = images.file(tmp_path, bytes(12345), "initrd")
    layout = boot.load(memory, kernel, initrd=initrd, cmdline="x" * 2000).layout
    assert {"kernel", "initrd", "boot_params", "page tables", "GDT", "command line"} == {r.name for r in layout}
    assert all(first.end <= second.gpa for first, second in pairwise(layout))
    assert all(r.end <= 0x9FC00 or r.gpa >= 0x10_0000 for r in layout)


def test_the_bss_is_zero_even_in_memory_that_was_used_before(memory: GuestMemory, kernel: Path) -> None:
    memory.view(images.BASE, 0x20_0000)[:] = b"\xff" * 0x20_0000
    boot.load(memory, kernel)
    assert memory.read(images.BASE, len(images.CODE)) == images.CODE
    assert memory.read(images.BASE + len(images.CODE), images.BSS) == bytes(images.BSS)
    assert memory.read(images.BASE + len(images.CODE) + images.BSS, 1) == b"\xff"


def test_an_engine_hears_of_everything_that_was_written(memory: GuestMemory, kernel: Path) -> None:
    heard: list[tuple[int, int]] = []
    memory.listen(lambda gpa, length: heard.append((gpa, length)))
    layout = boot.load(memory, kernel).layout
    assert all(any(gpa <= r.gpa < gpa + length for gpa, length in heard) for r in layout)


def test_a_payload_that_cannot_be_unpacked_is_left_to_the_kernels_own_code(memory: GuestMemory, tmp_path: Path) -> None:
    kernel = images.file(tmp_path, images.bzimage(b"\x89LZO\0\r\n\x1a\n" + b"?" * 100))
    entry = boot.load(memory, kernel)
    assert entry.regs.rip == images.BASE + 0x200
    assert memory.read(images.BASE + 0x240, 4) == b"\x89LZO"
    with pytest.raises(ImageError, match="does not offer pvh"):
        boot.load(memory, kernel, protocol="pvh")


def test_a_vmlinux_gets_a_setup_header_of_its_own(memory: GuestMemory, tmp_path: Path) -> None:
    entry = boot.load(memory, images.file(tmp_path, images.elf64()), cmdline="quiet")
    assert memory.read(entry.regs.rsi + abi.HEADER_AT, 4) == b"HdrS"
    assert string(memory, memory.read_u32(entry.regs.rsi + abi.CMD_LINE_PTR)) == b"quiet"


def test_a_kernel_too_large_for_the_memory_is_refused_with_both_sizes(kernel: Path) -> None:
    message = r"kernel does not fit: it lies from 0x1000000 to 0x100620c and needs 17 MiB; the guest has 8 MiB$"
    with GuestMemory(8 << 20) as memory, pytest.raises(ImageError, match=message):
        boot.load(memory, kernel)


def test_an_initrd_larger_than_memory_is_refused_with_both_sizes(
    memory: GuestMemory, kernel: Path, tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(ImageError, match=r"initrd .* of 100 MiB does not fit .* 64 MiB"):
        boot.load(memory, kernel, initrd=initrd)


def test_a_kernel_may_not_lie_in_reserved_memory(memory: GuestMemory, kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="reserved"):
        boot.load(memory, kernel, reserve=[(images.BASE, 4096)])
    with pytest.raises(ImageError, match="reserved"):
        boot.load(memory, images.file(tmp_path, images.elf64(base=0x9_F000, entry=0x9_F000)))
    with pytest.raises(UsageError, match="outside"):
        boot.load(memory, kernel, reserve=[(-1, 4096)])


def test_a_command_line_longer_than_the_kernel_takes_is_refused(memory: GuestMemory, kernel: Path) -> None:
    boot.load(memory, kernel, cmdline="x" * 2047)
    with pytest.raises(ImageError, match="2048 bytes; this kernel takes at most 2047"):
        boot.load(memory, kernel, cmdline="x" * 2048)
    with pytest.raises(ImageError, match="zero byte"):
        boot.load(memory, kernel, cmdline="a\0b")


def test_modules_and_unknown_protocols_are_refused(memory: GuestMemory, kernel: Path) -> None:
    with pytest.raises(ImageError, match="no modules"):
        boot.load(memory, kernel, modules=[boot.Module(kernel)])
    with pytest.raises(ImageError, match="there are linux64, pvh, multiboot, raw"):
        boot.load(memory, kernel, protocol="efi")
    with pytest.raises(ImageError, match="does not offer multiboot; it offers linux64, pvh"):
        boot.load(memory, kernel, protocol="multiboot")


def test_an_entry_point_outside_the_kernel_is_refused(memory: GuestMemory, tmp_path: Path) -> None:
    packed = images.PACKERS["gzip"](images.elf64(entry=0x10))
    with pytest.raises(ImageError, match="entry point 0x10 is not inside"):
        boot.load(memory, images.file(tmp_path, images.bzimage(packed)))
