"""The distribution's kernel for any PC: the default guest's is small because it has no drivers of hardware.

Where one guest has to meet emulated and paravirtual devices alike, it is this one. Only the modules that a machine of
this program can need are unpacked. Once fetched it stays, and needs no network any more.
"""

from __future__ import annotations

import re
from pathlib import Path

from bivisor.image.cache import Cache
from bivisor.image.guest import Guest
from bivisor.image.packages import Apt
from bivisor.image.prepare import build, release_of
from bivisor.image.progress import ProgressFactory, on_stderr

METAPACKAGES = ("linux-image-amd64", "linux-image-generic")
"""Debian's and Ubuntu's; both follow the kernel with every driver."""

_KEY = "Linux for PCs, 2"
WANTED = re.compile(
    r"boot/(vmlinuz|config)-[^/]+|bin/busybox|lib/modules/[^/]+/(modules\.(builtin|order)|kernel/("
    r"drivers/(ata|block|cdrom|char|net/ethernet/intel/e1000/|net/[^/]+\.ko|scsi/[^/]+\.ko|virtio|misc/pvpanic|xen)"
    r"|arch|block|crypto|lib|fs/(ext4|jbd2|[^/]+\.ko)|net/(packet|core|802)).*)"
)


def pc_guest(progress: ProgressFactory = on_stderr, cache: Cache | None = None) -> Guest:
    """That kernel with the default initramfs, fetched if need be. HostError where it cannot be had."""
    cache = cache or Cache()

    def fetch(into: Path) -> None:
        apt = Apt(cache.workspace("apt"))
        with progress() as report:
            apt.fetch(apt.select(report, metapackages=METAPACKAGES), into, report, WANTED)

    files = cache.tree(_KEY, fetch)
    (kernel,) = (files / "boot").glob("vmlinuz-*")
    (modules,) = (files / "lib/modules").iterdir()
    with progress() as report:
        return Guest(kernel, build(cache, files / "bin/busybox", modules, progress=report), release_of(kernel), modules)
