"""The firmware of a PC: SeaBIOS, UEFI (OVMF) with its variables, or what a file has; and a kernel for UEFI to start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bivisor.boot import inspect
from bivisor.boot.uefi import UefiImage, check_variables, parse_uefi
from bivisor.errors import ImageError, UsageError
from bivisor.host.variables import Variables, VariablesFile, make_file
from bivisor.image.firmware import ovmf, seabios
from bivisor.kvm.firmware import Firmware
from bivisor.platform.fwcfg import DirectKernel
from bivisor.toolstack.options import RunOptions

BIOS, UEFI = "bios", "uefi"
_IMAGE_MAX = 16 << 20


def load_firmware(options: RunOptions, on_close: Callable[[Callable[[], None]], object]) -> Firmware:
    """The firmware that `options` ask for; `on_close` takes what lets go of its variables. UsageError, ImageError and
    HostError say in one line what cannot be."""
    bios, vga = (path.read_bytes() for path in seabios())
    if options.firmware == BIOS:
        return _plain(options, bios, vga)
    if options.firmware == UEFI:
        code, template = (path.read_bytes() for path in ovmf())
        return Firmware(code, vga, _variables(options, UefiImage(code, template), on_close))
    path = Path(options.firmware)
    image = _read(path)
    parts = parse_uefi(image)
    if parts is None:
        return _plain(options, image, vga)
    if not parts.variables:
        parts = UefiImage(parts.code, _neighbour(path))
    return Firmware(parts.code, vga, _variables(options, parts, on_close))


def direct_kernel(options: RunOptions) -> DirectKernel | None:
    """The kernel that UEFI is to start instead of looking at disks, if there is one."""
    if options.kernel is None:
        return None
    image = inspect(options.kernel)
    if image.bzimage is None:
        raise ImageError(f"{options.kernel}: UEFI starts a bzImage with an EFI stub; this is {image.kind}")
    data = options.kernel.read_bytes()
    setup = image.bzimage.code_offset
    initrd = b"" if options.initrd is None else _read(options.initrd, None, "initrd")
    return DirectKernel(data[:setup], data[setup:], initrd, options.append)


def _plain(options: RunOptions, bios: bytes, vga: bytes) -> Firmware:
    if options.firmware_vars is not None:
        raise UsageError("--firmware-vars: a BIOS keeps no variables; --firmware uefi does")
    return Firmware(bios, vga)


def _variables(options: RunOptions, parts: UefiImage, on_close: Callable[[Callable[[], None]], object]) -> Variables:
    kept = options.firmware_vars
    if kept is None:
        if not parts.variables:
            raise UsageError(
                f"firmware {options.firmware}: it is UEFI code without variables; "
                "give --firmware-vars FILE, a copy of the OVMF_VARS file that belongs to it"
            )
        return Variables(check_variables(options.firmware, parts.variables, parts.code))
    if parts.variables and not kept.exists():
        make_file(kept, parts.variables)
    found = VariablesFile(kept, partial(check_variables, str(kept), code=parts.code))
    on_close(found.close)
    return found


def _neighbour(path: Path) -> bytes:
    """The variables in the file beside `path` that is called as it is but for CODE and VARS, if there is one."""
    other = path.with_name(path.name.replace("CODE", "VARS"))
    return _read(other) if other != path and other.is_file() else b""


def _read(path: Path, most: int | None = _IMAGE_MAX, what: str = "firmware") -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read() if most is None else file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}") from error
    if most is not None and len(data) > most:
        raise ImageError(f"{path}: more than {most >> 20} MiB; firmware has 64 KiB to 8 MiB")
    return data
