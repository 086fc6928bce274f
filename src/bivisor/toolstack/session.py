"""The two ways in which a person meets a guest: a terminal to it, or one command with its three streams.

A session knows what its guest has to be told on the kernel's command line, which devices it needs, and what is still on
its way when the guest ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from bivisor.errors import OutputError
from bivisor.host.tty import FdStream
from bivisor.kvm import VirtualMachine
from bivisor.platform.virtio.console import Port, Stream, VirtioConsole

PORT_NAMES = ("bivisor.stdin", "bivisor.stdout", "bivisor.stderr")
LOG_LIMIT = 64 << 10


class Log:
    """The last of what the guest's kernel wrote to COM1; `also` gets all of it."""

    def __init__(self, also: Callable[[bytes], None] | None = None) -> None:
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._also = also

    def __call__(self, data: bytes) -> None:
        """The guest's kernel wrote `data`."""
        self._parts.append(data)
        self._size += len(data)
        while self._size - len(self._parts[0]) > LOG_LIMIT:
            self._size -= len(self._parts.popleft())
        if self._also is not None:
            self._also(data)

    def text(self) -> str:
        """All that is kept."""
        return b"".join(self._parts).decode("utf-8", "replace")

    def panic(self) -> str:
        """What the kernel gave as the reason of its panic, "" for none."""
        _, found, rest = self.text().rpartition("Kernel panic - not syncing: ")
        return rest.partition("\n")[0].strip() if found else ""

    def lines(self, count: int) -> list[str]:
        """The last `count` lines that say something, without control characters."""
        clean = ("".join(c for c in line if c.isprintable() or c == "\t") for line in self.text().splitlines())
        return [line for line in clean if line.strip()][-count:]


class Session(Protocol):
    """What `launch` asks of a session."""

    command: str | None
    """What the guest is to run instead of a shell."""

    def com1(self, data: bytes) -> None:
        """The guest wrote `data` to COM1."""

    def words(self) -> str:
        """What the kernel's command line says about the consoles."""

    def connect(self, vm: VirtualMachine) -> None:
        """Plug in the devices, before the kernel is loaded."""

    def drain(self, vm: VirtualMachine) -> None:
        """The guest has ended: hand on what it wrote. Waits for whoever reads it; OutputError where nobody took it."""


@runtime_checkable
class Patient(Protocol):
    """A stream that can be waited for."""

    def wait_writable(self, timeout: float | None = None) -> None:
        """See `FdStream.wait_writable`."""


class HostStream(Stream, Protocol):
    """A stream that has to be closed."""

    def close(self) -> None:
        """Give back what it holds."""


Streams = Callable[[VirtualMachine], tuple[HostStream, HostStream, HostStream]]
"""Makes a command's standard input, output and error."""


def inherited(vm: VirtualMachine) -> tuple[FdStream, FdStream, FdStream]:
    """This process's own standard streams. When nobody reads its output any more, the guest is stopped."""
    return FdStream(vm.loop, 0), FdStream(vm.loop, -1, 1, gone=vm.stop), FdStream(vm.loop, -1, 2)


class CommandSession:
    """`command` runs in the guest's shell; its streams are three named console ports, whose ends `streams` makes.

    The kernel's own console is only kept in `log`, so that it can be shown when the guest fails.
    """

    def __init__(self, command: str, streams: Streams = inherited, log: Log | None = None) -> None:
        self.command: str | None = command
        self.log = log or Log()
        self.com1 = self.log
        self._make = streams
        self._streams: tuple[HostStream, ...] = ()
        self._ports: tuple[Port, ...] = ()

    def words(self) -> str:
        """See `Session.words`."""
        return "console=ttyS0 bivisor.stdio=virtio"

    def connect(self, vm: VirtualMachine) -> None:
        """See `Session.connect`."""
        self._streams = self._make(vm)
        for stream in self._streams:
            vm.on_close(stream.close)
        self._ports = tuple(Port(stream, name) for stream, name in zip(self._streams, PORT_NAMES, strict=True))
        vm.add(VirtioConsole(self._ports))

    def drain(self, vm: VirtualMachine) -> None:
        """See `Session.drain`."""
        drain(vm, self._ports)
        for stream in self._streams:
            if isinstance(stream, FdStream):
                check_taken(stream)


def check_taken(stream: FdStream) -> None:
    """OutputError where `stream` did not take what the guest wrote."""
    if stream.failure:
        raise OutputError(f"cannot write what the guest says: {stream.failure}")


def drain(vm: VirtualMachine, ports: tuple[Port, ...]) -> None:
    """Hand on what the guest wrote to `ports` before it ended: the kernel does not wait until it was taken."""
    while True:
        vm.drain()
        with vm.loop.lock:
            waiting = [port.stream for port in ports if not port.drained]
        if not waiting:
            return
        for stream in waiting:
            if isinstance(stream, Patient):
                stream.wait_writable(0.1)
