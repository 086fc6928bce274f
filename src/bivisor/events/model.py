"""The kinds of events, a class for each.

Times are nanoseconds of CLOCK_MONOTONIC. `domain` is the number of the domain that does it (0 for a machine of the
hosted architecture, and for Dom0), `vcpu` the processor that does it, or -1 for one of Dom0's services and devices.
`duration` is how many nanoseconds it took, 0 for what happens at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar


class Kind(Enum):
    """What can be asked for."""

    EXIT = "exit"
    ENTRY = "entry"
    HYPERCALL = "hypercall"
    EVENT = "event"
    GRANT = "grant"
    XENSTORE = "xenstore"
    XENBUS = "xenbus"
    RING = "ring"
    INTERRUPT = "interrupt"
    DEVICE = "device"
    LIFE = "life"


@dataclass(slots=True)
class Event:
    """One thing that happened. An interceptor gets it before it is over, and may change what its class says."""

    kind: ClassVar[Kind]
    unsaid: ClassVar[tuple[str, ...]] = ()
    """Fields that are no part of `to_dict`."""
    words: ClassVar[tuple[str, ...]] = ()
    """The fields that it can be asked for by; the first is its name."""

    time: int
    domain: int
    vcpu: int
    duration: int

    @property
    def name(self) -> str:
        """The word for it, within its kind."""
        return str(getattr(self, self.words[0])) if self.words else self.kind.value

    @property
    def labels(self) -> tuple[str, ...]:
        """The words by which it can be asked for."""
        return (self.name, *(getattr(self, each) for each in self.words[1:]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; bytes are text there."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in self.unsaid}
        return {"kind": self.kind.value, "name": self.name, **said}


@dataclass(slots=True)
class Exit(Event):
    """A processor left its guest (`reason` is the class of the exit) and was handled in `duration`; then it entered
    again, unless `ended`: the exit went to who runs the processor, and `duration` is not known.

    `address` is the port, address or MSR, `value` what was written or, afterwards, read; `device` who answers there.
    An interceptor may change `value` before a write and after a read. Answer(value), Drop, Delay; Deny is #GP for an
    MSR, all ones for a read. `access` is the exit itself, while it lasts.
    """

    kind: ClassVar[Kind] = Kind.EXIT
    unsaid: ClassVar[tuple[str, ...]] = ("access",)
    words: ClassVar[tuple[str, ...]] = ("reason", "device")

    reason: str
    address: int = 0
    size: int = 0
    is_write: bool = False
    value: int = 0
    device: str = ""
    ended: bool = False
    access: Any = None


@dataclass(slots=True)
class Entry(Event):
    """A processor goes (back) into its guest."""

    kind: ClassVar[Kind] = Kind.ENTRY


@dataclass(slots=True)
class Hypercall(Event):
    """Hypercall `nr` with `args`, as it was made; `call` is its name ("event_channel_op"), `op` what it asks for
    ("send"), `details` its arguments by name, those in memory too. `result` is what the guest gets in RAX, signed;
    None while it goes on or where it never does. A long one is told of in `parts`, and each multicall's too.

    An interceptor may change `args` before and `result` after. Deny(errno), Answer(result), Drop (0), Delay.
    """

    kind: ClassVar[Kind] = Kind.HYPERCALL

    nr: int
    call: str
    op: str
    args: list[int]
    details: dict[str, int]
    result: int | None = None
    preempted: bool = False

    @property
    def name(self) -> str:
        """See `Event.name`: both words."""
        return f"{self.call}.{self.op}" if self.op else self.call

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Event.labels`."""
        return (self.call, self.op, self.name)


@dataclass(slots=True)
class EventSend(Event):
    """An event for `port` of domain `to`, sent from `port` `from_port` of `domain`, or raised by the hypervisor itself
    (`cause` "virq" or "notify", `from_port` 0). Deny(errno), Drop, Delay."""

    kind: ClassVar[Kind] = Kind.EVENT
    words: ClassVar[tuple[str, ...]] = ("cause",)

    cause: str
    from_port: int
    to: int
    port: int


