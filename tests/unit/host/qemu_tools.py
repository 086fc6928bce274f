"""qemu-img and qemu-nbd for tests: the host's, or those of the distribution's package, which is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bivisor.image.cache import Cache
from bivisor.image.firmware import package_files
from bivisor.image.progress import quiet

NAMES = ("qemu-img", "qemu-nbd")


def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the programs be found."""
    if not all(map(shutil.which, NAMES)):
        tools = package_files(Cache(), ("qemu-utils",), r"bin/qemu-(img|nbd)", quiet) / "bin"
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


def img(*words: str | Path) -> str:
    """Run qemu-img; what it printed."""
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout
