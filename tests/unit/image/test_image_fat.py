"""The file system that UEFI finds its program in, read back by the rules of FAT."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.image.fat import fat16

SECTORS = 8192


class Reader:
    """As firmware reads it: sizes from the boot sector, chains from the first table."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        sector, cluster, reserved, fats, roots, small, _, length = struct.unpack_from("<HBHBHHBH", image, 11)
        assert (sector, cluster, image[510:512]) == (512, 1, b"\x55\xaa")
        assert small * sector == len(image)
        tables = [image[(reserved + n * length) * 512 :][: length * 512] for n in range(fats)]
        assert tables[0] == tables[1]
        self.fat = struct.unpack(f"<{length * 256}H", tables[0])
        root = (reserved + fats * length) * 512
        self.root = image[root : root + roots * 32]
        self.data = root + roots * 32

    def chain(self, cluster: int) -> bytes:
        found = b""
        while cluster < 0xFFF8:
            assert cluster >= 2
            found += self.image[self.data + (cluster - 2) * 512 :][:512]
            cluster = self.fat[cluster]
        return found

    def files(self, folder: bytes | None = None, path: str = "") -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        folder = self.root if folder is None else folder
        for at in range(0, len(folder), 32):
            name, attributes, first, size = struct.unpack_from("<11sB14xHI", folder, at)
            if not name[0]:
                break
            if attributes & 8 or name[:1] == b".":
                continue
            text = name[:8].decode().strip() + ("." + name[8:].decode().strip() if name[8:].strip() else "")
            if attributes & 0x10:
                found |= self.files(self.chain(first), f"{path}{text}/")
            else:
                found[path + text] = self.chain(first)[:size] if size else b""
        return found


NAME = st.from_regex(r"[A-Z0-9]{1,8}(\.[A-Z0-9]{1,3})?", fullmatch=True)


@given(st.dictionaries(NAME, st.binary(max_size=3000), max_size=12), st.binary(max_size=9000))
def test_what_is_put_in_is_found_again(some: dict[str, bytes], program: bytes) -> None:
    wanted = {"EFI/BOOT/BOOTX64.EFI": program} | {f"A/{name}": data for name, data in some.items()}
    assert Reader(fat16(wanted, SECTORS)).files() == wanted


def test_a_folder_of_more_than_a_sector_is_whole() -> None:
    wanted = {f"DIR/F{number}": bytes((number,)) for number in range(100)}
    assert Reader(fat16(wanted, SECTORS)).files() == wanted


@pytest.mark.parametrize(
    ("files", "sectors", "said"),
    [
        ({"lower.efi": b""}, SECTORS, "no short name"),
        ({"TOOLONGNAME": b""}, SECTORS, "no short name"),
        ({"A": b"", "A/B": b""}, SECTORS, "A is a file"),
        ({"A": bytes(5 << 20)}, SECTORS, "there is room for"),
        ({}, 100, "clusters"),
        ({f"F{n}": b"" for n in range(512)}, SECTORS, "files at the top"),
    ],
)
def test_what_does_not_fit_is_refused(files: dict[str, bytes], sectors: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fat16(files, sectors)
