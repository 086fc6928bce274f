"""How a disk image is to be opened: what a person may ask for, apart from the opening of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bivisor.errors import UsageError

QEMU_FORMATS = ("qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc")
FORMATS = ("raw", *QEMU_FORMATS)
_ALIASES = {"vhd": "vpc"}


@dataclass(frozen=True, slots=True)
class HowToOpen:
    """`format` is one of FORMATS, or "" to find it. `throw_away`: writes are kept until the disk is closed, the image
    stays as it is. `snapshot` is an internal snapshot of a qcow2 image. `force_share`: read it although somebody
    writes it, which gives nonsense where that matters."""

    format: str = ""
    read_only: bool = False
    throw_away: bool = False
    snapshot: str = ""
    force_share: bool = False


def check_format(name: str, path: Path | str) -> str:
    """The format that is called so, "" for none. UsageError."""
    found = _ALIASES.get(name, name)
    if found and found not in FORMATS:
        raise UsageError(f"disk {path}: format {name!r} is none of {', '.join(FORMATS)}")
    return found
