"""A host that has nothing but two domains and an event channel on which thousands of events a second pass."""

from __future__ import annotations

import threading
import time
from typing import Any

from bivisor.events import Events, EventSend, Kind
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.server import Peer, RpcServer
from bivisor.toolstack.hostd.tail import offer_tail

_TURN_S = 0.01


class Storm:
    """Serves the host's methods that the page needs, in `place`, from now until `close`."""

    def __init__(self, place: Place, rate: int = 10_000) -> None:
        self._turn = int(rate * _TURN_S)
        self._events = Events()
        self._ending = threading.Event()
        place.folder.mkdir(mode=0o700)
        self._server = RpcServer(place.socket, {"picture": self._look, "events": self._tail})
        self._thread = threading.Thread(target=self._blow, daemon=True)
        self._thread.start()

    def _look(self, peer: Peer) -> dict[str, Any]:
        del peer
        vcpu = {"vcpu": 0, "online": True, "state": "-b-"}
        domain = {"state": "-b----", "memory_kib": 1 << 18, "cpu_time_s": 1.0, "type": "pvh", "screen": False}
        channel = {"id": "channel-0.1-1.1", "kind": "interdomain", "domid": 0, "port": 1, "vcpu": 0, "virq": None}
        return {
            "engine": "none",
            "domains": [domain | {"domid": n, "name": f"domain {n}", "vcpus": [vcpu | {"domid": n}]} for n in (0, 1)],
            "channels": [channel | {"remote": 1, "remote_port": 1}],
            "grants": [],
            "rings": [],
            "watches": [],
        }

    def _tail(self, peer: Peer, **wanted: Any) -> None:
        offer_tail(self._events, peer, **wanted)

    def _blow(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            if self._events.wants(Kind.EVENT):
                for _ in range(self._turn):
                    self._events.tell(EventSend(time.monotonic_ns(), 0, -1, 0, "send", 1, 1, 1))
            due += _TURN_S
            time.sleep(max(0.0, due - time.monotonic()))

    def close(self) -> None:
        """Let nobody in any more."""
        self._ending.set()
        self._thread.join()
        self._server.close()
