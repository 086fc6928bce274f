"""The newest events for somebody who looks on: at most so many a turn, and how many there were of each.

This is for eyes, not for records: what a person could not read is counted and left out, so that ten thousand events a
second cost no more to carry than a few hundred. `trace` carries them all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from bivisor.errors import UsageError
from bivisor.events import Event, Events, Kind
from bivisor.toolstack.hostd import messages
from bivisor.toolstack.hostd.server import Peer

TURN_S = 0.5
MOST_A_TURN = 40
KEPT = 1 << 16
PIECE = 250


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
    """Counts events and keeps the last of them. `put` is all that is done in the thread in which an event happens, and
    it runs no Python: code that comes between a guest and its disk is slower there than anywhere, for nothing of it is
    in the processor's caches. The rest is done once a turn.

    Of an event all the fields of one of `match` have to be equal, where there are some. Of more than `KEPT` events in a
    turn, the oldest are not counted.
    """

    def __init__(self, match: Sequence[Mapping[str, Any]] = ()) -> None:
        self._match = tuple(tuple(wanted.items()) for wanted in match)
        self._happened: deque[Event] = deque(maxlen=KEPT)
        self.put: Callable[[Event], None] = self._happened.append
        """It happened."""

    def turn(self) -> dict[str, Any] | None:
        """What came since the last turn: `counts` by kind and name, and the newest `events`; None for nothing."""
        counts: Counter[tuple[Kind, str]] = Counter()
        newest: deque[Event] = deque(maxlen=MOST_A_TURN)
        happened = self._happened
        left = len(happened)
        while left:
            piece = [happened.popleft() for _ in range(min(left, PIECE))]
            left -= len(piece)
            wanted = [event for event in piece if self._is_wanted(event)] if self._match else piece
            counts.update((event.kind, event.name) for event in wanted)
            newest.extend(wanted)
            time.sleep(0)  # a guest may want the interpreter
        if not counts:
            return None
        named = {f"{kind.value}.{name}": count for (kind, name), count in counts.items()}
        return {"counts": named, "events": [event.to_dict() for event in newest]}

    def _is_wanted(self, event: Event) -> bool:
        return any(all(getattr(event, name, None) == value for name, value in wanted) for wanted in self._match)


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
