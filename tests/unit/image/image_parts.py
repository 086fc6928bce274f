"""Kernels and modules made here, with just what this package looks at."""

from __future__ import annotations

import struct
from pathlib import Path


def bzimage(release: str) -> bytes:
    """The head of a bzImage of this release (Documentation/arch/x86/boot.rst)."""
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x600)
    text = f"{release} (a@b) #1 SMP\0".encode()
    image[0x800 : 0x800 + len(text)] = text
    return bytes(image)


def module(modinfo: dict[str, str | list[str]]) -> bytes:
    """A relocatable ELF64 with the sections .modinfo and .shstrtab and nothing else."""
    items = [(k, v) for k, values in modinfo.items() for v in ([values] if isinstance(values, str) else values)]
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in items)
    names = b"\0.modinfo\0.shstrtab\0"
    sections = 64 + len(info) + len(names)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 1, 62, 1, 0, 0, sections, 0, 64, 0, 0, 64, 3, 2)
    section = struct.Struct("<IIQQQQIIQQ")
    return (
        header
        + info
        + names
        + bytes(64)
        + section.pack(1, 1, 0, 0, 64, len(info), 0, 0, 1, 0)
        + section.pack(10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0)
    )


def install(root: Path, release: str, modules: dict[str, str]) -> Path:
    """A kernel in `root`/boot and its modules, by name with what they depend on, in `root`/lib/modules. The kernel."""
    kernel = root / f"boot/vmlinuz-{release}"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_bytes(bzimage(release))
    drivers = root / f"lib/modules/{release}/kernel/drivers"
    drivers.mkdir(parents=True)
    for name, needed in modules.items():
        (drivers / f"{name}.ko").write_bytes(module({"name": name, "depends": needed}))
    return kernel
