"""UEFI firmware as files: code, which is only read, and the variables below it, both made of firmware volumes.

Specification: UEFI Platform Initialization 1.8, volume 3, 3.2.1 "EFI_FIRMWARE_VOLUME_HEADER". A build of OVMF comes as
one image (variables first) or as two files that only fit each other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bivisor.errors import ImageError

_HEADER = struct.Struct("<16x16sQ4s")
_SIGNATURE = b"_FVH"
_VARIABLES = bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50")  # EFI_SYSTEM_NV_DATA_FV_GUID
_PAGE = 4096
_WHOLE = 1 << 20
_SIZE_MAX = 8 << 20


@dataclass(frozen=True, slots=True)
class UefiImage:
    """The two parts. `variables` is empty where the image has code alone."""

    code: bytes
    variables: bytes


def parse_uefi(image: bytes) -> UefiImage | None:
    """The parts of a firmware image; None where it is no UEFI firmware, as a BIOS is not."""
    header = _header(image)
    if header is None:
        return None
    kind, length = header
    if kind == _VARIABLES and _PAGE <= length < len(image) and not length % _PAGE:
        return UefiImage(image[length:], image[:length])
    return UefiImage(image, b"")


def check_variables(name: str, variables: bytes, code: bytes) -> bytes:
    """`variables`, the content of file `name`, if they can be those of firmware `code`. ImageError says what is wrong.

    Where the variables are and how many they may be is built into the code, and all of it fills whole MiB.
    """
    header = _header(variables)
    if header is None or header[0] != _VARIABLES:
        raise ImageError(f"{name}: this is no file of UEFI variables; a copy of OVMF_VARS_4M.fd would be")
    together = len(variables) + len(code)
    if header[1] != len(variables) or len(variables) % _PAGE or together % _WHOLE or together > _SIZE_MAX:
        raise ImageError(
            f"{name}: variables of {len(variables)} bytes do not go with firmware of {len(code)} bytes; "
            "the files of one build do, as OVMF_CODE_4M.fd and OVMF_VARS_4M.fd"
        )
    return variables


def _header(image: bytes) -> tuple[bytes, int] | None:
    """What kind of file system the volume at the start has, and the volume's length."""
    if len(image) < _HEADER.size:
        return None
    kind, length, signature = _HEADER.unpack_from(image)
    return (kind, length) if signature == _SIGNATURE else None
