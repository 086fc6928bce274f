"""Which modules of a kernel a guest needs, and in which order they load, without depmod.

A module says so itself in its ELF section `.modinfo`: zero-terminated `key=value` strings, of which `name`, `depends`
and `alias` matter here (include/linux/module.h, MODULE_INFO; scripts/mod/modpost.c writes them). Modules may be
compressed (CONFIG_MODULE_COMPRESS_*). What is built in stands in `modules.builtin` (Documentation/kbuild/kbuild.rst).
"""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bivisor.errors import ImageError

_MAX_MODULE = 64 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """A loadable module: the kernel's name of it, its file, its ELF image (not compressed), the names of those that it
    needs and the patterns of the devices that it drives."""

    name: str
    path: Path
    image: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


class ModuleTree:
    """The modules under `root`, which is a /lib/modules/RELEASE. Only those that are asked for are read."""

    def __init__(self, root: Path) -> None:
        if not (root / "kernel").is_dir():
            raise ImageError(f"{root}: no kernel modules here (expected a directory like /lib/modules/RELEASE)")
        self.root = root
        self._files = {_name(path): path for path in sorted((root / "kernel").rglob("*.ko*"))}
        try:
            self.builtin = frozenset(map(_name, map(Path, (root / "modules.builtin").read_text().split())))
        except OSError:
            self.builtin = frozenset()

    def __contains__(self, name: str) -> bool:
        """Whether the kernel has the module, loadable or built in."""
        return canonical(name) in self._files or canonical(name) in self.builtin

    def load(self, name: str) -> Module:
        """The module called `name`. ImageError where there is none, or its file is not a module."""
        try:
            path = self._files[canonical(name)]
        except KeyError:
            raise ImageError(f"module {name}: not under {self.root}, and not built into the kernel either") from None
        return parse(decompress(path), path)

    def resolve(self, names: Iterable[str]) -> tuple[Module, ...]:
        """`names` and all that they depend on, each once, in an order in which they load. What is built in is left out.
        ImageError for a module that is not there and for dependencies that go in a circle."""
        order: dict[str, Module] = {}
        for name in names:
            for module in self._walk(canonical(name), order, ()):
                order[module.name] = module
        return tuple(order.values())

    def _walk(self, name: str, done: dict[str, Module], above: tuple[str, ...]) -> Iterator[Module]:
        if name in done or name in self.builtin:
            return
        if name in above:
            raise ImageError(f"modules under {self.root} depend on each other: {' → '.join((*above, name))}")
        module = self.load(name)
        for needed in module.depends:
            yield from self._walk(canonical(needed), done, (*above, name))
        yield module


def canonical(name: str) -> str:
    """A module's name as the kernel has it: `virtio-rng` is `virtio_rng`."""
    return name.replace("-", "_")


def decompress(path: Path) -> bytes:
    """The ELF image in a .ko, .ko.gz, .ko.xz or .ko.zst file. ImageError where it is damaged or beyond any module."""
    try:
        data = _DECOMPRESSORS[path.suffix](path.read_bytes())
    except KeyError:
        raise ImageError(f"{path}: a module ends in .ko, .ko.gz, .ko.xz or .ko.zst") from None
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise ImageError(f"{path}: cannot read this module: {error}") from error
    if len(data) > _MAX_MODULE:
        raise ImageError(f"{path}: a module of more than {_MAX_MODULE >> 20} MiB")
    return data


def parse(image: bytes, path: Path) -> Module:
    """The `Module` in an ELF `image`; `path` is for the message of an ImageError."""
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(image)).get_section_by_name(".modinfo")
        text = b"" if section is None else section.data()
    except Exception as error:  # of a damaged file the library raises whatever it stumbles over
        raise ImageError(f"{path}: not a kernel module: {error}") from error
    info = [item.decode("utf-8", "replace").partition("=") for item in text.split(b"\0") if item]
    values = {key: value for key, _, value in info}
    if "depends" not in values:
        raise ImageError(f"{path}: not a kernel module: no .modinfo that names its dependencies")
    return Module(
        name=canonical(values.get("name", "") or _name(path)),
        path=path,
        image=image,
        depends=tuple(filter(None, values["depends"].split(","))),
        aliases=tuple(value for key, _, value in info if key == "alias"),
    )


def _name(path: Path) -> str:
    return canonical(path.name.partition(".ko")[0])


def _unzstd(data: bytes) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            return reader.read(_MAX_MODULE + 1)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _unxz(data: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor()
    found = decompressor.decompress(data, _MAX_MODULE + 1)
    if not decompressor.eof and len(found) <= _MAX_MODULE:
        raise EOFError("the file is cut short")
    return found


def _ungzip(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as reader:
        return reader.read(_MAX_MODULE + 1)


_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".gz": _ungzip,
    ".xz": _unxz,
    ".zst": _unzstd,
}
