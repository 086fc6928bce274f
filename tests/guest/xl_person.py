"""`bivisor xl` as a person uses it: commands, and a terminal that is attached to a console."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0


class Person:
    """Somebody with a host of their own, whose state is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.environment = os.environ | {
            "BIVISOR_HOST": str(folder),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def run(self, *words: str, status: int | None = 0, given: bytes = b"") -> str:
        """`bivisor WORDS`: its output; it has to end with `status`, unless that is None, and without a traceback."""
        done = subprocess.run(
            [sys.executable, "-m", "bivisor", *words],
            env=self.environment,
            input=given,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        self.errors = done.stderr.decode()
        assert "Traceback" not in self.errors
        assert status is None or done.returncode == status, (words, self.errors)
        return done.stdout.decode()

    def xl(self, *words: str, status: int = 0, given: bytes = b"") -> str:
        """`bivisor xl WORDS`."""
        return self.run("xl", *words, status=status, given=given)

    def domain(self, name: str) -> dict[str, Any]:
        """The row of `xl list -l`."""
        (row,) = json.loads(self.xl("list", "-l", name))
        assert isinstance(row, dict)
        return row

    def names(self) -> list[str]:
        """The domains that there are, Domain-0 aside."""
        return [row["name"] for row in json.loads(self.xl("list", "-l"))[1:]]

    def terminal(self, *words: str) -> Terminal:
        """`bivisor xl WORDS` on a terminal of its own."""
        return Terminal([sys.executable, "-m", "bivisor", "xl", *words], self.environment)

    @property
    def pid(self) -> int:
        """The host's process."""
        return int(json.loads(self.run("host", "status", "--json"))["pid"])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def guest_blocks(self) -> int:
        """The bytes of guest memory that the host's process holds."""
        held: dict[int, int] = {}
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                if "memfd:bivisor-domu" in str(link.readlink()):
                    status = link.stat()
                    held[status.st_ino] = status.st_blocks * 512
            except FileNotFoundError:
                continue
        return sum(held.values())


class Terminal:
    """A program on a terminal. What it showed is in `shown`."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            os.execvpe(words[0], words, environment)
        self._pid = pid
        self.shown = b""
        self._seen = 0

    def type(self, data: bytes) -> None:
        """Press keys."""
        os.write(self._fd, data)

    def wait_for(self, wanted: bytes) -> bytes:
        """What was shown since the last such call, up to and with `wanted`."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.shown.find(wanted, self._seen)) < 0:
            assert self._read(deadline - time.monotonic()), self.shown[-1000:]
        start, self._seen = self._seen, at + len(wanted)
        return self.shown[start : self._seen]

    def ended(self) -> int:
        """Wait until it ends: its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline - time.monotonic()):
            pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, timeout: float) -> bool:
        if timeout <= 0 or not select.select([self._fd], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # EIO: nobody has the terminal any more
            return False
        self.shown += data
        return bool(data)
