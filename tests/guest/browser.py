"""A person with a browser: `bivisor web` as a process, and its page in Chromium without a window."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The browser's program; where there is none the test is skipped, and says what it needs."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    return found


@contextmanager
def a_browser() -> Iterator[Browser]:
    """Chromium, for as long as the context lasts."""
    program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def a_web_server(state: Path, *words: str) -> Iterator[str]:
    """`bivisor web` for the host in `state`: the address that it prints. It ends well at Ctrl-C."""
    command = [sys.executable, "-m", "bivisor", "web", "--port", "0", "--state", str(state), *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = ""
        while "http" not in said:
            said = process.stdout.readline()
            assert said, "it ended without an address"
        yield next(word for word in said.split() if word.startswith("http"))
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == 0, rest
        assert "Traceback" not in rest


class Tab:
    """The page at `address` in a tab of its own, which notes errors of its scripts and requests to anywhere else."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(30_000)
        self.failures: list[str] = []
        self._ours = (address.partition("/?")[0], "data:", "blob:")
        self.page.on("pageerror", lambda error: self.failures.append(f"script: {error}"))
        self.page.on("request", self._look)
        self.page.goto(address)

    def _look(self, request: Request) -> None:
        if not request.url.startswith(self._ours):
            self.failures.append(f"left the machine: {request.url}")

    def close(self) -> None:
        """Close the tab. Nothing may have failed in it."""
        self.page.close()
        assert self.failures == []
