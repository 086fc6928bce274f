"""One event as one line: seconds, who, what kind, what, how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from bivisor.events import (
    DeviceAccess,
    Entry,
    Event,
    EventSend,
    Exit,
    Grant,
    Hypercall,
    Interrupt,
    Kind,
    Life,
    Ring,
    XenBus,
    XenStore,
)

_COLOURS: dict[Kind, str] = {
    Kind.EXIT: "yellow",
    Kind.ENTRY: "bright_black",
    Kind.HYPERCALL: "cyan",
    Kind.EVENT: "blue",
    Kind.GRANT: "magenta",
    Kind.XENSTORE: "green",
    Kind.XENBUS: "bright_green",
    Kind.RING: "bright_magenta",
    Kind.INTERRUPT: "bright_blue",
    Kind.DEVICE: "bright_yellow",
    Kind.LIFE: "bright_white",
}
_LONG = 60


class Lines:
    """Lines for events that come in about the order of their times. `names` are those of the domains; times are in
    seconds since `start` (ns), which is the first event's where it is None."""

    def __init__(self, names: Mapping[int, str], *, colour: bool = False, start: int | None = None) -> None:
        self._names = names
        self._known: dict[int, str] = {}
        self._colour = colour
        self._start = start

    def line(self, event: Event) -> str:
        """Without a line's end."""
        if self._start is None:
            self._start = event.time
        if isinstance(event, Life) and event.what == "created":
            self._known[event.domain] = event.detail
        name = self._names.get(event.domain) or self._known.get(event.domain)
        name = name or (f"domain {event.domain}" if event.domain else "Domain-0")
        who = f"{name} v{event.vcpu}" if event.vcpu >= 0 else name
        kind = f"{event.kind.value:<9}"
        if self._colour:
            kind = click.style(kind, fg=_COLOURS[event.kind])
        took = f"  {event.duration / 1000:.1f} µs" if event.duration else ""
        said = printable(_WORDS[type(event)](event))
        return f"{(event.time - self._start) / 1e9:11.6f} {printable(who):<14} {kind} {said}{took}"


def printable(text: str) -> str:
    """`text` as a terminal may have it: a guest chooses paths and values, and must not command it."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _exit(event: Exit) -> str:
    words = event.reason
    if event.size:
        way = "<-" if event.is_write else "->"
        words += f" {event.address:#x}/{event.size} {way} {event.value:#x}"
    return f"{words}  {event.device}".rstrip()


def _hypercall(event: Hypercall) -> str:
    said = " ".join(f"{name}={_number(value)}" for name, value in event.details.items())
    result = "goes on" if event.result is None else event.result
    return f"{event.name} {said} = {result}".replace("  ", " ")


def _number(value: int) -> str:
    return str(value) if value < 1 << 16 else hex(value)


def _ring(event: Ring) -> str:
    words = f"{event.device} {event.op} {event.end} id={event.ident}"
    if event.sector >= 0:
        words += f" sector={event.sector}"
    if event.size:
        words += f" size={event.size}"
    return words + (f" status={event.status}" if event.end == "response" else "")


def _xenstore(event: XenStore) -> str:
    words = f"{event.op} {_short(event.path)}"
    if event.value:
        words += f" {_short(event.value)!r}"
    if event.error:
        return f"{words}: error {event.error}"
    return words if event.reply in ("", "OK") else f"{words} -> {_short(event.reply)!r}"


def _short(text: str) -> str:
    return text if len(text) <= _LONG else text[:_LONG] + "…"


def _grant(event: Grant) -> str:
    words = f"{event.op} domain {event.granter} ref {event.ref}{' read-only' if event.readonly else ''}"
    return words if not event.status else f"{words}: status {event.status}"


def _device(event: DeviceAccess) -> str:
    way = "<-" if event.is_write else "->"
    return f"{event.device} +{event.offset:#x}/{event.size} {way} {event.value:#x}"


_WORDS: dict[type[Event], Callable[[Any], str]] = {
    Exit: _exit,
    Entry: lambda event: "",
    Hypercall: _hypercall,
    EventSend: lambda event: f"{event.cause} {event.from_port} -> domain {event.to} port {event.port}",
    Grant: _grant,
    XenStore: _xenstore,
    XenBus: lambda event: f"{event.device} {event.end}-end {event.old or '?'} -> {event.new or 'gone'}",
    Ring: _ring,
    Interrupt: lambda event: f"{event.source} {event.number}{'' if event.level else ' down'}",
    DeviceAccess: _device,
    Life: lambda event: f"{event.what} {event.detail}".rstrip(),
}
