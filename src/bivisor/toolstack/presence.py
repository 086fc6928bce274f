"""A running machine tells of itself: a socket by its name, where the page, `top` and `trace` find it.

The protocol is the host's (`hostd/messages.py`). The socket goes with the machine; one whose process has died is swept
away by whoever looks for machines next.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bivisor.errors import BivisorError, UsageError
from bivisor.events import Event, Exit, Kind, Listener
from bivisor.host.local_socket import private_folder
from bivisor.kvm import VirtualMachine
from bivisor.kvm.firmware import FirmwareMachine
from bivisor.toolstack.feed import Feed
from bivisor.toolstack.hostd.place import Place, place_of
from bivisor.toolstack.hostd.server import Peer, RpcServer
from bivisor.toolstack.hostd.stream import ConsoleStream
from bivisor.toolstack.hostd.tail import offer_tail
from bivisor.toolstack.options import check_machine_name
from bivisor.toolstack.screen import Display
from bivisor.toolstack.tracing.counts import Counts
from bivisor.toolstack.tracing.stream import TraceStreams

if TYPE_CHECKING:
    from bivisor.toolstack.vnc import VncServer

_LOOKED_AT_S = 3.0
"""How long after the last question the exits are still counted."""


def machine_sockets(place: Place | None = None) -> dict[str, Path]:
    """The sockets of the machines that run, by name."""
    folder = (place or place_of()).machines
    return {path.stem: path for path in sorted(folder.glob("*.sock"))} if folder.is_dir() else {}


class Presence:
    """Tells of `vm` while the context lasts. `feed` is its console, where somebody else may see it."""

    def __init__(self, vm: VirtualMachine, name: str = "", feed: Feed | None = None) -> None:
        self._vm = vm
        self.name = check_machine_name(name) if name else f"run-{os.getpid()}"
        self._feed = feed
        self._lock = threading.Lock()
        self._exits = ExitCounts(vm)
        self._traces = TraceStreams(vm.events)
        self._counts = Counts(vm.events)
        self._began = time.time()
        self._server: RpcServer | None = None
        self._shown = ExitStack()
        self._screen: VncServer | None = None

    def __enter__(self) -> Presence:
        """UsageError where another that runs has the name. Where there can be no such folder nobody is told."""
        place = place_of()
        try:
            private_folder(place.folder)
            path = private_folder(place.machines) / f"{self.name}.sock"
        except BivisorError:
            return self
        if _answers(path):
            raise UsageError(f"a machine {self.name} runs already: --name gives this one another name")
        self._server = RpcServer(path, self.table())
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self._traces.close()
        self._counts.close()
        self._exits.close()
        self._shown.close()

    def table(self) -> dict[str, Callable[..., Any]]:
        """The requests that it answers."""
        return {
            "describe": self.describe,
            "console": self.console,
            "screen": self.screen,
            "events": self.events,
            "stop": self.stop,
            "power": self.power,
            "trace": self._traces.trace,
            "top": self.top,
        }

    def describe(self, peer: Peer) -> dict[str, Any]:
        """The machine now: its process, its processors with what they came out for, its devices."""
        del peer
        vm = self._vm
        counted = self._exits.look()
        return {
            "name": self.name,
            "pid": os.getpid(),
            "engine": vm.engine.name,
            "state": "running",
            "memory_kib": vm.memory.ram.size >> 10,
            "uptime_s": time.time() - self._began,
            "vcpus": [
                {"vcpu": index, "thread": thread.native_id, **counted[index]}
                for index, thread in enumerate(vm.processor_threads)
            ],
            "devices": sorted({claim.name for bus in (vm.ports, vm.mmio) for claim in bus.claims}),
            "console": self._feed is not None,
            "screen": isinstance(vm, FirmwareMachine),
        }

    def top(self, peer: Peer) -> dict[str, Any]:
        """What the machine has done so far, as a host tells it of its domains; see `Counts.look`."""
        del peer
        vm, spent = self._vm, 0
        for thread in vm.processor_threads:
            if thread.is_alive() and thread.ident is not None:
                spent += time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
        row = {"domid": 0, "name": self.name, "state": "running", "vcpus": len(vm.vcpus), "cpu_time_s": spent / 1e9}
        return {**self._counts.look(), "domains": [row], "engine": vm.engine.name}

    def console(self, peer: Peer, domain: str = "") -> None:
        """The connection is the machine's console from now on. `domain` is what a host would be told: no matter."""
        del domain
        feed = self._feed
        if feed is None:
            raise UsageError(f"machine {self.name} runs a command: it has no console to share")

        def take(end: socket.socket, typed: bytes) -> None:
            with self._vm.loop.lock:
                ConsoleStream(self._vm.loop, feed, end, typed)

        peer.take = take

    def screen(self, peer: Peer) -> None:
        """The connection carries the RFB protocol from now on: the machine's screen, keyboard and mouse."""
        server = self._display()

        def take(end: socket.socket, _: bytes) -> None:
            server.adopt(end)

        peer.take = take

    def _display(self) -> VncServer:
        vm = self._vm
        if not isinstance(vm, FirmwareMachine):
            raise UsageError(f"machine {self.name} has no screen: it is no PC (--machine pc)")
        with self._lock:
            if self._screen is None:
                from bivisor.toolstack.vnc import VncServer

                display = Display()
                display.plug_in(vm.board.vga, vm.board.ps2, vm.loop)
                self._shown.callback(display.unplug)
                self._screen = self._shown.enter_context(VncServer(display, display, None, name=self.name))
            return self._screen

    def events(self, peer: Peer, **wanted: Any) -> None:
        """The connection carries the newest events from now on: see `tail.offer_tail`."""
        offer_tail(self._vm.events, peer, **wanted)

    def stop(self, peer: Peer) -> None:
        """End it at once."""
        del peer
        self._vm.stop()

    def power(self, peer: Peer) -> None:
        """Press its power button."""
        del peer
        self._vm.power_button()


class ExitCounts:
    """What the processors of a machine came out for since they began, and how long they stay out while somebody asks.

    Most exits never reach this program's handlers (a virtio driver's notification is an eventfd's, an APIC is the
    engine's own), so the engine counts them.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._timer: threading.Timer | None = None
        self._began = 0
        self._outside: list[int] = []

    def look(self) -> list[dict[str, Any]]:
        """For each processor `exits`, by reason, and `guest_share`: how much of the time since somebody looks was not
        spent on exits in this program (0 to 1), None as long as nothing is known."""
        with self._lock:
            if self._listener is None:
                self._begin()
            self._again()
            passed = time.monotonic_ns() - self._began
            shares = [None if passed < 1_000_000 else max(0.0, 1 - each / passed) for each in self._outside]
            counters = [
                {name: count for name, count in vcpu.counters.items() if count and "_" not in name}
                for vcpu in self._vm.vcpus
            ]
            return [{"exits": exits, "guest_share": share} for exits, share in zip(counters, shares, strict=True)]

    def _begin(self) -> None:
        count = len(self._vm.vcpus)
        self._outside = [0] * count
        self._began = time.monotonic_ns()
        self._listener = self._vm.events.listen(self._count, [Kind.EXIT])

    def _count(self, event: Event) -> None:
        assert isinstance(event, Exit)
        self._outside[event.vcpu] += event.duration

    def _again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(_LOOKED_AT_S, self.close)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Nobody looks any more."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._listener is not None:
                self._listener.close()
                self._listener = None


def _answers(path: Path) -> bool:
    from bivisor.host import local_socket

    end = local_socket.connect(path)
    if end is not None:
        end.close()
    return end is not None
