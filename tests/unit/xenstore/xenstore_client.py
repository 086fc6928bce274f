"""A client of a store without I/O: requests go straight to the server, and replies and events come back decoded."""

from __future__ import annotations

from bivisor.abi.xen.xs_wire import MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.connection import Connection
from bivisor.dom0.xenstore.quota import QuotaHit, Quotas
from bivisor.dom0.xenstore.server import Server


class Refused(Exception):
    """An ERROR reply; its text is the name of the error."""


class Transport:
    """A domain's transport that carries nothing."""

    def __init__(self) -> None:
        self.resets = 0
        self.is_closed = False

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.is_closed = True


class Hypervisor:
    """Domains that exist because the test says so."""

    def __init__(self, *domids: int) -> None:
        self.domids = {0, *domids}
        self.transports: dict[int, Transport] = {}
        self.attached: list[tuple[int, int, int]] = []

    def exists(self, domid: int) -> bool:
        return domid in self.domids

    def attach(self, server: Server, connection: Connection, gfn: int, port: int) -> Transport:
        domid = connection.domid
        self.attached.append((domid, gfn, port))
        self.transports[domid] = Transport()
        return self.transports[domid]


class Client:
    """One client of `server`: domain `domid`, which is introduced, or a tool of Dom0."""

    def __init__(self, server: Server, domid: int = 0) -> None:
        self.server = server
        if domid:
            if domid not in server.domains:
                server.introduce(domid, 1, 1)
            self.connection = server.domain(domid).connection
        else:
            self.connection = server.connect()
        self.waiting: list[tuple[bytes, bytes]] = []
        self._req_id = 0

    def messages(self) -> list[wire.Message]:
        """Everything that waits for the client."""
        data = bytearray()
        while self.connection.has_output:
            piece = bytes(self.connection.peek(1 << 20))
            self.connection.sent(len(piece))
            data += piece
        found = []
        at = 0
        while (message := wire.decode(data, at)) is not None:
            found.append(message)
            at += wire.HEADER_SIZE + len(message.payload)
        assert at == len(data)
        return found

    def ask(self, type_: int, payload: bytes = b"", tx: int = 0) -> bytes:
        """The payload of the reply. Events that come with it are kept for `events`."""
        self._req_id += 1
        self.server.receive(self.connection, wire.Message(type_, self._req_id, tx, payload))
        replies = []
        for message in self.messages():
            if message.type == MessageType.WATCH_EVENT:
                self._keep(message)
            else:
                replies.append(message)
        [reply] = replies
        assert (reply.req_id, reply.tx_id) == (self._req_id, tx)
        if reply.type == MessageType.ERROR:
            raise Refused(reply.payload.rstrip(b"\0").decode())
        assert reply.type == type_
        return reply.payload

    def _keep(self, message: wire.Message) -> None:
        assert (message.req_id, message.tx_id) == (0, 0)
        path, token, rest = message.payload.split(b"\0")
        assert rest == b""
        self.waiting.append((path, token))

    def events(self) -> list[tuple[bytes, bytes]]:
        """The (path, token) of each event since the last call."""
        for message in self.messages():
            self._keep(message)
        found, self.waiting = self.waiting, []
        return found

    def read(self, path: bytes, tx: int = 0) -> bytes:
        return self.ask(MessageType.READ, path + b"\0", tx)

    def write(self, path: bytes, value: bytes, tx: int = 0) -> None:
        assert self.ask(MessageType.WRITE, path + b"\0" + value, tx) == b"OK\0"

    def mkdir(self, path: bytes, tx: int = 0) -> None:
        assert self.ask(MessageType.MKDIR, path + b"\0", tx) == b"OK\0"

    def rm(self, path: bytes, tx: int = 0) -> None:
        assert self.ask(MessageType.RM, path + b"\0", tx) == b"OK\0"

    def ls(self, path: bytes, tx: int = 0) -> list[bytes]:
        return self.ask(MessageType.DIRECTORY, path + b"\0", tx).split(b"\0")[:-1]

    def perms(self, path: bytes, tx: int = 0) -> list[bytes]:
        return self.ask(MessageType.GET_PERMS, path + b"\0", tx).split(b"\0")[:-1]

    def chmod(self, path: bytes, *entries: bytes, tx: int = 0) -> None:
        payload = b"\0".join((path, *entries)) + b"\0"
        assert self.ask(MessageType.SET_PERMS, payload, tx) == b"OK\0"

    def watch(self, path: bytes, token: bytes = b"t", *more: bytes) -> None:
        assert self.ask(MessageType.WATCH, b"\0".join((path, token, *more)) + b"\0") == b"OK\0"

    def unwatch(self, path: bytes, token: bytes = b"t") -> None:
        assert self.ask(MessageType.UNWATCH, b"%s\0%s\0" % (path, token)) == b"OK\0"

    def begin(self) -> int:
        return int(self.ask(MessageType.TRANSACTION_START, b"\0").rstrip(b"\0"))

    def commit(self, tx: int) -> None:
        assert self.ask(MessageType.TRANSACTION_END, b"T\0", tx) == b"OK\0"

    def abort(self, tx: int) -> None:
        assert self.ask(MessageType.TRANSACTION_END, b"F\0", tx) == b"OK\0"

    def control(self, *words: bytes) -> bytes:
        return self.ask(MessageType.CONTROL, b"".join(word + b"\0" for word in words))


class World:
    """A store with a tool, and domains as asked for; `hits` are the records of quotas."""

    def __init__(self, *domids: int, quotas: Quotas | None = None) -> None:
        self.hits: list[QuotaHit] = []
        self.hypervisor = Hypervisor(*range(1, 20))
        self.server = Server(self.hypervisor, quotas=quotas, on_quota=self.hits.append)
        self.tool = Client(self.server)
        self._domains = {}
        for domid in domids:
            home = b"/local/domain/%d" % domid
            self.tool.mkdir(home)
            self.tool.chmod(home, b"n%d" % domid)
            self._domains[domid] = Client(self.server, domid)

    def __getitem__(self, domid: int) -> Client:
        return self._domains[domid]

    def check(self) -> None:
        """What quotas go by is what is there."""
        assert self.tool.control(b"check") == b"OK\0"
