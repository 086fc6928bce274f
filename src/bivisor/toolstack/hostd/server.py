"""The host's end of the connections: a thread for each, which carries out one request after the other."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bivisor.errors import BivisorError, HostError, UsageError
from bivisor.host import local_socket
from bivisor.toolstack.hostd import messages
from bivisor.xen.errors import XenError

_log = logging.getLogger(__name__)
CONNECTIONS_MAX = 256
PATIENCE_S = 5.0


class Peer:
    """Who asks. A method that waits looks at `is_gone`; one that takes the connection over sets `take`."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.take: Callable[[socket.socket, bytes], None] | None = None

    def is_gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        poll = select.poll()
        poll.register(self._end, select.POLLRDHUP)
        return bool(poll.poll(0))


Method = Callable[..., Any]
"""method(peer, **params); UsageError and its kin go to who asked, anything else is the host's own fault."""


class RpcServer:
    """Serves `methods` at the Unix socket `path`, to processes of this user alone. HostError where it cannot."""

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        self._path = path
        self._methods = methods
        self._ends: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._listener = local_socket.listen(path)
        self._thread = threading.Thread(target=self._accept, name="bivisor-rpc", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more, answer what has been asked, and remove the socket."""
        self._closing = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        with self._lock:
            left = dict(self._ends)
            for end in left:
                try:
                    end.shutdown(socket.SHUT_RD)
                except OSError:
                    pass
        for thread in left.values():
            thread.join(PATIENCE_S)

    def _accept(self) -> None:
        while not self._closing:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                welcome = local_socket.peer_uid(end) == local_socket.own_uid() and len(self._ends) < CONNECTIONS_MAX
                if welcome:
                    thread = threading.Thread(target=self._serve, args=(end,), name="bivisor-rpc-client", daemon=True)
                    self._ends[end] = thread
                    thread.start()
            if not welcome:
                end.close()

    def _serve(self, end: socket.socket) -> None:
        peer, reader = Peer(end), messages.LineReader(end)
        try:
            while peer.take is None and (line := reader.line()) is not None:
                end.sendall(messages.encode(self._answer(peer, line)))
        except HostError as error:
            _log.warning("a client: %s", error)
        except OSError:
            pass
        with self._lock:
            self._ends.pop(end, None)
        if peer.take is None:
            end.close()
        else:
            peer.take(end, reader.rest)

    def _answer(self, peer: Peer, line: bytes) -> dict[str, Any]:
        message = messages.decode(line)
        name, params = message.get("method"), message.get("params", {})
        method = self._methods.get(name) if isinstance(name, str) else None
        try:
            if method is None or not isinstance(params, dict):
                raise UsageError(f"the host does not know {str(name)[:40]!r}: is it of the same version?")
            return {"result": method(peer, **params)}
        except BivisorError as error:
            return messages.error_message(error)
        except XenError as error:
            return messages.error_message(BivisorError(f"{name}: the hypervisor refused: {error}"))
        except Exception as error:
            _log.exception("%s failed", name)
            what = f"internal error in the host: {type(error).__name__}: {error} (its log has more)"
            return messages.error_message(BivisorError(what))
