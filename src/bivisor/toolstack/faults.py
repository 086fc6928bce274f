"""Faults, put where things happen (docs/events.md): what is dropped, delayed, refused, answered falsely or corrupted.

`inject(events, kind, …)` works on the stream of a machine or host, so it reaches exits, hypercalls, event channels,
grants, XenStore requests, ring requests and devices alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType

from bivisor.errors import UsageError
from bivisor.events import Answer, Delay, Deny, Drop, Event, Events, Kind, Verdict


@dataclass(frozen=True, slots=True)
class Corrupt:
    """It happens with something else in it: `change(event)` writes other values into the event before it happens (or,
    with `after`, into what came of it: `result`, `reply`, `value`)."""

    change: Callable[[Event], object]
    after: bool = False


Fault = Verdict | Corrupt


class Injection:
    """A fault that waits for its events. `seen` counts those that it could have met, `done` those that it did. As a
    context manager it is taken out at the end."""

    def __init__(
        self,
        events: Events,
        kind: Kind,
        fault: Fault,
        *,
        names: Collection[str] | None,
        domains: Collection[int] | None,
        skip: int,
        times: int | None,
        chance: float,
        seed: int,
        when: Callable[[Event], bool] | None,
    ) -> None:
        self.seen = self.done = 0
        self._fault = fault
        self._skip, self._times, self._chance = skip, times, chance
        self._random = random.Random(seed)
        self._when = when
        late = isinstance(fault, Corrupt) and fault.after
        before, after = (None, self._after) if late else (self._before, None)
        self._hook = events.intercept(kind, before, after, names=names, domains=domains)

    def _is_due(self, event: Event) -> bool:
        if self._when is not None and not self._when(event):
            return False
        self.seen += 1
        if self.seen <= self._skip or (self._times is not None and self.done >= self._times):
            return False
        if self._chance < 1 and self._random.random() >= self._chance:
            return False
        self.done += 1
        return True

    def _before(self, event: Event) -> Verdict | None:
        if not self._is_due(event):
            return None
        if isinstance(self._fault, Corrupt):
            self._fault.change(event)
            return None
        return self._fault

    def _after(self, event: Event) -> None:
        if self._is_due(event):
            assert isinstance(self._fault, Corrupt)
            self._fault.change(event)

    def remove(self) -> None:
        """Take it out, and raise what `when` or `change` raised."""
        self._hook.close()

    def __enter__(self) -> Injection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def inject(
    events: Events,
    kind: Kind | str,
    fault: Fault,
    *,
    names: Collection[str] | str | None = None,
    domains: Collection[int] | None = None,
    skip: int = 0,
    times: int | None = None,
    chance: float = 1.0,
    seed: int = 0,
    when: Callable[[Event], bool] | None = None,
) -> Injection:
    """Have `fault` befall what happens of this `kind` ("hypercall", "grant", "xenstore", …; see `Kind`).

    Only what one of `names` matches (shell wildcards; `Event.labels`) and `when(event)` says yes to counts. The first
    `skip` of these are spared, at most `times` are met, each with probability `chance`, by a generator that starts at
    `seed`: the same run meets the same. UsageError for a kind that is none.
    """
    try:
        kind = Kind(kind)
    except ValueError:
        raise UsageError(f"{kind!r} is none of {', '.join(each.value for each in Kind)}") from None
    if isinstance(names, str):
        names = (names,)
    return Injection(
        events,
        kind,
        fault,
        names=names,
        domains=domains,
        skip=skip,
        times=times,
        chance=chance,
        seed=seed,
        when=when,
    )


class Eventful:
    """The part of a guest's interface that is its stream of events."""

    @property
    def events(self) -> Events:
        """What happens, for who wants to hear of it or to interfere: docs/events.md."""
        raise NotImplementedError

    def _concerns(self, event: Event) -> bool:
        """Whether it is this guest's."""
        del event
        return True

    def inject(
        self,
        kind: Kind | str,
        fault: Fault,
        *,
        names: Collection[str] | str | None = None,
        skip: int = 0,
        times: int | None = None,
        chance: float = 1.0,
        seed: int = 0,
        when: Callable[[Event], bool] = lambda _: True,
    ) -> Injection:
        """Have a fault befall what happens to this guest: see `faults.inject`."""
        return inject(
            self.events,
            kind,
            fault,
            names=names,
            skip=skip,
            times=times,
            chance=chance,
            seed=seed,
            when=lambda event: self._concerns(event) and when(event),
        )


__all__ = ["Answer", "Corrupt", "Delay", "Deny", "Drop", "Eventful", "Fault", "Injection", "inject"]
