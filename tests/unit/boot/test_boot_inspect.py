"""A file is recognised by what is in it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import boot_images as images
import pytest

from bivisor import boot
from bivisor.abi import elf
from bivisor.errors import ImageError
from bivisor.memory import GuestMemory


@pytest.mark.parametrize("name", images.PACKERS)
def test_a_bzimage_tells_its_version_and_compression(name: str) -> None:
    found = boot.inspect(images.bzimage(images.PACKERS[name](images.elf64())))
    assert (found.kind, found.architecture, found.protocols) == ("bzImage", "x86-64", ("linux64",))
    assert (found.version, found.compression) == (images.VERSION.decode(), name)


def test_a_bzimage_offers_pvh_if_the_kernel_inside_has_the_note() -> None:
    packed = images.PACKERS["gzip"](images.elf64(notes=images.note()))
    assert boot.inspect(images.bzimage(packed)).protocols == ("linux64", "pvh")


def test_a_bzimage_with_a_payload_that_cannot_be_unpacked_offers_its_own_entry() -> None:
    found = boot.inspect(images.bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(100)))
    assert (found.protocols, found.compression) == (("linux64",), "LZO")


def test_a_32_bit_bzimage_is_an_i386_kernel_without_a_protocol() -> None:
    packed = images.PACKERS["gzip"](images.elf32(flags=None))
    found = boot.inspect(images.bzimage(packed, xloadflags=0))
    assert (found.architecture, found.protocols) == ("i386", ())


def test_an_elf_kernel_offers_what_its_headers_say() -> None:
    assert boot.inspect(images.elf64()).protocols == ("linux64",)
    assert boot.inspect(images.elf64(notes=images.note())).protocols == ("pvh", "linux64")
    assert boot.inspect(images.elf64(entry=0xFFFF_FFFF_8100_0000)).protocols == ()
    assert boot.inspect(images.elf32()).protocols == ("multiboot",)


def test_notes_of_others_come_before_the_pvh_note() -> None:
    notes = images.note(18, 0x1234, b"GNU\0") + images.note(6, 0x1234) + images.note()
    found = boot.inspect(images.elf64(notes=notes))
    assert found.elf is not None
    assert found.elf.phys32_entry == images.PVH_ENTRY


def test_a_multiboot_header_counts_only_if_aligned_and_in_the_first_8_kib() -> None:
    assert boot.inspect(images.kludge()).kind == "multiboot"
    for image in (images.kludge(before=65), images.kludge(before=8192 - 8)):
        with pytest.raises(ImageError):
            boot.inspect(image)


def test_a_boot_sector_is_raw_and_a_disk_image_is_not_loadable() -> None:
    sector = bytes(510) + b"\x55\xaa"
    assert boot.inspect(sector).protocols == ("raw",)
    assert boot.inspect(sector + bytes(1 << 20)).protocols == ()


@pytest.mark.parametrize(
    ("image", "architecture"),
    [
        (bytes(0x38) + b"ARM\x64" + bytes(64), "AArch64"),
        (b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(64), "AArch64"),
        (bytes(0x30) + b"RISCV\0\0\0RSC\x05" + bytes(64), "RISC-V"),
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(64), "ARM"),
        (images.elf64(machine=elf.EM_AARCH64), "AArch64"),
        (images.elf64(machine=243), "RISC-V"),
        (images.elf64(machine=9999), "machine 9999"),
        (elf.ELFMAG + b"\x02\x02\x01" + bytes(9) + b"\0\x02\0\x16" + bytes(40), "s390"),
        (b"MZ\0\0zimg".ljust(0x3C, b"\0") + b"\x40\0\0\0PE\0\0\x64\xaa" + bytes(64), "AArch64"),
        (gzip.compress(bytes(0x38) + b"ARM\x64" + bytes(64), mtime=0), "AArch64"),
    ],
)
def test_a_kernel_for_another_machine_is_named_and_refused(image: bytes, architecture: str, tmp_path: Path) -> None:
    found = boot.inspect(image)
    assert (found.architecture, found.protocols) == (architecture, ())
    with GuestMemory(1 << 20) as memory, pytest.raises(ImageError, match=f"{architecture}.*x86-64"):
        boot.load(memory, images.file(tmp_path, image))


def test_a_kernel_packed_as_a_whole_is_looked_into() -> None:
    found = boot.inspect(gzip.compress(images.elf32()))
    assert (found.kind, found.protocols, found.compression) == ("ELF", ("multiboot",), "gzip")


def test_what_is_no_kernel_is_said_with_its_first_bytes() -> None:
    with pytest.raises(
        ImageError,
        match=r"no kernel: this is a script, it begins with 23 21 2f 62 69 6e 2f 73 \(#!/bin/s\); a bzImage, an ELF",
    ):
        boot.inspect(b"#!/bin/sh\n" * 100)
    with pytest.raises(ImageError, match="this is a cpio archive, perhaps an initramfs"):
        boot.inspect(gzip.compress(b"070701" + bytes(600)))
    with pytest.raises(ImageError, match="gzip data in which there is XZ data"):
        boot.inspect(gzip.compress(images.PACKERS["XZ"](b"x")))


@pytest.mark.parametrize("what", ["missing", "directory", "empty", "fifo", "nul"])
def test_a_file_that_is_none_is_refused_with_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / what
    match what:
        case "directory":
            path.mkdir()
        case "empty":
            path.touch()
        case "fifo":
            os.mkfifo(path)
        case "nul":
            path = tmp_path / "a\0b"
    with pytest.raises(ImageError, match=r"^kernel .*: ") as caught:
        boot.inspect(path)
    assert "\n" not in str(caught.value)
