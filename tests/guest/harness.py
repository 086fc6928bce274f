"""The default guest with a command to run, and what became of it: its streams, its console, its outcome."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bivisor.host.memstream import MemoryStream
from bivisor.image import Guest
from bivisor.image.initramfs import append_exec
from bivisor.kvm import End, Outcome, VirtualMachine
from bivisor.kvm.vm import MIB
from bivisor.platform.virtio.console import Port, VirtioConsole

EXIT_PORT = 0xF4
PATIENCE = 120.0  # seconds until a guest that does not end is taken for hung; a passing test never waits for it


@dataclass(frozen=True, slots=True)
class Result:
    """What a guest said and how it ended."""

    outcome: Outcome
    stdout: str
    stderr: str
    console: str

    @property
    def status(self) -> int | None:
        """The exit status of the command, or None where the guest ended in another way."""
        return self.outcome.status if self.outcome.end is End.EXIT_STATUS else None

    def lines(self) -> list[str]:
        """The standard output of a command that has to have succeeded."""
        assert self.status == 0, self
        return self.stdout.splitlines()


class GuestRun:
    """One boot of `guest` that runs `command` in its shell and ends with the command's status.

    Make it, plug devices into `vm`, `start()` it and call `finish()`. `with` gives everything back.
    """

    def __init__(
        self,
        engine: str,
        guest: Guest,
        command: str,
        *,
        memory: int = 256 * MIB,
        cpus: int = 1,
        files: Iterable[tuple[str, bytes]] = (),
        append: str = "",
    ) -> None:
        self._stack = ExitStack()
        self._guest = guest
        self._append = append
        self._initrd = Path(self._stack.enter_context(tempfile.TemporaryDirectory()), "initrd")
        self._initrd.write_bytes(guest.initrd.read_bytes() + append_exec(command, files))
        self.console, self.stdout, self.stderr = bytearray(), bytearray(), bytearray()
        self.vm = VirtualMachine(engine=engine, memory=memory, cpus=cpus, console=self.console.extend)
        self._stack.enter_context(self.vm)
        loop = self.vm.loop
        self.stdin = MemoryStream(loop)
        ports = [
            Port(self.stdin, "bivisor.stdin"),
            Port(MemoryStream(loop, self.stdout.extend), "bivisor.stdout"),
            Port(MemoryStream(loop, self.stderr.extend), "bivisor.stderr"),
        ]
        self.vm.add(VirtioConsole(ports))

    def start(self) -> None:
        """Boot it."""
        words = f"console=ttyS0 quiet panic=-1 bivisor.exit={EXIT_PORT:#x} bivisor.stdio=virtio {self._append}"
        self.vm.load(self._guest.kernel, initrd=self._initrd, cmdline=words)
        self.vm.start()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, while the guest runs, until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.vm.wait(0.01) is None, self._text(self.console)
            assert time.monotonic() < deadline, self._text(self.console)

    def finish(self, patience: float = PATIENCE) -> Result:
        """Wait until it has ended."""
        outcome = self.vm.wait(patience)
        assert outcome is not None, f"the guest hangs:\n{self._text(self.console)}\n{self._text(self.stdout)}"
        self.vm.drain()
        return Result(outcome, self._text(self.stdout), self._text(self.stderr), self._text(self.console))

    def run(self, patience: float = PATIENCE) -> Result:
        """Boot it and wait."""
        self.start()
        return self.finish(patience)

    @staticmethod
    def _text(data: bytearray) -> str:
        return data.decode(errors="replace")

    def __enter__(self) -> GuestRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
