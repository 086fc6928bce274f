"""What tests of several rooms need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bivisor.image.cache import Cache
from bivisor.image.firmware import package_files
from bivisor.image.progress import quiet

QemuImg = Callable[..., str]


@pytest.fixture
def qemu_img(monkeypatch: pytest.MonkeyPatch) -> QemuImg:
    """`qemu_img(word, …)` runs qemu-img. It and qemu-nbd are on the path: the host's, or those of the distribution's
    package, which is not installed for it."""
    if not all(map(shutil.which, ("qemu-img", "qemu-nbd"))):
        tools = package_files(Cache(), ("qemu-utils",), r"bin/qemu-(img|nbd)", quiet) / "bin"
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def run(*words: str | Path) -> str:
        return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout

    return run
