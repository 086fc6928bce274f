"""What a place of the code is given while somebody listens: it asks who may interfere, and tells who listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase

from bivisor.events.model import Event, Kind
from bivisor.events.verdicts import Verdict

_log = logging.getLogger(__name__)

Before = Callable[[Event], Verdict | None]
After = Callable[[Event], object]


class Filter:
    """Which events: of these kinds, of these domains (None: all), by words that match one of their labels (None: all).

    A word may have the wildcards of a shell.
    """

    def __init__(
        self, kinds: Iterable[Kind], domains: Collection[int] | None = None, names: Collection[str] | None = None
    ) -> None:
        self.kinds = frozenset(kinds)
        self.domains = None if domains is None else frozenset(domains)
        self.names = None if names is None else tuple(names)

    def may_pass(self, kind: Kind, domain: int | None) -> bool:
        """Whether a place may have something; `domain` is None for one that has events of many."""
        return kind in self.kinds and (self.domains is None or domain is None or domain in self.domains)

    def passes(self, event: Event) -> bool:
        """Whether it is one of them."""
        if self.domains is not None and event.domain not in self.domains:
            return False
        if self.names is None:
            return True
        return any(fnmatchcase(label, name) for name in self.names for label in event.labels)


class Listener:
    """Calls `callback` with each event that `filter` lets through, in the thread in which it happens: it must be quick
    and must not wait. One that raises is taken off, and `error` says why."""

    def __init__(self, filter_: Filter, callback: Callable[[Event], object], on_close: Callable[[Listener], None]):
        self.filter = filter_
        self.error: BaseException | None = None
        self._callback = callback
        self._on_close = on_close
        self._needs_look = filter_.names is not None or filter_.domains is not None

    def tell(self, event: Event) -> None:
        """It happened."""
        if self._needs_look and not self.filter.passes(event):
            return
        try:
            self._callback(event)
        except Exception as error:
            self.error = error
            _log.exception("a listener failed, and is taken off")
            self.close()

    def close(self) -> None:
        """Listen no more. A second call does nothing."""
        self._on_close(self)


class Hook:
    """An interceptor: `before` decides about an event that is about to happen, `after` sees it when it is over and may
    change what came of it. Both run in the guest's or the service's own thread.

    One that raises is taken off, what it was asked about happens as ever, and `error` is what it raised: `close` raises
    it. As a context manager it closes at the end.
    """

    def __init__(
        self, filter_: Filter, before: Before | None, after: After | None, on_close: Callable[[Hook], None]
    ) -> None:
        self.filter = filter_
        self.error: BaseException | None = None
        self._before = before
        self._after = after
        self._on_close = on_close

    def ask(self, event: Event) -> Verdict | None:
        """What is to become of it; None for what would."""
        if self._before is None or self.error is not None or not self.filter.passes(event):
            return None
        try:
            return self._before(event)
        except BaseException as error:
            self._failed(error)
            return None

    def over(self, event: Event) -> None:
        """It is over."""
        if self._after is None or self.error is not None or not self.filter.passes(event):
            return
        try:
            self._after(event)
        except BaseException as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        _log.warning("a hook failed, and is taken off: %r", error)
        self._on_close(self)

    def close(self) -> None:
        """Interfere no more, and raise what it raised. A second call does nothing."""
        self._on_close(self)
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Probe:
    """What one place has to do while there are listeners or hooks: make the event, `ask` if there are hooks, do the
    thing, and say that it is `over`. `clock` gives the time for events."""

    __slots__ = ("_listeners", "clock", "hooks", "names")

    clock: Callable[[], int]
    names: tuple[str, ...] | None
    """The words that anybody asks by; None where somebody wants everything."""

    def __init__(self, listeners: Collection[Listener], hooks: Collection[Hook], clock: Callable[[], int]) -> None:
        filters = [*(each.filter for each in listeners), *(each.filter for each in hooks)]
        asked = [each.names for each in filters if each.names is not None]
        self.names = tuple(name for names in asked for name in names) if len(asked) == len(filters) else None
        self._listeners = tuple(listener.tell for listener in listeners)
        self.hooks = tuple(hooks)
        self.clock = clock

    def ask(self, event: Event) -> Verdict | None:
        """What the first hook says that says something."""
        for hook in self.hooks:
            verdict = hook.ask(event)
            if verdict is not None:
                return verdict
        return None

    def over(self, event: Event) -> None:
        """It is over: hooks may change what came of it, the last first; then listeners hear of it."""
        for hook in reversed(self.hooks):
            hook.over(event)
        for tell in self._listeners:
            tell(event)

    def tell(self, event: Event) -> None:
        """It has happened, and nothing about it can be changed."""
        for tell in self._listeners:
            tell(event)


now = time.monotonic_ns
"""The clock of events."""
