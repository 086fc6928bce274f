"""A client of the store in the same process, for back-ends and the toolstack: requests and replies as on any wire.

It speaks the protocol and holds no reference into the tree, so a daemon elsewhere could take the server's place.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.server import Server
from bivisor.dom0.xenstore.wire import Message

_ALL = 1 << 20
_NUMBERS = {name.encode(): number for number, name in errno.errorcode.items()}
WatchCallback = Callable[[str], None]


class StoreClient:
    """One connection with Dom0's privilege. Paths are strings; a failure is XenStoreError with the store's errno.

    Called with the loop's lock held, as the server is.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = server.connect(0)
        self._connection.wake = self._arrived
        self._watches: dict[bytes, WatchCallback] = {}
        self._replies: list[Message] = []
        self._next_token = 0
        self._busy = False

    def _arrived(self) -> None:
        """Sort what came into replies and watch events."""
        if self._busy:
            return
        data = bytes(self._connection.peek(_ALL))
        self._connection.sent(len(data))
        at = 0
        while (message := wire.decode(data, at)) is not None:
            at += len(wire.encode(message))
            if message.type == MessageType.WATCH_EVENT:
                path, token = wire.strings(message.payload)
                callback = self._watches.get(token)
                if callback is not None:
                    callback(os.fsdecode(path))
            else:
                self._replies.append(message)

    def _ask(self, type_: MessageType, payload: bytes) -> bytes:
        self._busy = True
        try:
            self._server.receive(self._connection, Message(type_, 0, 0, payload))
        finally:
            self._busy = False
        self._arrived()
        reply = self._replies.pop()
        if reply.type == MessageType.ERROR:
            raise XenStoreError(_NUMBERS.get(reply.payload.rstrip(b"\0"), errno.EIO))
        return reply.payload

    def read(self, path: str) -> str:
        """The value of the node at `path`."""
        return os.fsdecode(self._ask(MessageType.READ, os.fsencode(path) + b"\0"))

    def get(self, path: str) -> str | None:
        """Its value, or None where there is no such node."""
        try:
            return self.read(path)
        except XenStoreError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def write(self, path: str, value: str | int) -> None:
        """Set the node at `path`, which is made if need be."""
        self._ask(MessageType.WRITE, os.fsencode(path) + b"\0" + os.fsencode(str(value)))

    def mkdir(self, path: str) -> None:
        """Make the node at `path`."""
        self._ask(MessageType.MKDIR, os.fsencode(path) + b"\0")

    def remove(self, path: str) -> None:
        """Remove the node at `path` and what is below it; none is no error."""
        try:
            self._ask(MessageType.RM, os.fsencode(path) + b"\0")
        except XenStoreError as error:
            if error.errno != errno.ENOENT:
                raise

    def set_permissions(self, path: str, entries: Iterable[str]) -> None:
        """Set who may do what there: "n5" is owner 5 and nothing for others, "r7" lets domain 7 read."""
        self._ask(MessageType.SET_PERMS, b"\0".join(os.fsencode(text) for text in (path, *entries)) + b"\0")

    def names(self, path: str) -> list[str]:
        """The names of the nodes right below `path`; none where it is not there."""
        found: list[bytes] = []
        done = 0  # bytes of the list that have come: a long one comes in parts
        try:
            while not found or found[-1]:
                asked = b"%s\0%d\0" % (os.fsencode(path), done)
                part = self._ask(MessageType.DIRECTORY_PART, asked).partition(b"\0")[2]
                done += len(part)
                found += part.split(b"\0")[:-1]
        except XenStoreError as error:
            if error.errno != errno.ENOENT:
                raise
        return [os.fsdecode(name) for name in found if name]

    def watch(self, path: str, callback: WatchCallback) -> str:
        """Call `callback(path)` at once, and whenever something at or below `path` changes. The watch's token."""
        token = str(self._next_token)
        self._next_token += 1
        self._watches[token.encode()] = callback
        self._ask(MessageType.WATCH, os.fsencode(path) + b"\0" + token.encode() + b"\0")
        return token

    def unwatch(self, path: str, token: str) -> None:
        """Take back the watch that `watch` gave `token` for."""
        if self._watches.pop(token.encode(), None) is not None:
            self._ask(MessageType.UNWATCH, os.fsencode(path) + b"\0" + token.encode() + b"\0")

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Tell the store of a domain whose ring is at `gfn` and whose event channel is `port`."""
        numbers = (domid, gfn, port)
        self._ask(MessageType.INTRODUCE, b"".join(str(number).encode() + b"\0" for number in numbers))

    def release(self, domid: int) -> None:
        """Tell it that the domain is gone; one that it does not know is no error."""
        try:
            self._ask(MessageType.RELEASE, str(domid).encode() + b"\0")
        except XenStoreError as error:
            if error.errno != errno.ENOENT:
                raise

    def close(self) -> None:
        """Disconnect."""
        self._watches.clear()
        self._server.disconnect(self._connection)
