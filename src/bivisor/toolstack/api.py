"""Guests from Python: `run` for one command, `Guest` for a console that is talked to.

Both take the options of the command line as keywords (see `RunOptions.of`: kernel, initrd, append, protocol, memory,
cpus, disks, nets, shares, engine, verbose, snapshot), and raise what it would print: UsageError, ImageError, HostError,
EngineError.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, Unpack

from bivisor.errors import GuestTimeout
from bivisor.host.memstream import MemoryStream
from bivisor.image import quiet
from bivisor.kvm import Outcome, VirtualMachine
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.toolstack.launch import launch, payload
from bivisor.toolstack.options import DiskOption, NetOption, RunOptions, ShareOption
from bivisor.toolstack.session import CommandSession, Log, drain

Attach = Callable[[VirtualMachine], object]
"""Plugs in devices of one's own before the guest is loaded, as in `lambda vm: vm.ports.attach(0x510, 1, Device())`."""


class Options(TypedDict, total=False):
    """The keywords; see `RunOptions.of`. `memory` is in MiB, or a text with a unit ("2G")."""

    kernel: str | None
    initrd: str | None
    append: str
    protocol: str | None
    memory: str | int
    cpus: int
    disks: list[str | DiskOption]
    nets: list[str | NetOption]
    shares: Sequence[str | Path | ShareOption]
    engine: str
    verbose: bool
    snapshot: bool


@dataclass(frozen=True, slots=True)
class CompletedRun:
    """What came of a command: its exit `status` (or that of `bivisor run` where the guest ended otherwise), what it
    wrote, how the guest ended, and what its kernel said on COM1."""

    status: int
    stdout: bytes
    stderr: bytes
    outcome: Outcome
    log: str


def run(
    command: str,
    *,
    input: bytes = b"",
    timeout: float | None = None,
    attach: Attach | None = None,
    **options: Unpack[Options],
) -> CompletedRun:
    """Run `command` in the shell of a fresh guest, with `input` as its standard input, and wait for it.

    GuestTimeout after `timeout` seconds. An exception in a device of one's own is raised here. Nothing of the guest is
    left when this returns.
    """
    wanted = RunOptions.of(command=command, **options)
    out, err = bytearray(), bytearray()

    def streams(vm: VirtualMachine) -> tuple[MemoryStream, MemoryStream, MemoryStream]:
        source = MemoryStream(vm.loop)
        source.send(input)
        source.end()
        return source, MemoryStream(vm.loop, out.extend), MemoryStream(vm.loop, err.extend)

    session = CommandSession(command, streams)
    with launch(wanted, session, found=payload(wanted, quiet), attach=attach) as vm:
        vm.start()
        outcome = vm.wait(timeout)
        if outcome is None:
            raise GuestTimeout(f"the guest did not end within {timeout:g} s")
        session.drain(vm)
    return CompletedRun(outcome.exit_status, bytes(out), bytes(err), outcome, session.log.text())


class Guest:
    """A guest with a shell on its console. `with` boots it and gives everything back; `vm` is the machine itself.

    All that the guest says on its console is in `output`, from its first byte on.
    """

    command: str | None = None

    def __init__(self, *, attach: Attach | None = None, **options: Unpack[Options]) -> None:
        self._options = RunOptions.of(**options)
        self._attach = attach
        self._said = bytearray()
        self._seen = 0
        self._news = threading.Condition()
        self.log = Log()
        self.com1 = self.log

    def __enter__(self) -> Self:
        self.vm = launch(self._options, self, found=payload(self._options, quiet), attach=self._attach)
        try:
            self.vm.start()
        except BaseException:
            self.vm.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vm.close()

    # What `launch` asks of a session

    def words(self) -> str:
        """See `Session.words`."""
        return "console=ttyS0 console=hvc0 bivisor.term=dumb"

    def connect(self, vm: VirtualMachine) -> None:
        """See `Session.connect`."""
        self._stream = MemoryStream(vm.loop, self._hear)
        self._port = Port(self._stream)
        vm.add(VirtioConsole([self._port]))

    def drain(self, vm: VirtualMachine) -> None:
        """See `Session.drain`."""
        drain(vm, (self._port,))

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._said += data
            self._news.notify_all()

    # What a caller does

    @property
    def output(self) -> bytes:
        """All that the guest has said so far."""
        with self._news:
            return bytes(self._said)

    def send(self, text: bytes | str) -> None:
        """Type `text`; a line ends with "\\n". Wait for the prompt before the first one: nobody listens earlier."""
        self._stream.send(text.encode() if isinstance(text, str) else text)

    def wait_for(self, words: bytes | str, timeout: float = 60.0) -> bytes:
        """Wait until the guest says `words`, and give what it said since the last such call, up to and with them.

        GuestTimeout after `timeout` seconds, or when the guest ends without having said them.
        """
        wanted = words.encode() if isinstance(words, str) else words
        deadline = time.monotonic() + timeout
        while True:
            has_ended = self.vm.wait(0) is not None
            if has_ended:
                self.drain(self.vm)
            with self._news:
                at = self._said.find(wanted, self._seen)
                if at >= 0:
                    start, self._seen = self._seen, at + len(wanted)
                    return bytes(self._said[start : self._seen])
                left = deadline - time.monotonic()
                if has_ended or left <= 0:
                    rest = bytes(self._said[self._seen :])[-200:]
                    why = "ended" if has_ended else f"ran for {timeout:g} s"
                    raise GuestTimeout(f"the guest {why} without saying {wanted!r}; it ended with {rest!r}")
                self._news.wait(min(left, 0.1))

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the guest has ended. GuestTimeout after `timeout` seconds."""
        outcome = self.vm.wait(timeout)
        if outcome is None:
            raise GuestTimeout(f"the guest did not end within {timeout:g} s")
        self.drain(self.vm)
        return outcome
