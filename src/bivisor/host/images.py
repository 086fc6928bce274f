"""Where disk images are opened, whatever their format: raw ones here, QEMU's by its own helper.

A format that nobody named is found by what the file begins with, and only raw and qcow2 are. What a raw disk begins
with a guest has written, so what was found so is trusted with nothing but the file itself: a header that leads to
another file of the host, as a backing file or as the place of the data, is refused until somebody names the format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bivisor.errors import UsageError
from bivisor.host import qemu_nbd
from bivisor.host.disk import Disk
from bivisor.host.how import HowToOpen, check_format
from bivisor.host.overlay import Overlay

# QEMU docs/interop/qcow2.txt, "Header": magic, version, offset of the backing file's name; at 72 incompatible features.
_QCOW2 = struct.Struct(">4sIQ56xQ")
_MAGIC, _VERSIONS, _EXTERNAL_DATA = b"QFI\xfb", (2, 3), 1 << 2


class DiskImage(Protocol):
    """An open disk. Offsets and lengths are in bytes, whole sectors, and inside `size`."""

    path: Path
    size: int
    read_only: bool
    physical_block: int

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on; how many bytes that were. OSError."""

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` to `offset` on; how many bytes that were. OSError."""

    def flush(self) -> None:
        """Make all that was written stable. OSError."""

    def discard(self, offset: int, length: int) -> None:
        """The bytes are not needed any more. OSError."""

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make the bytes read as zero; `unmap`: space may be given back. OSError."""

    def close(self) -> None:
        """Let go of the image."""


def open_image(path: str | Path, how: HowToOpen | None = None) -> DiskImage:
    """Open the image or block device `path`. UsageError, ImageError and HostError say in one line what cannot be."""
    how = how or HowToOpen()
    place = Path(path)
    format_ = check_format(how.format, place) or _probe(place)
    read_only = how.read_only or how.throw_away
    if how.force_share and not read_only:
        raise UsageError(f"disk {path}: force-share is for disks that are only read: add ro or snapshot")
    if format_ == "raw":
        if how.snapshot:
            raise UsageError(f"disk {path}: a raw image has no snapshots")
        image: DiskImage = Disk(place, read_only=read_only, force_share=how.force_share)
    else:
        if how.snapshot and not read_only:
            raise UsageError(f"disk {path}: a snapshot in it can only be read: add ro, or snapshot to write beside it")
        with Disk(place, read_only=True, force_share=True, any_size=True):
            pass  # what is wrong with the file as such is told as for any other
        qemu_nbd.check_chain(place, format_, force_share=how.force_share)
        image = qemu_nbd.QemuImage(
            place, format_, read_only=read_only, snapshot=how.snapshot, force_share=how.force_share
        )
    if not how.throw_away or how.read_only:
        return image
    try:
        return Overlay(image)
    except BaseException:
        image.close()
        raise


def _probe(path: Path) -> str:
    """raw or qcow2, by the file's first bytes. What cannot be read is raw, and opening it says why."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return "raw"
    try:
        head = os.pread(fd, _QCOW2.size, 0).ljust(_QCOW2.size, b"\0")
    except OSError:
        return "raw"
    finally:
        os.close(fd)
    magic, version, backing, incompatible = _QCOW2.unpack(head)
    if magic != _MAGIC or version not in _VERSIONS:
        return "raw"
    if backing or (version > 2 and incompatible & _EXTERNAL_DATA):
        raise UsageError(
            f"disk {path}: it looks like qcow2 and leads to another file: give format=qcow2 if you made it so, "
            "format=raw if a guest may have written that"
        )
    return "qcow2"
