"""What XenStore costs: read, write and a read-modify-write transaction, in microseconds each.

Without `--socket`, the store is this one: once in this process, without I/O, and once through its Unix socket. With
`--socket PATH` it is the one that serves PATH, with the same client: so C xenstored is measured. Rounds alternate, and
each figure is the best of them. Usage:

    python bench/xenstore.py [--rounds 7] [--requests 500] [--socket PATH] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bivisor.abi.xen.xs_wire import SOCKMSG, MessageType
from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.server import Server
from bivisor.dom0.xenstore.socket_server import SocketServer
from bivisor.dom0.xenstore.wire import Message
from bivisor.host.loop import EventLoop

HOME = b"/bench/domain/7/device/vif/0/"
NODES = 20

Ask = Callable[[int, bytes, int], bytes]
"""(type, payload, tx_id) → the payload of the reply."""


def in_process(server: Server) -> Ask:
    """A client without I/O."""
    connection = server.connect()

    def ask(type_: int, payload: bytes, tx: int) -> bytes:
        server.receive(connection, Message(type_, 0, tx, payload))
        reply = bytes(connection.peek(8192))
        connection.sent(len(reply))
        return checked(type_, reply[:16], reply[16:])

    return ask


@contextmanager
def through(path: str) -> Iterator[Ask]:
    """A client of the Unix socket `path`, which sends header and payload at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.connect(path)

        def ask(type_: int, payload: bytes, tx: int) -> bytes:
            end.sendall(SOCKMSG.pack(type_, 0, tx, len(payload)) + payload)
            reply = end.recv(8192)
            while needed(reply) > len(reply):
                reply += end.recv(8192)
            return checked(type_, reply[:16], reply[16:])

        yield ask


def needed(reply: bytes) -> int:
    """How long the message is that begins so."""
    return wire.HEADER_SIZE + (SOCKMSG.unpack(reply[:16])[3] if len(reply) >= 16 else 0)


def checked(type_: int, header: bytes, payload: bytes) -> bytes:
    """The payload of a reply that is what was asked for."""
    if SOCKMSG.unpack(header)[0] != type_:
        raise SystemExit(f"xenstore: {MessageType(type_).name} was answered by {payload!r}")
    return payload


def read(ask: Ask, i: int) -> None:
    """READ of a node five levels down."""
    ask(MessageType.READ, HOME + b"node%d\0" % (i % NODES), 0)


def write(ask: Ask, i: int) -> None:
    """WRITE of the same."""
    ask(MessageType.WRITE, HOME + b"node%d\0%d" % (i % NODES, i), 0)


def modify(ask: Ask, i: int) -> None:
    """A transaction that reads a number and writes the next."""
    path = HOME + b"node%d\0" % (i % NODES)
    tx = int(ask(MessageType.TRANSACTION_START, b"\0", 0)[:-1])
    value = int(ask(MessageType.READ, path, tx))
    ask(MessageType.WRITE, path + b"%d" % (value + 1), tx)
    ask(MessageType.TRANSACTION_END, b"T\0", tx)


WORK = {"read": read, "write": write, "transaction": modify}


def measure(clients: dict[str, Ask], rounds: int, requests: int) -> dict[str, dict[str, float]]:
    """Microseconds by client and kind of work."""
    best = {name: dict.fromkeys(WORK, float("inf")) for name in clients}
    for ask in clients.values():
        for i in range(NODES):
            write(ask, i)
    for _ in range(rounds):
        for what, work in WORK.items():
            for name, ask in clients.items():
                start = time.perf_counter()
                for i in range(requests):
                    work(ask, i)
                each = (time.perf_counter() - start) / requests * 1e6
                best[name][what] = round(min(best[name][what], each), 2)
    return best


@contextmanager
def ours() -> Iterator[dict[str, Ask]]:
    """The clients of this store."""

    def fail(error: BaseException) -> None:
        print(f"xenstore: {error!r}")
        os._exit(1)

    with tempfile.TemporaryDirectory() as folder:
        loop = EventLoop(fail)
        sockets = SocketServer(Server(), loop, Path(folder) / "socket")
        pid = os.fork()
        if not pid:
            loop.start()
            time.sleep(3600)
        try:
            with through(f"{folder}/socket") as ask:
                yield {"in process": in_process(Server()), "socket": ask}
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            sockets.close()
            loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What XenStore costs.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--socket", metavar="PATH")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.socket:
        with through(options.socket) as ask:
            result = measure({options.socket: ask}, options.rounds, options.requests)
    else:
        with ours() as clients:
            result = measure(clients, options.rounds, options.requests)
    if options.json:
        print(json.dumps(result))
        return
    for name, times in result.items():
        print(f"{name:12}", "  ".join(f"{what} {each:7.1f} µs" for what, each in times.items()))


if __name__ == "__main__":
    main()
