"""The store while somebody listens: requests and replies, watch events, and what states devices come to (XenBus)."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from typing import Final

from bivisor.abi.xen.xenbus import XenbusState
from bivisor.abi.xen.xs_wire import XSD_ERRORS, MessageType
from bivisor.dom0.xenstore import tree, wire
from bivisor.dom0.xenstore.connection import Connection
from bivisor.dom0.xenstore.server import Server
from bivisor.dom0.xenstore.store import Change
from bivisor.dom0.xenstore.wire import Message
from bivisor.events import Answer, Delay, Deny, Drop, Events, Kind, Probe, Site, XenBus, XenStore

CallLater = Callable[[float, Callable[[], None]], None]

_NAMES: Final = {int(number): number.name for number in MessageType}
_NUMBERS: Final = {text: number for number, text in XSD_ERRORS.items()}
_FRONT: Final = re.compile(rb"/local/domain/(\d+)/device/([^/]+)/([^/]+)/state")
_BACK: Final = re.compile(rb"/local/domain/\d+/backend/([^/]+)/(\d+)/([^/]+)/state")


def watch_store(events: Events, server: Server, call_later: CallLater) -> tuple[Site, Site]:
    """Tell `events` of what `server` is asked and says, and of devices' states. `call_later(seconds, function)`."""

    def install_requests(probe: Probe | None) -> None:
        watched = None if probe is None else _Requests(server, probe, call_later)
        server.on_request = None if watched is None else watched.request
        server.on_event = None if watched is None else watched.event

    def install_states(probe: Probe | None) -> None:
        server.on_change = None if probe is None else _States(server, probe).changed

    return events.site(Kind.XENSTORE, install_requests), events.site(Kind.XENBUS, install_states)


class _Requests:
    """Dom0's own services wait for their replies: what would be lost to them is an error, and nothing is late."""

    def __init__(self, server: Server, probe: Probe, call_later: CallLater) -> None:
        self._server = server
        self._probe = probe
        self._call_later = call_later

    def request(self, connection: Connection, message: Message) -> None:
        """See `Server.on_request`."""
        self._ask(connection, message, hooks=bool(self._probe.hooks))

    def _ask(self, connection: Connection, message: Message, *, hooks: bool) -> None:
        probe = self._probe
        path, _, value = message.payload.partition(b"\0")
        if message.type != MessageType.WRITE:
            value = value.removesuffix(b"\0")
        op = _NAMES.get(message.type, str(message.type))
        event = XenStore(probe.clock(), connection.domid, -1, 0, op, _text(path), _text(value), message.tx_id)
        reply = None
        if hooks:
            before = event.path, event.value
            match probe.ask(event):
                case Deny(number):
                    reply = wire.error(message, number)
                case Answer(answer):
                    reply = wire.reply(message, answer if isinstance(answer, bytes) else str(answer).encode())
                case Drop() if connection.domid:
                    return
                case Delay(seconds) if connection.domid:
                    self._call_later(seconds, lambda: self._later(connection, message))
                    return
                case Drop():
                    reply = wire.error(message, errno.EIO)
            if (event.path, event.value) != before:
                message = message._replace(payload=_payload(message, event))
        if reply is None:
            reply = self._server.carry_out(connection, message)
        self._fill(event, reply)
        told = event.reply
        event.duration = probe.clock() - event.time
        probe.over(event)
        if event.reply != told:
            end = b"\0" if reply.endswith(b"\0") else b""
            reply = wire.reply(message, _bytes(event.reply) + end)
        self._server.finish(connection, reply)

    def _later(self, connection: Connection, message: Message) -> None:
        if connection in self._server.connections:
            self._ask(connection, message, hooks=False)
            connection.wake()

    @staticmethod
    def _fill(event: XenStore, reply: bytes) -> None:
        decoded = wire.decode(reply)
        assert decoded is not None
        if decoded.type == MessageType.ERROR:
            event.error = _NUMBERS.get(decoded.payload, errno.EIO)
        else:
            event.reply = _text(decoded.payload.removesuffix(b"\0"))

    def event(self, connection: Connection, sent: bytes) -> bool:
        """See `Connection.on_event`."""
        probe = self._probe
        path, token = wire.strings(sent[wire.HEADER_SIZE :])
        event = XenStore(probe.clock(), connection.domid, -1, 0, "WATCH_EVENT", _text(path), _text(token))
        if probe.hooks:
            match probe.ask(event):
                case Drop() | Deny():
                    return False
                case Delay(seconds):
                    self._call_later(seconds, lambda: self._event_later(connection, sent))
                    return False
        probe.tell(event)
        return True

    def _event_later(self, connection: Connection, sent: bytes) -> None:
        if connection in self._server.connections:
            connection.queue_event(sent)


class _States:
    """What state each end of each device was in when it was last seen: nothing is known of what was before."""

    def __init__(self, server: Server, probe: Probe) -> None:
        self._server = server
        self._probe = probe
        self._seen: dict[bytes, str] = {}

    def changed(self, changes: Iterable[Change]) -> None:
        """See `Server.on_change`."""
        for change in changes:
            path = change.path.wire
            if path.endswith(b"/state"):
                self._look(path, change)

    def _look(self, path: bytes, change: Change) -> None:
        front, back = _FRONT.fullmatch(path), _BACK.fullmatch(path)
        if front is not None:
            domid, kind, devid = front.groups()
        elif back is not None:
            kind, domid, devid = back.groups()
        else:
            return
        node = tree.find(self._server.store.root, change.path)
        new = "" if node is None else _state(bytes(node.value))
        old = self._seen.get(path, "")
        if new == old:
            return
        self._seen[path] = new
        probe = self._probe
        device = _text(b"/".join((kind, domid, devid)))
        end = "front" if front is not None else "back"
        probe.over(XenBus(probe.clock(), int(domid) & 0xFFFF, -1, 0, device, end, old, new))


def _state(value: bytes) -> str:
    try:
        return XenbusState(int(value)).name if len(value) < 3 else "?"
    except ValueError:
        return "?"


def _payload(message: Message, event: XenStore) -> bytes:
    """The strings of the request as hooks want them: but for a value that is written each ends with a NUL."""
    path, value = _bytes(event.path) + b"\0", _bytes(event.value)
    return path + value if message.type == MessageType.WRITE or not value else path + value + b"\0"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
