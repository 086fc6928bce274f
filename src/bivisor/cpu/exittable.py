"""The handlers of one processor's exits, by class, and how its exits and entries are told to who listens.

While nobody listens the table holds the handlers themselves, so that an exit costs a look-up and the call. While
somebody does, each handler is wrapped (`events/`), and exits that nobody handles have an entry as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from bivisor.cpu.exits import (
    Cpuid,
    Debug,
    Direction,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Interrupted,
    InterruptWindow,
    Mmio,
    PortIo,
    RdMsr,
    Shutdown,
    SystemEvent,
    UnknownExit,
    WrMsr,
)
from bivisor.events import Answer, Delay, Deny, Events, Kind, Probe, Site, Verdict
from bivisor.events import Entry as EntryEvent
from bivisor.events import Exit as ExitEvent

Handler: TypeAlias = Callable[[Any], bool]
_UNHANDLED = (Hlt, InterruptWindow, Debug, Shutdown, FailEntry, InternalError, SystemEvent, UnknownExit)
_ONES = (1 << 64) - 1
_EPERM = 1


class ExitTable:
    """`handle` is an `ExitHandler`: it looks the exit's class up in `handlers`. `where(exit_)` names the device that an
    exit goes to, "" for none."""

    def __init__(self, handlers: Mapping[type[Any], Handler], where: Callable[[Exit], str] = lambda _: "") -> None:
        self.handlers: dict[type[Any], Handler] = dict(handlers)
        self._find = self.handlers.get
        self._plain = dict(handlers)
        self._where = where
        self._domain = self._vcpu = 0
        self._exits: Probe | None = None
        self._entries: Probe | None = None

    def handle(self, exit_: Exit) -> bool:
        """True where the guest can go on."""
        handler = self._find(type(exit_))
        return handler is not None and handler(exit_)

    # ---------------------------------------------------------------- who listens

    def watch(self, events: Events, domain: int, vcpu: int) -> tuple[Site, Site]:
        """Tell `events` of the exits and entries of this processor; the two places, to be removed at its end."""
        self._domain, self._vcpu = domain, vcpu
        return (
            events.site(Kind.EXIT, self._install_exits, domain),
            events.site(Kind.ENTRY, self._install_entries, domain),
        )

    def entering(self) -> None:
        """The processor is about to `run()`: it is the first entry, or the one after an exit that came back."""
        probe = self._entries
        if probe is not None:
            probe.tell(EntryEvent(probe.clock(), self._domain, self._vcpu, 0))

    def left(self, exit_: Exit) -> None:
        """`run()` came back with `exit_`. Only those that no handler sees are told here."""
        probe = self._exits
        if probe is not None and type(exit_) is Interrupted:
            probe.tell(ExitEvent(probe.clock(), self._domain, self._vcpu, 0, "Interrupted", ended=True))

    def _install_exits(self, probe: Probe | None) -> None:
        self._exits = probe
        self._rebuild()

    def _install_entries(self, probe: Probe | None) -> None:
        self._entries = probe
        self._rebuild()

    def _rebuild(self) -> None:
        exits, entries = self._exits, self._entries
        for class_ in (*self._plain, *_UNHANDLED):
            handler = self._plain.get(class_)
            if exits is not None:
                handler = self._told(class_, handler or _nobody, exits)
            if entries is not None and handler is not None:
                handler = self._followed(handler, entries)
            if handler is None:
                self.handlers.pop(class_, None)
            else:
                self.handlers[class_] = handler

    def _followed(self, handler: Handler, probe: Probe) -> Handler:
        def followed(exit_: Exit) -> bool:
            goes_on = handler(exit_)
            if goes_on:
                probe.tell(EntryEvent(probe.clock(), self._domain, self._vcpu, 0))
            return goes_on

        return followed

    def _told(self, class_: type[Any], handler: Handler, probe: Probe) -> Handler:
        facts, answer, where = _FACTS.get(class_, _no_facts), _ANSWERS.get(class_), self._where
        domain, vcpu, reason, clock = self._domain, self._vcpu, class_.__name__, probe.clock

        def told(exit_: Exit) -> bool:
            event = ExitEvent(clock(), domain, vcpu, 0, reason, *facts(exit_), where(exit_), False, exit_)
            goes_on = self._interfere(probe, event, handler, answer) if probe.hooks else handler(exit_)
            event.duration = clock() - event.time
            if not event.is_write and answer is not None:
                before = event.value = facts(exit_)[-1]
                probe.over(event)
                if event.value != before:
                    answer(exit_, event.value)
            else:
                event.ended = not goes_on
                probe.over(event)
            event.access = None
            return goes_on

        return told

    @staticmethod
    def _interfere(probe: Probe, event: ExitEvent, handler: Handler, answer: _Answer | None) -> bool:
        exit_, before = event.access, event.value
        verdict = probe.ask(event)
        if isinstance(verdict, Delay):
            time.sleep(verdict.seconds)
            verdict = None
        if verdict is None or answer is None:
            return handler(_rewritten(exit_, event.value) if event.is_write and event.value != before else exit_)
        answer_to(exit_, verdict, answer)
        return True


_Answer: TypeAlias = Callable[[Any, int], None]


def answer_to(exit_: Exit, verdict: Verdict, answer: _Answer) -> None:
    """Give `exit_` the answer that a verdict comes to, without its handler."""
    match verdict:
        case Answer(value):
            answer(exit_, value if isinstance(value, int) else int.from_bytes(value, "little"))
        case Deny(number):
            if isinstance(exit_, RdMsr | WrMsr):
                exit_.error[0] = 1
            else:
                answer(exit_, -number if isinstance(exit_, Hypercall) else _ONES)
        case _:
            answer(exit_, 0 if isinstance(exit_, RdMsr | Hypercall) else _ONES)


def _nobody(_: Exit) -> bool:
    return False


def _rewritten(exit_: Exit, value: int) -> Exit:
    """A write of `value` instead."""
    match exit_:
        case PortIo(size=size, data=data):
            data[:size] = _bytes(value, size)
        case Mmio(length=size, data=data):
            data[:size] = _bytes(value, size)
        case WrMsr(index=index, error=error):
            return WrMsr(index, value & _ONES, error)
    return exit_


def _bytes(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


_Facts: TypeAlias = tuple[int, int, bool, int]
"""address, size, is_write, value"""


def _no_facts(_: Any) -> _Facts:
    return 0, 0, False, 0


def _port_facts(exit_: PortIo) -> _Facts:
    size = exit_.size
    return exit_.port, size * exit_.count, exit_.direction is Direction.OUT, int.from_bytes(exit_.data[:size], "little")


def _mmio_facts(exit_: Mmio) -> _Facts:
    size = exit_.length
    return exit_.address, size, exit_.is_write, int.from_bytes(exit_.data[:size], "little")


_FACTS: dict[type[Any], Callable[[Any], _Facts]] = {
    PortIo: _port_facts,
    Mmio: _mmio_facts,
    RdMsr: lambda exit_: (exit_.index, 8, False, int.from_bytes(exit_.data, "little")),
    WrMsr: lambda exit_: (exit_.index, 8, True, exit_.value),
    Cpuid: lambda exit_: (exit_.leaf, 16, False, int.from_bytes(exit_.data, "little")),
    Hypercall: lambda exit_: (exit_.nr, 8, False, int.from_bytes(exit_.result, "little")),
    Debug: lambda exit_: (exit_.pc, 0, False, 0),
}


def _answer_port(exit_: PortIo, value: int) -> None:
    if exit_.direction is Direction.IN:
        exit_.data[: exit_.size * exit_.count] = _bytes(value, exit_.size) * exit_.count


def _answer_mmio(exit_: Mmio, value: int) -> None:
    if not exit_.is_write:
        exit_.data[: exit_.length] = _bytes(value, exit_.length)


def _answer_rdmsr(exit_: RdMsr, value: int) -> None:
    exit_.data[:] = _bytes(value, 8)


def _answer_cpuid(exit_: Cpuid, value: int) -> None:
    exit_.data[:] = _bytes(value, 16)


def _answer_hypercall(exit_: Hypercall, value: int) -> None:
    exit_.result[:] = _bytes(value, 8)


_ANSWERS: dict[type[Any], _Answer] = {
    PortIo: _answer_port,
    Mmio: _answer_mmio,
    RdMsr: _answer_rdmsr,
    WrMsr: lambda exit_, value: None,
    Cpuid: _answer_cpuid,
    Hypercall: _answer_hypercall,
}
