"""What the loader hands to a boot protocol, what it gets back, and the steps that several protocols share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bivisor.boot import bzimage, elf
from bivisor.boot.cache import Cache
from bivisor.boot.elf import Elf
from bivisor.boot.image import Image
from bivisor.boot.placement import Placement, Range, mib
from bivisor.boot.source import Source, copy
from bivisor.cpu.registers import Regs, Sregs
from bivisor.errors import ImageError
from bivisor.memory import HOLE_START


@dataclass(frozen=True, slots=True)
class Module:
    """A file for the kernel besides the initramfs, with the string that goes with it."""

    path: Path
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A loaded guest: the state for processor 0, the protocol by which it was loaded, and what was put where."""

    regs: Regs
    sregs: Sregs
    protocol: str
    layout: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One guest to load. `cmdline` and the modules' strings are without the terminating zero."""

    place: Placement
    source: Source
    image: Image
    protocol: str
    initrd: Source | None
    cmdline: bytes
    modules: tuple[tuple[Source, bytes], ...]
    rsdp: int | None
    cache: Cache

    def entry(self, regs: Regs, sregs: Sregs) -> Entry:
        """The answer, with the layout as it is now."""
        return Entry(regs, sregs, self.protocol, self.place.layout)

    def refuse(self, why: str) -> ImageError:
        """The error that this kernel cannot be booted by this protocol."""
        return ImageError(f"{self.source.name}: {why}")

    def check_cmdline(self, limit: int) -> None:
        """ImageError if the command line has more than `limit` bytes."""
        if len(self.cmdline) > limit:
            raise ImageError(f"the command line has {len(self.cmdline)} bytes; this kernel takes at most {limit}")


@contextmanager
def vmlinux(request: Request) -> Iterator[tuple[Source, Elf] | None]:
    """The ELF file to load: the image itself or the one inside the bzImage; None if that one cannot be unpacked."""
    if request.image.elf is not None:
        yield request.source, request.image.elf
        return
    inner = None
    if request.image.bzimage is not None:
        inner = bzimage.payload(request.source, request.image.bzimage, request.cache)
    if inner is None:
        yield None
        return
    with inner:
        yield inner, elf.parse(inner)


def put_file(place: Placement, name: str, source: Source, below: int, beyond: bool) -> Range:
    """Copy a whole file as high as possible below `below` and the hole, or anywhere if it does not fit and `beyond`.

    ImageError with both sizes if there is no room.
    """
    gpa = place.high(name, source.size, min(below, HOLE_START))
    if gpa is None and beyond:
        gpa = place.high(name, source.size)
    if gpa is None:
        raise ImageError(
            f"{name} {source.name} of {mib(source.size)} MiB does not fit beside the kernel "
            f"in the guest's {mib(place.memory.size)} MiB of memory"
        )
    copy(source, 0, source.size, place.memory, gpa)
    return Range(name, gpa, source.size)


def put_string(place: Placement, name: str, text: bytes) -> int:
    """Put `text` and a terminating zero into low memory; gives the address."""
    gpa = place.low(name, len(text) + 1)
    place.memory.write(gpa, text + b"\0")
    return gpa
