"""GRUB for a disk image: the first sector and the core behind it for a BIOS, one program for UEFI.

`grub-mkimage` makes both from the distribution's modules (GRUB manual, "BIOS installation" and "Images"). Either finds
the root file system by its label, and its menu there.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bivisor.errors import HostError
from bivisor.image.cache import Cache
from bivisor.image.firmware import package_files
from bivisor.image.progress import ProgressFactory

BIOS, EFI = "i386-pc", "x86_64-efi"
_PACKAGES = {BIOS: ("grub-pc-bin", "grub-common"), EFI: ("grub-efi-amd64-bin", "grub-common")}
_COMMON = (
    "ext2 part_msdos normal configfile linux multiboot search search_label echo cat ls test reboot halt minicmd "
    "all_video gfxterm font loadenv sleep"
)
_MODULES = {
    BIOS: f"biosdisk linux16 serial terminal vbe vga keystatus {_COMMON}".split(),
    EFI: f"fat part_gpt efi_gop chain efifwsetup boot {_COMMON}".split(),
}


def grub_parts(kind: str, cache: Cache, progress: ProgressFactory) -> Path:
    """A directory with GRUB's parts for machines of `kind` (lib/grub/KIND) and, if the host has none, grub-mkimage."""
    if (Path("/usr/lib/grub") / kind / "moddep.lst").is_file() and shutil.which("grub-mkimage"):
        return Path("/usr")
    return package_files(cache, _PACKAGES[kind], rf"lib/grub/{kind}/.+|bin/grub-mkimage", progress)


def grub_core(kind: str, parts: Path, label: str, work: Path) -> bytes:
    """GRUB's core for machines of `kind`, which goes on with /boot/grub/grub.cfg of the file system `label`."""
    early, core = work / "early.cfg", work / f"core-{kind}"
    early.write_text(f"search --no-floppy --set=root --label {label}\nset prefix=($root)/boot/grub\n")
    mkimage = parts / "bin/grub-mkimage"
    command = [mkimage if mkimage.exists() else "grub-mkimage", "-d", parts / "lib/grub" / kind, "-O", kind]
    run_tool([*command, "-p", "/boot/grub", "-c", early, "-o", core], *_MODULES[kind])
    return core.read_bytes()


def run_tool(command: list[str | Path], *more: str) -> None:
    """Run a program that says why it failed. HostError."""
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise HostError(f"{Path(command[0]).name} failed: {words}")
