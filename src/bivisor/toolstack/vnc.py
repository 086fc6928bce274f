"""`--vnc`: a person's way to a screen, by any VNC client.

A server has a thread of its own, so what is encoded for a client keeps no device waiting, and looks at the screen only
while a client waits for a picture, at most 25 times a second, and not for more than a third of its time.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL.Image import Image

from bivisor.errors import HostError, UsageError
from bivisor.host import tcp
from bivisor.host.loop import EventLoop, Timer
from bivisor.vnc import Controls, Screen, Security, Session

FIRST_PORT = 5900
DISPLAY_MAX = 0xFFFF - FIRST_PORT
CLIENTS_MAX = 16
INTERVAL_S = 0.04
HANDSHAKE_S = 30.0
_PIECE = 1 << 16
_PASSWORD_MAX = 8
_LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class VncOption:
    """Where a server listens, and who may come: `port` is a TCP port, 0 for a free one; the files may be missing."""

    host: str
    port: int
    password_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def parse(cls, text: str) -> VncOption:
        """[HOST:]DISPLAY[,password-file=FILE][,tls-cert=FILE[,tls-key=FILE]]; display N is port 5900 + N, and "auto" a
        free port. UsageError."""
        where, *rest = text.split(",")
        words = dict(word.partition("=")[::2] for word in rest)
        if (
            len(words) < len(rest)
            or not words.keys() <= {"password-file", "tls-cert", "tls-key"}
            or "" in words.values()
        ):
            raise UsageError(f"vnc {text!r}: behind [HOST:]DISPLAY may stand password-file=, tls-cert= and tls-key=")
        host, colon, display = where.rpartition(":")
        host = host.strip("[]") if colon and host else "127.0.0.1"
        if display != "auto" and not (display.isascii() and display.isdigit() and int(display) <= DISPLAY_MAX):
            raise UsageError(f"vnc {text!r}: a display is a number from 0 to {DISPLAY_MAX}, or auto")
        if "tls-key" in words and "tls-cert" not in words:
            raise UsageError(f"vnc {text!r}: tls-key= without tls-cert=")
        if not host.startswith(_LOOPBACK) and "password-file" not in words:
            raise UsageError(f"vnc {text!r}: anybody could come from other hosts: add password-file=FILE")
        files = {name: Path(value) for name, value in words.items()}
        port = 0 if display == "auto" else FIRST_PORT + int(display)
        return cls(host, port, files.get("password-file"), files.get("tls-cert"), files.get("tls-key"))

    def security(self) -> Security:
        """What the files say. HostError where one cannot be read, UsageError where it says nothing of use."""
        password = None if self.password_file is None else _password(self.password_file)
        if self.certificate is None:
            return Security(password)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise HostError(f"vnc: no certificate with key in {self.certificate}: {error}") from None
        return Security(password, context)


def _password(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            password = file.readline(1024).rstrip(b"\r\n")
    except OSError as error:
        raise HostError(f"vnc: password file {path}: {error.strerror}") from None
    if not password:
        raise UsageError(f"vnc: password file {path}: its first line is empty")
    if len(password) > _PASSWORD_MAX:
        raise UsageError(f"vnc: password file {path}: a VNC password has at most {_PASSWORD_MAX} bytes")
    return password


def listen(option: VncOption) -> socket.socket:
    """The socket of a server. HostError."""
    return tcp.listen(option.host, option.port, CLIENTS_MAX)


class VncServer:
    """Serves `screen` and `controls` on `listener` from `start()` to `close()`, which closes that as well; without one
    only those whom `adopt` brings."""

    def __init__(
        self,
        screen: Screen,
        controls: Controls,
        listener: socket.socket | None = None,
        security: Security | None = None,
        *,
        name: str = "Bivisor",
    ) -> None:
        self.loop = EventLoop()
        self._glance = _Glance(screen)
        self._controls = controls
        self._listener = listener
        self._security = security or Security()
        self._name = name
        self._clients: set[_Client] = set()
        self._timer: Timer | None = None
        self._next = 0.0
        if listener is not None:
            listener.setblocking(False)

    @property
    def port(self) -> int:
        """The TCP port, 0 where it does not listen."""
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Let clients come."""
        if self._listener is not None:
            self.loop.watch(self._listener.fileno(), partial(self._accept, self._listener))
        self.loop.start()

    def adopt(self, end: socket.socket) -> None:
        """Serve the client at the other end of `end`, which is ours from now on, without asking for a password: whoever
        hands it over knows who that is. From any thread, between `start()` and `close()`."""
        self.loop.call_soon(lambda: self._take(end, Security()))

    def close(self) -> None:
        """Hang up. What clients hold pressed is let go."""
        self.loop.close()
        for client in list(self._clients):
            client.close()
        if self._listener is not None:
            self._listener.close()

    def __enter__(self) -> VncServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            end, _ = listener.accept()
        except OSError:
            return
        self._take(end, self._security)

    def _take(self, end: socket.socket, security: Security) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            end.close()
            return
        end.setblocking(False)
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(self._glance, self._controls, security, name=self._name)
        self._clients.add(_Client(self, end, session))

    def look_soon(self) -> None:
        """A client waits for a picture."""
        if self._timer is None:
            self._timer = self.loop.call_at(max(self.loop.now(), self._next), self._tick)

    def _tick(self) -> None:
        self._timer = None
        began = self.loop.now()
        self._glance.forget()
        for client in list(self._clients):
            client.tick()
        took = self.loop.now() - began
        self._next = began + max(INTERVAL_S, 3 * took)  # the guest's processors may want this one
        if any(client.wants_picture for client in self._clients):
            self.look_soon()

    def gone(self, client: _Client) -> None:
        """A client has hung up."""
        self._clients.discard(client)


class _Glance:
    """One look for all clients of a turn."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._picture: Image | None = None

    def look(self) -> Image:
        if self._picture is None:
            self._picture = self._screen.look()
        return self._picture

    def forget(self) -> None:
        self._picture = None


class _Client:
    """One client's socket."""

    def __init__(self, server: VncServer, end: socket.socket, session: Session) -> None:
        self._server, self._end, self._session = server, end, session
        self._unsent = b""
        self._is_closed = False
        loop = server.loop
        self._deadline = loop.call_at(loop.now() + HANDSHAKE_S, self._late)
        self._flush()

    def _late(self) -> None:
        if not self._session.is_open:
            self.close()

    @property
    def wants_picture(self) -> bool:
        """Whether it waits for one, and has taken what came before."""
        return self._session.is_waiting and not self._unsent

    def tick(self) -> None:
        """Look at the screen for it."""
        if self.wants_picture:
            self._session.tick()
            self._flush()

    def _readable(self) -> None:
        try:
            data = self._end.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._session.feed(data)
        self._flush()

    def _flush(self) -> None:
        """Send what fits. Who does not take its pictures is not read from either, and gets no new ones."""
        self._unsent += self._session.take()
        try:
            if self._unsent:
                self._unsent = self._unsent[self._end.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._session.ended and not self._unsent:
            self.close()
            return
        if self._unsent:
            self._server.loop.watch(self._end.fileno(), None, self._flush)
            return
        self._server.loop.watch(self._end.fileno(), self._readable)
        if self.wants_picture:
            self._server.look_soon()

    def close(self) -> None:
        """Hang up."""
        if self._is_closed:
            return
        self._is_closed = True
        self._deadline.cancel()
        self._server.loop.unwatch(self._end.fileno())
        self._server.gone(self)
        self._session.close()
        self._end.close()
