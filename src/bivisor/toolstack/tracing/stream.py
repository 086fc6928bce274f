"""The end of a live trace that is in the machine's or host's own process: events as lines on a connection."""

from __future__ import annotations

import json
import select
import socket
import threading
from functools import partial
from typing import Any

from bivisor.events import Events, Subscription
from bivisor.toolstack.hostd.server import Peer
from bivisor.toolstack.tracing.wanted import params_of

_GLANCE_S = 0.05
_PATIENCE_S = 5.0
_MOST = 2000


class TraceStreams:
    """Serves the request `trace` for `events`: after its answer the connection carries an event a line, as JSON, and a
    line {"dropped": n} whenever more have been lost. Who does not read loses events; nobody waits for it."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._closing = threading.Event()
        self._threads: set[threading.Thread] = set()

    def trace(self, peer: Peer, **said: Any) -> dict[str, Any]:
        """Begin; the answer has the names of the domains. UsageError."""
        subscription = params_of(said).subscribe(self._events)
        peer.take = partial(self._serve, subscription)
        return {"names": {str(number): name for number, name in self._events.names.items()}}

    def _serve(self, subscription: Subscription, end: socket.socket, _: bytes) -> None:
        """In the connection's own thread, until either end goes."""
        thread = threading.current_thread()
        self._threads.add(thread)
        try:
            with end, subscription:
                end.settimeout(_PATIENCE_S)
                self._send(subscription, end)
        except OSError:
            pass  # whoever looked has gone
        finally:
            self._threads.discard(thread)

    def _send(self, subscription: Subscription, end: socket.socket) -> None:
        gone = select.poll()
        gone.register(end, select.POLLRDHUP)
        dropped = 0
        is_last = False
        while not is_last:
            is_last = self._closing.is_set()
            subscription.wait_until_some(0 if is_last else _GLANCE_S)
            while some := subscription.take(_MOST):
                lines = [json.dumps(event.to_dict()) for event in some]
                if subscription.dropped > dropped:
                    dropped = subscription.dropped
                    lines.append(json.dumps({"dropped": dropped}))
                end.sendall(("\n".join(lines) + "\n").encode())
            if gone.poll(0):
                return

    def close(self) -> None:
        """What has happened is still sent, and then the connections end."""
        self._closing.set()
        for thread in tuple(self._threads):
            thread.join(_PATIENCE_S)
