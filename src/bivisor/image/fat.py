"""A FAT16 file system, as UEFI wants its system partition.

Specification: Microsoft, FAT: General Overview of On-Disk Format 1.03; UEFI 2.10 section 13.3. Files have short names
and are written once, one behind the other.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from bivisor.errors import UsageError

SECTOR = 512
_ROOT_ENTRIES, _ENTRY_SIZE = 512, 32
_FAT16_LEAST, _FAT16_MOST = 4085, 65524
_END = 0xFFFF
_FIXED = 0xF8
_DIRECTORY, _LABEL, _ARCHIVE = 0x10, 0x08, 0x20
_BOOT = struct.Struct("<3s8sHBHBHHBHHHIIBBBI11s8s")
_ENTRY = struct.Struct("<11sB8xHHHHI")
_DATE = 0x21  # the first day that there is, 1980-01-01: an image depends on nothing but what is in it

Tree = dict[str, "bytes | Tree"]


def fat16(files: Mapping[str, bytes], sectors: int, *, label: str = "EFI", hidden: int = 0) -> bytes:
    """A file system of `sectors` sectors with `files`, by paths such as EFI/BOOT/BOOTX64.EFI. It begins at sector
    `hidden` of its disk. UsageError where the names are no short ones, or there is no room."""
    return _Writer(sectors, label, hidden).write(_tree(files))


def _tree(files: Mapping[str, bytes]) -> Tree:
    root: Tree = {}
    for path, data in files.items():
        *folders, name = path.split("/")
        place = root
        for folder in folders:
            inside = place.setdefault(folder, {})
            if not isinstance(inside, dict):
                raise UsageError(f"{path}: {folder} is a file")
            place = inside
        place[name] = data
    return root


class _Writer:
    def __init__(self, sectors: int, label: str, hidden: int) -> None:
        self._sectors = sectors
        self._label = label.upper().ljust(11).encode("ascii")
        self._hidden = hidden
        self._fat_sectors = -(-(sectors + 2) * 2 // SECTOR)
        self._data_at = 1 + 2 * self._fat_sectors + _ROOT_ENTRIES * _ENTRY_SIZE // SECTOR
        self._clusters = sectors - self._data_at
        if not _FAT16_LEAST <= self._clusters <= _FAT16_MOST:
            raise UsageError(f"a FAT16 file system of {sectors} sectors: {_FAT16_LEAST} to {_FAT16_MOST} clusters")
        self._fat = [0xFF00 | _FIXED, _END]
        self._data = bytearray()

    def write(self, root: Tree) -> bytes:
        volume = _ENTRY.pack(self._label, _LABEL, 0, _DATE, 0, 0, 0)
        entries = volume + self._entries(root, 0)
        if len(entries) > _ROOT_ENTRIES * _ENTRY_SIZE:
            raise UsageError(f"{len(root)} files at the top of a FAT16 file system: {_ROOT_ENTRIES - 1} are the most")
        if len(self._fat) > self._clusters + 2:
            raise UsageError(f"files of {len(self._data)} bytes: there is room for {self._clusters * SECTOR}")
        table = struct.pack(f"<{len(self._fat)}H", *self._fat).ljust(self._fat_sectors * SECTOR, b"\0")
        image = self._boot_sector() + 2 * table + entries.ljust(_ROOT_ENTRIES * _ENTRY_SIZE, b"\0") + self._data
        return image.ljust(self._sectors * SECTOR, b"\0")

    def _boot_sector(self) -> bytes:
        small = self._sectors if self._sectors < 1 << 16 else 0
        boot = _BOOT.pack(
            b"\xeb\x3c\x90", b"BIVISOR ", SECTOR, 1, 1, 2, _ROOT_ENTRIES, small, _FIXED, self._fat_sectors, 32, 64,
            self._hidden, 0 if small else self._sectors, 0x80, 0, 0x29, 0x4256_5352, self._label, b"FAT16   ",
        )  # fmt: skip
        return boot.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"

    def _entries(self, folder: Tree, own: int) -> bytes:
        return b"".join(self._entry(name, inside, own) for name, inside in folder.items())

    def _entry(self, name: str, inside: bytes | Tree, parent: int) -> bytes:
        short = _short(name)
        if isinstance(inside, bytes):
            first = self._put(inside) if inside else 0
            return _ENTRY.pack(short, _ARCHIVE, 0, 0, _DATE, first, len(inside))
        first = self._reserve((2 + len(inside)) * _ENTRY_SIZE)
        dots = ((b".", first), (b"..", parent))
        data = b"".join(_ENTRY.pack(dot.ljust(11), _DIRECTORY, 0, 0, _DATE, at, 0) for dot, at in dots)
        data += self._entries(inside, first)
        at = (first - 2) * SECTOR
        self._data[at : at + len(data)] = data
        return _ENTRY.pack(short, _DIRECTORY, 0, 0, _DATE, first, 0)

    def _reserve(self, length: int) -> int:
        """A chain of clusters for `length` bytes; its first."""
        first, count = len(self._fat), -(-length // SECTOR)
        self._fat += [*range(first + 1, first + count), _END]
        self._data += bytes(count * SECTOR)
        return first

    def _put(self, data: bytes) -> int:
        first = self._reserve(len(data))
        at = (first - 2) * SECTOR
        self._data[at : at + len(data)] = data
        return first


def _short(name: str) -> bytes:
    stem, _, extension = name.partition(".")
    fits = 0 < len(stem) <= 8 and len(extension) <= 3
    if not (fits and (stem + extension).isascii() and (stem + extension).isalnum() and name == name.upper()):
        raise UsageError(f"{name!r} is no short name of FAT: 8 capitals or digits, a dot, 3 more")
    return stem.ljust(8).encode() + extension.ljust(3).encode()
