"""`inspect` and `load`: from a file to a guest that can be entered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bivisor.boot import bzimage, compress, elf, linux64, multiboot, pvh, raw
from bivisor.boot.cache import Cache, uncached
from bivisor.boot.image import LINUX64, MULTIBOOT, PVH, RAW, RUNNABLE, X86_64, Image, recognise
from bivisor.boot.placement import Placement
from bivisor.boot.request import Entry, Module, Request
from bivisor.boot.source import Source
from bivisor.errors import ImageError
from bivisor.memory import GuestMemory

_PROTOCOLS: dict[str, Callable[[Request], Entry]] = {
    LINUX64: linux64.boot,
    PVH: pvh.boot,
    MULTIBOOT: multiboot.boot,
    RAW: raw.boot,
}


def inspect(image: Path | str | bytes, *, cache: Cache | None = None) -> Image:
    """Say what `image`, a path or the content itself, is. A kernel that is packed is unpacked to look inside.

    ImageError if it cannot be read, is damaged, or is no kernel at all. A kernel for another machine is no error.
    """
    with ExitStack() as stack:
        if isinstance(image, bytes):
            source = Source("the image", data=image)
        else:
            source = stack.enter_context(Source.open(Path(image), "kernel"))
        source, found = open_image(source, cache or uncached, stack)
        if found.bzimage is None:
            return found
        inner = bzimage.payload(source, found.bzimage, cache or uncached)
        if inner is None:
            return found
        with inner:
            kernel = elf.parse(inner)
        protocols = tuple(name for name in found.protocols if name != PVH or kernel.phys32_entry is not None)
        return replace(found, architecture=kernel.architecture, protocols=protocols, elf=None)


def load(
    memory: GuestMemory,
    kernel: Path,
    *,
    initrd: Path | None = None,
    initrd_tail: bytes = b"",
    cmdline: str = "",
    protocol: str | None = None,
    rsdp: int | None = None,
    modules: Iterable[Module] = (),
    reserve: Sequence[tuple[int, int]] = (),
    cache: Cache | None = None,
) -> Entry:
    """Load `kernel` and what goes with it into `memory`, and give the state in which processor 0 enters it.

    `initrd_tail` is a further archive, behind the initrd. `protocol` is one of the image's own, the best of them if
    None; "raw" is taken for any file. `rsdp` is the guest-physical address of the ACPI root pointer, `reserve` the
    (address, length) pairs which the memory map calls reserved. With a `cache` a packed kernel is unpacked once only.
    ImageError with one line if anything about the files is wrong.
    """
    with ExitStack() as stack:
        source = stack.enter_context(Source.open(kernel, "kernel"))
        if protocol == RAW:
            image = Image(RAW, X86_64, (RAW,))
        else:
            source, image = open_image(source, cache or uncached, stack)
        request = Request(
            place=Placement(memory, reserve),
            source=source,
            image=image,
            protocol=_choose(source.name, image, protocol),
            initrd=_initrd(initrd, initrd_tail, stack),
            cmdline=_text(cmdline),
            modules=tuple(
                (stack.enter_context(Source.open(module.path, "module")), _text(module.cmdline)) for module in modules
            ),
            rsdp=rsdp,
            cache=cache or uncached,
        )
        return _PROTOCOLS[request.protocol](request)


def _initrd(path: Path | None, tail: bytes, stack: ExitStack) -> Source | None:
    if path is None:
        return Source("given by the program", data=tail) if tail else None
    source = stack.enter_context(Source.open(path, "initrd"))
    if not tail:
        return source
    padding = bytes(-source.size % 4)  # where one archive has ended, the kernel looks for another at multiples of four
    return Source(source.name, data=source.read(0, source.size) + padding + tail)


def open_image(source: Source, cache: Cache, stack: ExitStack) -> tuple[Source, Image]:
    """Recognise `source`; if it is packed as a whole (xen.gz), what is inside, which `stack` closes."""
    found = recognise(source)
    if found.kind != found.compression:
        return source, found
    name = found.kind
    if not compress.supported(name) or source.size > compress.LIMIT:
        raise ImageError(f"{source.name}: {name} data that cannot be unpacked here")

    def unpack() -> Iterable[bytes]:
        return compress.decompress(name, source.read(0, source.size), source.name)

    inner = stack.enter_context(cache(source, 0, source.size, unpack))
    found = recognise(inner)
    if found.kind == found.compression:
        raise ImageError(f"{source.name}: {name} data in which there is {found.kind} data; a kernel would be right")
    return inner, replace(found, compression=name)


def _choose(name: str, image: Image, protocol: str | None) -> str:
    if protocol is not None and protocol not in _PROTOCOLS:
        raise ImageError(f"boot protocol {protocol!r}: there are {', '.join(_PROTOCOLS)}")
    if image.architecture not in RUNNABLE:
        raise ImageError(f"{name}: a kernel for {image.architecture} ({image.kind}); this machine is x86-64")
    if not image.protocols:
        raise ImageError(f"{name}: {_why_not(image)}")
    if protocol is None:
        return image.protocols[0]
    if protocol not in image.protocols:
        offered = ", ".join(image.protocols)
        raise ImageError(f"{name}: this {image.kind} kernel does not offer {protocol}; it offers {offered}")
    return protocol


def _why_not(image: Image) -> str:
    match image.kind:
        case "raw":
            return "a boot sector too large to load as a whole; is it a disk image?"
        case "PE":
            return f"an EFI program for {image.architecture}; take the bzImage, ELF or multiboot kernel instead"
        case "ELF":
            return f"an ELF file for {image.architecture} without PVH note, multiboot header or physical entry point"
        case _:
            return f"an {image.architecture} {image.kind} without a boot protocol that is known here"


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ImageError("a zero byte in a command line ends it; take it out")
    return data
