"""Dependencies of kernel modules, on modules made here."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from image_parts import module

from bivisor.errors import ImageError
from bivisor.image.modules import ModuleTree, decompress, parse


def tree(root: Path, depends: dict[str, str], builtin: str = "") -> ModuleTree:
    (root / "kernel/drivers").mkdir(parents=True)
    for name, needed in depends.items():
        data = module({"name": name.replace("-", "_"), "depends": needed})
        (root / "kernel/drivers" / f"{name}.ko").write_bytes(data)
    (root / "modules.builtin").write_text(builtin)
    return ModuleTree(root)


def test_what_a_module_needs_loads_before_it_and_each_once(tmp_path: Path) -> None:
    found = tree(tmp_path, {"net": "ring,failover", "failover": "", "ring": "", "blk": "ring"}).resolve(["net", "blk"])
    assert [m.name for m in found] == ["ring", "failover", "net", "blk"]


def test_dashes_and_underscores_are_the_same_in_a_name(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"virtio-rng": "a-b", "a_b": ""})
    assert [m.name for m in modules.resolve(["virtio_rng"])] == ["a_b", "virtio_rng"]
    assert "virtio-rng" in modules and "virtio_rng" in modules


def test_what_is_built_in_is_there_and_not_loaded(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"blk": "virtio-core"}, builtin="kernel/drivers/virtio/virtio-core.ko\n")
    assert "virtio_core" in modules
    assert [m.name for m in modules.resolve(["blk", "virtio_core"])] == ["blk"]


def test_a_module_that_is_not_there_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        tree(tmp_path, {"blk": "missing"}).resolve(["blk"])


def test_a_circle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a → b → a"):
        tree(tmp_path, {"a": "b", "b": "a"}).resolve(["a"])


def test_a_directory_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no kernel modules"):
        ModuleTree(tmp_path)


def test_aliases_are_those_of_modinfo() -> None:
    found = parse(module({"name": "x", "depends": "", "alias": ["virtio:d1v*", "pci:v1*"]}), Path("x.ko"))
    assert found.aliases == ("virtio:d1v*", "pci:v1*")


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".ko", bytes),
        (".ko.gz", gzip.compress),
        (".ko.zst", zstandard.ZstdCompressor().compress),
        (".ko.xz", lzma.compress),
    ],
)
def test_compressed_modules_are_read(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "kernel").mkdir()
    data = module({"name": "x", "depends": ""})
    (tmp_path / f"kernel/x{suffix}").write_bytes(compress(data))
    assert ModuleTree(tmp_path).load("x").image == data


@pytest.mark.parametrize("suffix", [".ko.gz", ".ko.zst", ".ko.xz", ".ko.lz9"])
def test_a_damaged_or_unknown_file_is_refused_with_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"rubbish")
    with pytest.raises(ImageError, match=path.name):
        decompress(path)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".ko.gz", gzip.compress), (".ko.zst", zstandard.compress), (".ko.xz", lzma.compress)]
)
def test_a_module_that_was_cut_short_is_refused(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(compress(module({"name": "x", "depends": "a"}) * 3)[:-5])
    with pytest.raises(ImageError, match=path.name):
        parse(decompress(path), path)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x7fELF\2\1\1" + tail))
def test_rubbish_is_never_more_than_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse(data, Path("x.ko"))


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_module_is_never_more_than_an_image_error(at: int, value: int) -> None:
    data = bytearray(module({"name": "x", "depends": "a,b", "alias": "pci:*"}))
    data[at % len(data)] = value
    try:
        parse(bytes(data), Path("x.ko"))
    except ImageError:
        pass
