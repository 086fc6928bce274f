"""A PC with a person at it: what COM1 says, keys, and the shell behind the login prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bivisor.kvm.firmware import FirmwareMachine
from bivisor.toolstack.options import RunOptions
from bivisor.toolstack.pc import launch_pc
from bivisor.toolstack.screen import press, type_text

PATIENCE = 120.0


class Console:
    """What the guest says on COM1 and in its firmware's log."""

    command: str | None = None

    def __init__(self) -> None:
        self.text = bytearray()
        self.log = bytearray()

    def com1(self, data: bytes) -> None:
        self.text += data

    def words(self) -> str:
        return ""

    def connect(self, vm: object) -> None:
        pass

    def drain(self, vm: object) -> None:
        pass


class Pc:
    def __init__(self, vm: FirmwareMachine, console: Console) -> None:
        self.vm, self.console = vm, console

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.vm.wait(0.02) is None, bytes(self.console.text[-800:])
            assert time.monotonic() < deadline, bytes(self.console.text[-800:] + self.console.log[-800:])

    def says(self, words: bytes) -> None:
        self.until(lambda: words in self.console.text)

    def run(self, command: str) -> str:
        """Run `command` in the shell on COM1; what it said."""
        start = len(self.console.text)
        self.vm.send(f"{command}; echo e''nd\n".encode())
        self.until(lambda: b"end\r\n" in self.console.text[start:])
        return bytes(self.console.text[start:]).decode().replace("\r", "")

    def screen(self) -> list[str]:
        """The lines of the text screen down to the last that has something."""
        with self.vm.loop.lock:
            lines = self.vm.board.vga.text()
        return lines[: max((number for number, line in enumerate(lines, 1) if line), default=0)]

    def keys(self, *words: str) -> None:
        with self.vm.loop.lock:
            press(self.vm.board.ps2.keyboard, words)

    def sent(self, text: str) -> None:
        for character in text:
            self.until(lambda: not self.vm.board.ps2.keyboard.queue)
            with self.vm.loop.lock:
                type_text(self.vm.board.ps2.keyboard, character)


def boot(*disks: str, memory: int, nets: Sequence[str] = ()) -> tuple[FirmwareMachine, Console]:
    """A PC that is not started yet."""
    console = Console()
    options = RunOptions.of(machine="pc", disks=list(disks), nets=list(nets), engine="soft", memory=memory)
    return launch_pc(options, console, log=console.log.extend), console
