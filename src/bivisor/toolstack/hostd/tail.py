"""The newest events for somebody who looks on: at most so many a turn, and how many there were of each.

This is for eyes, not for records: what a person could not read is counted and left out, so that ten thousand events a
second cost no more to carry than a few hundred. `trace` carries them all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bivisor.errors import UsageError
from bivisor.events import Event, Events, Kind, Subscription
from bivisor.toolstack.hostd import messages
from bivisor.toolstack.hostd.server import Peer

TURN_S = 0.1
MOST_A_TURN = 40
_LIMIT = 8192


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
        self._match = match
        self._subscription = events.subscribe(kinds, domains=domains, names=names, limit=_LIMIT)
        self._thread = threading.Thread(target=self._work, name="bivisor-tail", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _work(self) -> None:
        end = self._end
        end.settimeout(TURN_S)
        try:
            with self._subscription as subscription:
                while self._is_listened_to():
                    message = turn(subscription, self._match)
                    if message is not None:
                        end.settimeout(None)
                        end.sendall(messages.encode(message))
                        end.settimeout(TURN_S)
        except OSError:
            pass
        finally:
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


def turn(subscription: Subscription, match: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """What one turn brought: `counts` by kind and name, the newest `events`, and how many the ring `dropped` so far.

    Of an event all the fields of one of `match` have to be equal, where there are some. None where there was nothing.
    """
    found = subscription.take()
    if match:
        found = [event for event in found if any(_is_so(event, wanted) for wanted in match)]
    if not found:
        return None
    counts = Counter(f"{event.kind.value}.{event.name}" for event in found)
    newest = [event.to_dict() for event in found[-MOST_A_TURN:]]
    return {"counts": counts, "events": newest, "dropped": subscription.dropped}


def _is_so(event: Event, wanted: Mapping[str, Any]) -> bool:
    return all(getattr(event, name, None) == value for name, value in wanted.items())