@dataclass(slots=True)
class Grant(Event):
    """`domain` maps, unmaps or copies (`op`) what domain `granter` granted as `ref`. `status` is GNTST_*.

    An interceptor may change `ref` and `readonly` of a map. Deny(number of GNTST_*).
    """

    kind: ClassVar[Kind] = Kind.GRANT
    words: ClassVar[tuple[str, ...]] = ("op",)

    op: str
    granter: int
    ref: int
    readonly: bool = False
    handle: int = -1
    status: int = 0


@dataclass(slots=True)
class XenStore(Event):
    """Request `op` of a client of `domain`, or an event for it (`op` "WATCH_EVENT", and `value` is the token).

    `path` is as it was given; `error` is an errno, 0 for none. An interceptor may change `path` and `value` before,
    `reply` after. Deny(errno), Answer(bytes), Drop (no reply ever), Delay.
    """

    kind: ClassVar[Kind] = Kind.XENSTORE
    words: ClassVar[tuple[str, ...]] = ("op", "path")

    op: str
    path: str
    value: str = ""
    transaction: int = 0
    reply: str = ""
    error: int = 0


@dataclass(slots=True)
class XenBus(Event):
    """A device of `domain` changed its state from `old` to `new`; `end` is "back" or "front"."""

    kind: ClassVar[Kind] = Kind.XENBUS
    words: ClassVar[tuple[str, ...]] = ("new", "device")

    device: str
    end: str
    old: str
    new: str


@dataclass(slots=True)
class Ring(Event):
    """A back-end or device took a request of `domain` from a ring, or gave the response (`end` "request", "response").

    `ident` is what tells this request from others of the same `device` that are under way; `op` is what it asks for,
    `size` how many bytes it moves, `sector` where. `status` is the response's, `port` the back-end's end of the ring's
    event channel. An interceptor gets the request, may
    change its bytes in `entry`, and may Deny (it is answered with an error), Drop (it is not answered), Delay, or
    Answer(status).
    """

    kind: ClassVar[Kind] = Kind.RING
    unsaid: ClassVar[tuple[str, ...]] = ("entry",)

    device: str
    end: str
    op: str
    ident: int
    size: int = 0
    sector: int = -1
    status: int = 0
    port: int = 0
    entry: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        """See `Event.name`: both words."""
        return f"{self.op}.{self.end}"

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Event.labels`."""
        return (self.op, self.end, self.name, self.device)


@dataclass(slots=True)
class Interrupt(Event):
    """An interrupt for `domain`: `source` is "line" (`number` is the GSI, `level` its level), "msi" (the data) or
    "upcall" (the vector of a domain's events)."""

    kind: ClassVar[Kind] = Kind.INTERRUPT
    words: ClassVar[tuple[str, ...]] = ("source",)

    source: str
    number: int
    level: bool = True


@dataclass(slots=True)
class DeviceAccess(Event):
    """`device` was read or written at `offset`, `size` bytes. As for `Exit`, for what reaches a device."""

    kind: ClassVar[Kind] = Kind.DEVICE
    words: ClassVar[tuple[str, ...]] = ("device",)

    device: str
    offset: int
    size: int
    is_write: bool
    value: int = 0


@dataclass(slots=True)
class Life(Event):
    """The domain was created, started, paused, unpaused, shut down or destroyed (`what`); `detail` says why."""

    kind: ClassVar[Kind] = Kind.LIFE
    words: ClassVar[tuple[str, ...]] = ("what",)

    what: str
    detail: str = ""


CLASSES: dict[Kind, type[Event]] = {
    each.kind: each
    for each in (Exit, Entry, Hypercall, EventSend, Grant, XenStore, XenBus, Ring, Interrupt, DeviceAccess, Life)
}
"""The class of each kind."""


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "list[int]": (list,),
    "dict[str, int]": (dict,),
    "int | None": (int, type(None)),
}


def from_dict(said: dict[str, Any]) -> Event:
    """What `to_dict` made. KeyError, ValueError or TypeError where it did not."""
    words = dict(said)
    words.pop("name", None)
    class_ = CLASSES[Kind(words.pop("kind"))]
    for each in fields(class_):
        if each.name in words and not isinstance(words[each.name], _TYPES.get(str(each.type), (object,))):
            raise TypeError(f"{each.name} is {words[each.name]!r}")
    return class_(**words)
