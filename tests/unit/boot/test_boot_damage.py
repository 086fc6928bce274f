"""Damaged, cut off and random files end in one clear line, and nothing else."""

from __future__ import annotations

import gzip
from pathlib import Path

import boot_images as images
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lz4.frame import compress as lz4_frame  # type: ignore[attr-defined]

from bivisor import boot
from bivisor.boot import compress
from bivisor.errors import ImageError
from bivisor.memory import GuestMemory

GOOD = (
    images.bzimage(images.PACKERS["gzip"](images.elf64(notes=images.note()))),
    images.bzimage(images.PACKERS["LZ4"](images.elf64())),
    images.bzimage(images.PACKERS["Zstandard"](images.elf64())),
    images.bzimage(images.PACKERS["XZ"](images.elf64())),
    images.elf64(notes=images.note()),
    images.elf32(),
    images.kludge(bss_end=0x30_0000),
    gzip.compress(images.elf32(), mtime=0),
    bytes(510) + b"\x55\xaa",
)
PROTOCOLS = st.sampled_from([None, "linux64", "pvh", "multiboot", "raw"])


def fate(image: bytes, path: Path, protocol: str | None = None) -> str:
    """Inspect and load; gives the error's text or nothing."""
    path.write_bytes(image)
    try:
        boot.inspect(image)
        with GuestMemory(24 << 20) as memory:
            boot.load(memory, path, initrd=path, protocol=protocol)
    except ImageError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (0x204, "truncated: the setup header of the bzImage is missing"),
        (0x220, "truncated: 76 bytes of the bzImage's setup header are missing"),
        (0x600, "truncated: the setup code of the bzImage lacks 512 of 2048 bytes"),
        (0x800 + 0x240 + 100, r"truncated: the payload \(gzip\) of the bzImage lacks \d+ of \d+ bytes"),
    ],
)
def test_a_truncated_bzimage_is_refused_with_the_part_and_the_bytes_missing(
    cut: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=message):
        boot.inspect(GOOD[0][:cut])


def test_a_truncated_elf_is_refused_with_the_part_and_the_bytes_missing() -> None:
    image = images.elf64()
    with pytest.raises(ImageError, match=r"truncated: 5 bytes of ELF segment 0 are missing"):
        boot.inspect(image[:-5])
    with pytest.raises(ImageError, match=r"truncated: 16 bytes of the ELF program headers are missing"):
        boot.inspect(image[:104])
    with pytest.raises(ImageError, match=r"truncated: 4 bytes of the ELF header are missing"):
        boot.inspect(image[:60])


def test_a_zimage_of_old_is_refused() -> None:
    with pytest.raises(ImageError, match=r"boot protocol 2\.00 for low memory"):
        boot.inspect(images.bzimage(b"", version=0x200, loadflags=0))


@pytest.mark.parametrize("name", images.PACKERS)
def test_a_payload_with_a_flipped_byte_never_gets_past(name: str, tmp_path: Path) -> None:
    packed = bytearray(images.PACKERS[name](images.elf64()))
    packed[len(packed) // 2] ^= 0x55
    error = fate(images.bzimage(bytes(packed)), tmp_path / "kernel")
    assert "damaged" in error or name in ("LZ4", "Zstandard", "LZMA")  # these have no checksum here


@pytest.mark.parametrize("name", [*images.PACKERS, "LZ4 frame"])
def test_a_decompression_bomb_is_stopped_at_the_limit(name: str) -> None:
    packed = lz4_frame(bytes(20 << 20)) if name == "LZ4 frame" else images.PACKERS[name](bytes(20 << 20))
    with pytest.raises(ImageError, match="bomb: unpacks to more than 10 MiB"):
        for piece in compress.decompress(name, packed, "bomb", limit=10 << 20):
            assert len(piece) <= 8 << 20


@pytest.mark.parametrize("name", [*images.PACKERS, "LZ4 frame"])
@given(data=st.binary(max_size=300))
def test_no_rubbish_confuses_a_decompressor(name: str, data: bytes) -> None:
    try:
        for _ in compress.decompress(name, data, "rubbish"):
            pass
    except ImageError:
        pass


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=st.sampled_from(GOOD), protocol=PROTOCOLS, data=st.data())
def test_a_mutated_image_loads_or_is_refused(
    image: bytes, protocol: str | None, data: st.DataObject, tmp_path: Path
) -> None:
    broken = bytearray(image)
    interesting = min(len(image), 0x300)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, interesting - 1) | st.integers(0, len(image) - 1))
        value = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, bytes(4), b"\xff" * 8]))
        broken[place : place + len(value)] = value
    cut = data.draw(st.just(len(broken)) | st.integers(1, len(broken)))
    fate(bytes(broken[:cut]), tmp_path / "kernel", protocol)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(
        [b"", b"\x7fELF\x02\x01\x01", b"\x7fELF\x01\x01\x01", b"\x02\xb0\xad\x1b", b"MZ", b"\x1f\x8b\x08"]
    ),
    body=st.binary(min_size=1, max_size=600),
    protocol=PROTOCOLS,
)
def test_random_bytes_load_or_are_refused(head: bytes, body: bytes, protocol: str | None, tmp_path: Path) -> None:
    fate(head + body, tmp_path / "kernel", protocol)


def test_no_descriptor_is_left_open_by_success_or_failure(tmp_path: Path) -> None:
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    for image in GOOD:
        for cut in (len(image), len(image) // 2, len(image) - 8):
            fate(image[:cut], tmp_path / "kernel")
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before
