"""Files of distribution packages that a PC is started with: SeaBIOS, OVMF, GRUB, memtest86+. The host's own are taken
if it has the package; otherwise the package is downloaded into the cache, and nothing is installed."""

from __future__ import annotations

import re
from pathlib import Path

from bivisor.errors import HostError
from bivisor.image.cache import Cache
from bivisor.image.packages import Apt, PackageError
from bivisor.image.progress import ProgressFactory, on_stderr

_OVMF = ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
_NETWORK_ROM = "efi-e1000.rom"
_SEABIOS = ("bios-256k.bin", "vgabios-stdvga.bin")


def package_files(cache: Cache, names: tuple[str, ...], wanted: str, progress: ProgressFactory = on_stderr) -> Path:
    """A directory with the files of packages `names` whose paths (without usr/) match `wanted`. HostError where the
    packages cannot be had."""

    def make(into: Path) -> None:
        with progress() as report:
            Apt(cache.workspace("apt")).fetch_files(names, re.compile(wanted), into, report)

    try:
        return cache.tree(f"package files {' '.join(names)} {wanted}", make)
    except PackageError as error:
        raise HostError(f"{error}; connect to the network once, or install {' '.join(names)}") from error


def seabios(cache: Cache | None = None, progress: ProgressFactory = on_stderr) -> tuple[Path, Path]:
    """The paths of SeaBIOS and of its VGA BIOS."""
    installed = Path("/usr/share/seabios")
    if not all((installed / name).is_file() for name in _SEABIOS):
        installed = package_files(cache or Cache(), ("seabios",), r"share/seabios/[^/]+", progress) / "share/seabios"
    bios, vga = (installed / name for name in _SEABIOS)
    return bios, vga


def ovmf(cache: Cache | None = None, progress: ProgressFactory = on_stderr) -> tuple[Path, Path]:
    """The paths of OVMF's code (4 MiB with its variables; neither Secure Boot nor SMM) and of fresh variables."""
    installed = Path("/usr/share/OVMF")
    if not all((installed / name).is_file() for name in _OVMF):
        installed = package_files(cache or Cache(), ("ovmf",), r"share/OVMF/OVMF_(CODE|VARS)_4M\.fd", progress)
        installed /= "share/OVMF"
    code, variables = (installed / name for name in _OVMF)
    return code, variables


def network_rom(cache: Cache | None = None, progress: ProgressFactory = on_stderr) -> Path:
    """The path of iPXE as the expansion ROM of an e1000. HostError."""
    installed = Path("/usr/lib/ipxe/qemu") / _NETWORK_ROM
    if installed.is_file():
        return installed
    wanted = rf"lib/ipxe/qemu/{re.escape(_NETWORK_ROM)}"
    return package_files(cache or Cache(), ("ipxe-qemu",), wanted, progress) / "lib/ipxe/qemu" / _NETWORK_ROM
