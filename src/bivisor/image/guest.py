"""What a guest is booted from, and the files of this program that its initramfs is made by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_RECIPE = ("cpio.py", "helpers.py", "initramfs.py", "modules.py", "program.py", "start.sh")


@dataclass(frozen=True, slots=True)
class Guest:
    """A kernel (vmlinuz), an initramfs for it, the kernel's release and its /lib/modules/RELEASE."""

    kernel: Path
    initrd: Path
    release: str
    modules: Path


def recipe_files() -> list[Path]:
    """The files of this program on which an initramfs depends."""
    here = Path(__file__).parent
    return [here / name for name in _RECIPE]
