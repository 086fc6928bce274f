"""Guests that programs work with: commands, files, memory, breakpoints, faults, under either architecture."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from bivisor.boot.cache import PayloadCache
from bivisor.debug.target import target_of
from bivisor.events import Events
from bivisor.host.memstream import MemoryStream
from bivisor.image import quiet
from bivisor.image.place import default_root
from bivisor.kvm import VirtualMachine
from bivisor.platform.virtio.console import Port, VirtioConsole
from bivisor.toolstack.agent import SCRIPT, Agent
from bivisor.toolstack.api import Attach, Guest, Options
from bivisor.toolstack.faults import Eventful
from bivisor.toolstack.inside import Inside
from bivisor.toolstack.inspect import Inspected, Inspector
from bivisor.toolstack.launch import launch, payload
from bivisor.toolstack.session import PORT_NAMES, drain


class KvmGuest(Inside, Inspected, Eventful, Guest):
    """A guest of the hosted architecture, with a shell on its console and an agent that runs commands.

    `with` boots it, waits until it takes commands, and gives everything back at the end; a `paused` one does not run
    before `start()`, and nothing is waited for. `vm` is the machine itself. An initramfs of one's own has no agent:
    then `run` and what works by it are UsageError, and everything else works.
    """

    def __init__(self, *, attach: Attach | None = None, paused: bool = False, **options: Unpack[Options]) -> None:
        super().__init__(attach=attach, **options)
        self._paused = paused
        self._ports: tuple[Port, ...] = ()
        self.command: str | None = None

    def __enter__(self) -> Self:
        found = payload(self._options, quiet)
        self.kernel = found.kernel
        if found.ours:
            self.command = SCRIPT
        self.vm = launch(self._options, self, found=found, attach=self._attach)
        try:
            vm = self.vm
            target = target_of(vm.engine, vm.vcpus, vm.memory, vm.control)
            self._inspector = Inspector(target, self.kernel, PayloadCache(default_root() / "kernels"))
            if self._paused:
                vm.control.hold()
            vm.start()
            if self._agent is not None and not self._paused:
                self.wait_until_up()
        except BaseException:
            self.vm.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._inspector.close()

    def start(self) -> None:
        """Let a guest that was made `paused` run."""
        self._inspector.start()

    @property
    def events(self) -> Events:
        """See `Eventful.events`."""
        return self.vm.events

    def words(self) -> str:
        """See `Session.words`."""
        return super().words() + " bivisor.stdio=virtio"

    def connect(self, vm: VirtualMachine) -> None:
        """See `Session.connect`."""
        if self.command is None:
            super().connect(vm)
            return
        self._stream = MemoryStream(vm.loop, self._hear)
        self._port = Port(self._stream)
        requests = MemoryStream(vm.loop)
        self._agent = Agent(requests.send, lambda: self.vm.wait(0) is not None)
        answers = MemoryStream(vm.loop, self._agent.hear)
        streams = (requests, answers, MemoryStream(vm.loop, lambda _: None))
        ports = [Port(stream, name) for stream, name in zip(streams, PORT_NAMES, strict=True)]
        vm.add(VirtioConsole([self._port, *ports]))

    def drain(self, vm: VirtualMachine) -> None:
        """See `Session.drain`."""
        drain(vm, (self._port,))


def kvm_guest(*, attach: Attach | None = None, paused: bool = False, **options: Unpack[Options]) -> KvmGuest:
    """A guest of the hosted architecture, to be used with `with`; without `kernel`, the default guest.

    `attach(vm)` plugs in devices of one's own. For the options see `RunOptions.of`.
    """
    return KvmGuest(attach=attach, paused=paused, **options)
