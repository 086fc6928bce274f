"""Serves one gdb after the other on a listening socket, in a thread of its own."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from collections.abc import Callable

from bivisor.debug.rsp import ACK, BREAK, NAK, Framing, frame
from bivisor.debug.stub import Detached, Killed, Stub
from bivisor.debug.target import Stop, Target, TargetError

_CHUNK = 65536


class Server:
    """gdb's way to `target` through `listener`, which it closes. `kill()` is called when gdb wants the guest to end."""

    def __init__(self, target: Target, listener: socket.socket, kill: Callable[[], None]) -> None:
        self._target = target
        self._listener = listener
        self._kill = kill
        self._stops: deque[Stop] = deque()
        self._wake, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._closing = False
        self._status: int | None = None
        target.on_stop = self._stopped
        self._thread = threading.Thread(target=self._serve, name="bivisor-gdb", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Begin to take connections."""
        self._thread.start()

    def ended(self, status: int) -> None:
        """The guest has ended; gdb is told so."""
        self._status = status
        self._ring()

    def close(self) -> None:
        """Let gdb go and stop listening."""
        self._closing = True
        self._ring()
        if self._thread.ident is not None:
            self._thread.join()
        for one in (self._listener, self._wake, self._bell):
            one.close()

    def _stopped(self, stop: Stop) -> None:
        self._stops.append(stop)
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.send(b"!")

    def _serve(self) -> None:
        while not self._closing:
            ready, _, _ = select.select([self._listener, self._wake], [], [])
            if self._wake in ready:
                self._wake.recv(_CHUNK)
            if self._listener in ready:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        stub, framing = Stub(self._target), Framing()
        self._stops.clear()
        self._target.attach()
        try:
            self._target.hold()
            while self._round(connection, stub, framing):
                pass
        except Killed:
            self._kill()
        except TargetError:
            pass
        finally:
            self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(TargetError):
            self._target.hold()
        self._target.detach()

    def _round(self, connection: socket.socket, stub: Stub, framing: Framing) -> bool:
        """Wait for one thing to happen and see to it. False when this conversation is over."""
        ready, _, _ = select.select([connection, self._wake], [], [])
        if self._wake in ready:
            self._wake.recv(_CHUNK)
            if self._status is not None or self._closing:
                connection.sendall(frame(b"W%02x" % (0 if self._status is None else self._status & 0xFF)))
                return False
            while self._stops:
                answer = stub.stopped(self._stops.popleft())
                connection.sendall(frame(answer))
        if connection in ready:
            data = connection.recv(_CHUNK)
            if not data:
                return False
            for packet in framing.feed(data):
                if not self._answer(connection, stub, framing, packet):
                    return False
        return True

    def _answer(self, connection: socket.socket, stub: Stub, framing: Framing, packet: bytes | None) -> bool:
        if packet is None:
            connection.sendall(NAK)
            return True
        if packet == BREAK:
            if stub.running:
                told = stub.interrupted()
                if self._stops:  # a processor has stopped meanwhile
                    told = stub.stopped(self._stops.popleft())
                connection.sendall(frame(told))
            return True
        if framing.acks:
            connection.sendall(ACK)
        try:
            answer = stub.packet(packet)
        except Detached:
            connection.sendall(frame(b"OK"))
            return False
        except Killed:
            if packet.startswith(b"v"):  # the plain `k` has no answer
                connection.sendall(frame(b"OK"))
            raise
        if answer is not None:
            connection.sendall(frame(answer))
        if stub.no_acks:
            framing.acks = False
        return True
