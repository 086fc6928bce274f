"""The devices of a machine while somebody listens: accesses on its buses, requests in virtqueues, interrupts.

Methods are put in the place of an object's own, in that object alone, so that nothing of this is there otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from bivisor.cpu.contract import Machine
from bivisor.events import Answer, Delay, DeviceAccess, Events, Interrupt, Kind, Probe, Ring, Site
from bivisor.platform.bus import Bus
from bivisor.platform.virtio.device import VirtioDevice
from bivisor.platform.virtio.queue import Chain, VirtQueue

_ONES = (1 << 64) - 1


def replace(owner: object, **methods: Callable[..., Any] | None) -> None:
    """Put functions in the place of `owner`'s methods; None gives the method back."""
    for name, function in methods.items():
        if function is None:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = function


def watch_buses(events: Events, domain: int, buses: Iterable[Bus]) -> Site:
    """Tell `events` of what reaches the devices of `buses`. The place is to be removed if they go before the events."""
    kept = tuple(buses)

    def install(probe: Probe | None) -> None:
        for bus in kept:
            if probe is None:
                replace(bus, read=None, write=None)
            else:
                watched = _WatchedBus(bus, domain, probe)
                replace(bus, read=watched.read, write=watched.write)

    return events.site(Kind.DEVICE, install, domain)


class _WatchedBus:
    def __init__(self, bus: Bus, domain: int, probe: Probe) -> None:
        self._bus = bus
        self._domain = domain
        self._probe = probe

    def read(self, address: int, size: int) -> int:
        event = self._event(address, size, is_write=False)
        if event is None:
            return Bus.read(self._bus, address, size)
        if self._decided(event):
            event.value &= (1 << 8 * size) - 1
        else:
            event.value = Bus.read(self._bus, address, size)
        event.duration = self._probe.clock() - event.time
        self._probe.over(event)
        return event.value & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        event = self._event(address, size, is_write=True)
        if event is None:
            Bus.write(self._bus, address, size, value)
            return
        event.value = value
        if not self._decided(event):
            Bus.write(self._bus, address, size, event.value & (1 << 8 * size) - 1)
        event.duration = self._probe.clock() - event.time
        self._probe.over(event)

    def _event(self, address: int, size: int, *, is_write: bool) -> DeviceAccess | None:
        claim = self._bus.find(address)
        if claim is None:
            return None
        now = self._probe.clock()
        return DeviceAccess(now, self._domain, -1, 0, claim.name, address - claim.base, size, is_write)

    def _decided(self, event: DeviceAccess) -> bool:
        """Whether a hook decided: then the device hears nothing, and the value is what is read."""
        if not self._probe.hooks:
            return False
        match self._probe.ask(event):
            case None:
                return False
            case Delay(seconds):
                time.sleep(seconds)
                return False
            case Answer(value):
                event.value = value if isinstance(value, int) else int.from_bytes(value, "little")
            case _:
                event.value = _ONES
        return True


def watch_virtio(events: Events, domain: int, device: VirtioDevice, name: str) -> None:
    """Tell `events` of the buffers in the queues of `device`, as requests and responses, under a `name`.

    A buffer that a hook drops stays with the device for ever.
    """

    def install(probe: Probe | None) -> None:
        for queue in device.queues:
            if probe is None:
                replace(queue, pop=None, push=None)
            else:
                watched = _WatchedQueue(queue, f"{name}/{queue.index}", domain, probe, device.describe)
                replace(queue, pop=watched.pop, push=watched.push)

    events.site(Kind.RING, install, domain)


class _WatchedQueue:
    def __init__(
        self,
        queue: VirtQueue,
        device: str,
        domain: int,
        probe: Probe,
        describe: Callable[[Chain], tuple[str, int, int]],
    ) -> None:
        self._queue = queue
        self._describe = describe
        self._ops: dict[int, str] = {}
        self._device = device
        self._domain = domain
        self._probe = probe

    def pop(self) -> Chain | None:
        chain = VirtQueue.pop(self._queue)
        while chain is not None:
            op, size, sector = self._describe(chain)
            self._ops[chain.head] = op
            event = self._event("request", op, chain, size, sector)
            verdict = self._probe.ask(event) if self._probe.hooks else None
            if isinstance(verdict, Delay):
                time.sleep(verdict.seconds)
                verdict = None
            self._probe.over(event)
            if verdict is None:
                return chain
            if isinstance(verdict, Answer) or not chain.readable:
                VirtQueue.push(self._queue, chain)
            chain = VirtQueue.pop(self._queue)
        return None

    def push(self, chain: Chain, written: int = 0) -> None:
        VirtQueue.push(self._queue, chain, written)
        op = self._ops.pop(chain.head, "buffer")
        self._probe.tell(self._event("response", op, chain, written, -1))

    def _event(self, end: str, op: str, chain: Chain, size: int, sector: int) -> Ring:
        return Ring(self._probe.clock(), self._domain, -1, 0, self._device, end, op, chain.head, size, sector)


def watch_interrupts(events: Events, domain: int, machine: Machine) -> None:
    """Tell `events` of the lines and messages that interrupt `machine`'s processors from outside."""

    def install(probe: Probe | None) -> None:
        if probe is None:
            machine.on_interrupt = None
            return

        def told(source: str, number: int, level: bool) -> None:
            probe.tell(Interrupt(probe.clock(), domain, -1, 0, source, number, level))

        machine.on_interrupt = told

    events.site(Kind.INTERRUPT, install, domain)
