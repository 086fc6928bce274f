"""Getting what the default guest is made of, and making it: the slow side of `default.py`.

A kernel comes from the distribution's packages, or else from /boot; or a caller names one, and its modules are looked
for where distributions put them. All results are in the cache, by what they were made of.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from bivisor.errors import HostError, ImageError
from bivisor.image import cpio, initramfs
from bivisor.image.cache import Cache
from bivisor.image.guest import Guest, recipe_files
from bivisor.image.modules import ModuleTree
from bivisor.image.packages import Apt, PackageError, Selection
from bivisor.image.progress import Progress

_BOOT = Path("/boot")
_MODULES = (Path("/lib/modules"), Path("/usr/lib/modules"))
_ADVICE = "connect to the network once and run `bivisor image`, or give --kernel FILE and --initrd FILE"
_BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))


def prepare(cache: Cache, progress: Progress, *, refresh: bool = False) -> Guest:
    """The distribution's kernel, or else the newest one installed, with an initramfs. HostError where there is none."""
    try:
        files = from_packages(cache, progress, refresh=refresh)
    except PackageError as error:
        for kernel in installed_kernels():
            modules = find_modules(kernel, release_of(kernel))
            if modules is not None and (busybox := host_busybox()) is not None:
                progress.step(f"taking {kernel}, since the distribution's packages are out of reach")
                return _guest(cache, progress, kernel, modules, busybox)
        raise HostError(f"no guest kernel: {error}; {_ADVICE}") from error
    (kernel,) = (files / "boot").glob("vmlinuz-*")
    (modules,) = (files / "lib/modules").iterdir()
    return _guest(cache, progress, kernel, modules, files / "bin/busybox")


def prepare_again(cache: Cache, progress: Progress, guest: Guest) -> Guest:
    """The same kernel, with an initramfs as this version of the program makes it; needs no network."""
    beside = guest.kernel.parent.parent / "bin/busybox"
    busybox = beside if beside.exists() else host_busybox()
    if busybox is None:
        raise HostError("the busybox of the guest is gone")
    return _guest(cache, progress, guest.kernel, guest.modules, busybox)


def from_packages(cache: Cache, progress: Progress, *, refresh: bool = False) -> Path:
    """A directory with boot/vmlinuz-*, boot/config-*, lib/modules/* and bin/busybox of the distribution's packages."""
    apt = Apt(cache.workspace("apt"))

    def files_of(selection: Selection) -> Path:
        return cache.tree(f"packages {selection}", lambda into: apt.fetch(selection, into, progress))

    selection = apt.select(progress, refresh=refresh)
    try:
        return files_of(selection)
    except PackageError:
        # The lists may be older than the archive, which keeps only the newest version.
        newer = apt.select(progress, refresh=True)
        if newer == selection:
            raise
        return files_of(newer)


def guest_of(
    cache: Cache, progress: Progress, kernel: Path, *, modules: Path | None = None, extra: Iterable[str] = ()
) -> Guest:
    """A guest of the given `kernel`, whose modules are in `modules` (a /lib/modules/RELEASE) or where distributions put
    them; `extra` are names of modules to have as well. ImageError where there are none; HostError without a busybox."""
    release = release_of(kernel)
    found = modules or find_modules(kernel, release)
    if found is None:
        raise ImageError(f"{kernel}: no modules of Linux {release} beside it or in {_MODULES[0]} (give --initrd FILE)")
    busybox = host_busybox() or from_packages(cache, progress) / "bin/busybox"
    return _guest(cache, progress, kernel, found, busybox, extra)


def build(
    cache: Cache, busybox: Path, modules: Path, extra: Iterable[str] = (), progress: Progress | None = None
) -> Path:
    """The initramfs of a static `busybox` and the modules under `modules` (a /lib/modules/RELEASE), made or cached."""
    tree = ModuleTree(modules)
    wanted = tree.resolve([*(name for name in initramfs.DEFAULT_MODULES if name in tree), *extra])
    loaded = {module.name for module in wanted}
    needed = tree.resolve(name for name in initramfs.XEN_MODULES if name in tree)
    on_xen = [module for module in needed if module.name not in loaded]
    inputs = [busybox, *recipe_files(), *(module.path for module in (*wanted, *on_xen))]
    key = "initramfs " + " ".join(f"{path.name}:{cache.digest(path)}" for path in inputs)

    def make(out: BinaryIO) -> None:
        if progress is not None:
            progress.step("building the initramfs")
        out.write(cpio.archive(initramfs.entries(busybox.read_bytes(), wanted, on_xen)))

    return cache.file(key, make)


def release_of(kernel: Path) -> str:
    """The release that a bzImage says it has (Documentation/arch/x86/boot.rst, `kernel_version`). ImageError where it
    says none."""
    try:
        with open(kernel, "rb") as file:
            head = file.read(0x8000)
    except OSError as error:
        raise ImageError(f"{kernel}: {error.strerror}") from error
    if head[0x202:0x206] != b"HdrS":
        raise ImageError(f"{kernel}: not a bzImage, so its release is unknown (give --initrd FILE)")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[offset + 0x200 :].partition(b"\0")[0].decode("ascii", "replace")
    return text.partition(" ")[0]


def installed_kernels() -> list[Path]:
    """The readable kernels in /boot, newest first. (Ubuntu lets only root read them.)"""
    found = []
    for path in _BOOT.glob("vmlinuz-*"):
        try:
            found.append((_version(release_of(path)), path))
        except ImageError:
            continue
    return [path for _, path in sorted(found, reverse=True)]


def find_modules(kernel: Path, release: str) -> Path | None:
    """The modules of `release`: in a lib/modules beside `kernel`'s directory, or the system's."""
    for root in (kernel.resolve().parent.parent / "lib/modules", *_MODULES):
        if release and (root / release / "kernel").is_dir():
            return root / release
    return None


def host_busybox() -> Path | None:
    """The host's busybox, if it has one that is static."""
    return next((path for path in _BUSYBOX if path.is_file() and _is_static(path)), None)


def _is_static(path: Path) -> bool:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as file:
            elf = ELFFile(file)
            return elf["e_machine"] == "EM_X86_64" and all(s["p_type"] != "PT_INTERP" for s in elf.iter_segments())
    except (OSError, ELFError):
        return False


def _guest(
    cache: Cache, progress: Progress, kernel: Path, modules: Path, busybox: Path, extra: Iterable[str] = ()
) -> Guest:
    return Guest(kernel, build(cache, busybox, modules, extra, progress), release_of(kernel), modules)


def _version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]
