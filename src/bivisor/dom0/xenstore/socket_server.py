"""The store's Unix socket, through which Dom0's tools reach it (xenstored's /run/xenstored/socket).

Only the owner may open it: whoever can is Dom0.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Final

from bivisor.dom0.xenstore import wire
from bivisor.dom0.xenstore.errors import ProtocolError
from bivisor.dom0.xenstore.server import Server
from bivisor.errors import HostError
from bivisor.host.loop import Loop

_CHUNK: Final = 1 << 16
_INPUT: Final = 2 * wire.MESSAGE_MAX


class SocketServer:
    """Serves `server` at the socket `path` from `loop`. HostError where the socket cannot be made.

    A socket that nobody listens at any more is replaced.
    """

    def __init__(self, server: Server, loop: Loop, path: str | Path) -> None:
        self._server = server
        self._loop = loop
        self._path = Path(path)
        self._clients: set[_Client] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listen()
        except OSError as error:
            self._listener.close()
            raise HostError(f"xenstore socket {path}: {error.strerror or error}") from None
        loop.watch(self._listener.fileno(), self._accept)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def close(self) -> None:
        """Disconnect everybody and remove the socket."""
        if self._listener.fileno() < 0:
            return
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients):
            client.close()
        self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        name = os.fspath(self._path)
        if self._path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(name) == 0:
                    raise OSError(errno.EADDRINUSE, "somebody listens there already")
            self._path.unlink()
        # bind() gives the file the mode of the socket, so that nobody else can connect even for a moment.
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(name)
        self._listener.listen(64)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            end, _ = self._listener.accept()
            end.setblocking(False)
            self._clients.add(_Client(self._server, self._loop, end, self._clients))


class _Client:
    """One connected tool."""

    def __init__(self, server: Server, loop: Loop, end: socket.socket, all_: set[_Client]) -> None:
        self._server = server
        self._loop = loop
        self._end = end
        self._fd = end.fileno()
        self._all = all_
        self._input = bytearray()
        self._connection = server.connect()
        self._connection.wake = self._woken
        self._has_turn = False
        self._is_due = False
        loop.watch(self._fd, self._readable)

    def close(self) -> None:
        """Disconnect."""
        if self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        self._fd = -1
        self._end.close()
        self._all.discard(self)
        self._server.disconnect(self._connection)

    def _woken(self) -> None:
        """Another client's request made an event for this one."""
        if not self._has_turn and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._serve)

    def _readable(self) -> None:
        try:
            data = self._end.recv(_INPUT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._input += data
            self._serve()
        else:
            self.close()

    def _writable(self) -> None:
        self._loop.watch(self._fd, self._readable)
        self._serve()

    def _serve(self) -> None:
        """Carry out what came and send what there is, until one of them waits for the tool."""
        self._is_due = False
        if self._fd < 0:
            return
        self._has_turn = True
        connection = self._connection
        try:
            while self._carry_out() or connection.has_output:
                while connection.has_output:
                    connection.sent(self._end.send(connection.peek(_CHUNK)))
                if not self._input:
                    break
        except BlockingIOError:
            # While the tool does not take what there is for it, no more is read from it.
            if connection.overflowed:
                self.close()
            else:
                self._loop.watch(self._fd, None, self._writable)
        except (ProtocolError, OSError):
            self.close()
        finally:
            self._has_turn = False

    def _carry_out(self) -> bool:
        """Carry out the complete messages that came, as long as the tool takes the replies; whether there were any."""
        held = self._input
        at = 0
        connection, receive = self._connection, self._server.receive
        while connection.may_ask and (message := wire.decode(held, at)) is not None:
            at += wire.HEADER_SIZE + len(message.payload)
            receive(connection, message)
        del held[:at]
        return at > 0
