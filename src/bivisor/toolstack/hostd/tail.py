"""The newest events for somebody who looks on: at most so many a turn, and how many there were of each.

This is for eyes, not for records: what a person could not read is counted and left out, so that ten thousand events a
second cost no more to carry than a few hundred. `trace` carries them all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bivisor.errors import UsageError
from bivisor.events import Event, Events, Kind
from bivisor.toolstack.hostd import messages
from bivisor.toolstack.hostd.server import Peer

TURN_S = 0.5
MOST_A_TURN = 40


def kinds_of(words: Iterable[str]) -> list[Kind]:
    """The kinds of these names; all where there are none. UsageError."""
    try:
        return [Kind(word) for word in words] or list(Kind)
    except ValueError as error:
        names = ", ".join(kind.value for kind in Kind)
        raise UsageError(f"{error}: the kinds of events are {names}") from None


def offer_tail(
    events: Events,
    peer: Peer,
    *,
    kinds: Iterable[str] = (),
    domains: Collection[int] | None = None,
    names: Collection[str] | None = None,
    match: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Have the connection of `peer` carry the newest events of these `kinds`. UsageError for a kind that is none."""
    wanted = kinds_of(kinds)

    def take(end: socket.socket, _: bytes) -> None:
        Tail(events, end, kinds=wanted, domains=domains, names=names, match=match).start()

    peer.take = take


class Newest:
    """Counts events as they happen and keeps the last of them: little for each, in the thread in which it happens, and
    nothing that would have to be done for all of them later while the guest waits for the interpreter.

    Of an event all the fields of one of `match` have to be equal, where there are some.
    """

    def __init__(self, match: Sequence[Mapping[str, Any]] = ()) -> None:
        self._match = tuple(tuple(wanted.items()) for wanted in match)
        self._lock = threading.Lock()
        self._counts: dict[tuple[Kind, str], int] = {}
        self._kept: deque[Event] = deque(maxlen=MOST_A_TURN)

    def put(self, event: Event) -> None:
        """It happened."""
        if self._match and not any(
            all(getattr(event, name, None) == value for name, value in wanted) for wanted in self._match
        ):
            return
        key = (event.kind, event.name)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._kept.append(event)

    def turn(self) -> dict[str, Any] | None:
        """What came since the last turn: `counts` by kind and name, and the newest `events`; None for nothing."""
        with self._lock:
            counts, self._counts = self._counts, {}
            kept = list(self._kept)
            self._kept.clear()
        if not counts:
            return None
        named = {f"{kind.value}.{name}": count for (kind, name), count in counts.items()}
        return {"counts": named, "events": [event.to_dict() for event in kept]}


def _is_so(event: Event, wanted: tuple[tuple[str, Any], ...]) -> bool:
    return all(getattr(event, name, None) == value for name, value in wanted)


class Tail:
    """Sends a message each turn in which something happened, from `start()` until the other end hangs up."""

    def __init__(
        self,
        events: Events,
        end: socket.socket,
        *,
        kinds: Sequence[Kind],
        domains: Collection[int] | None = None,
        names: Collection[str] | None = None,
        match: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._end = end
        self._newest = Newest(match)
        self._listener = events.listen(self._newest.put, kinds, domains=domains, names=names)
        self._thread = threading.Thread(target=self._work, name="bivisor-tail", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _work(self) -> None:
        end = self._end
        end.settimeout(TURN_S)
        try:
            while self._is_listened_to():
                message = self._newest.turn()
                if message is not None:
                    end.settimeout(None)
                    end.sendall(messages.encode(message))
                    end.settimeout(TURN_S)
        except OSError:
            pass
        finally:
            self._listener.close()
            end.close()

    def _is_listened_to(self) -> bool:
        """Waits for a turn; False once the other end has hung up. What it says is no matter."""
        began = time.monotonic()
        try:
            if not self._end.recv(4096):
                return False
        except TimeoutError:
            return True
        time.sleep(max(0.0, TURN_S - (time.monotonic() - began)))
        return True
