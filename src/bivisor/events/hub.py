"""The stream of one machine or host: who listens to what, and the places that are told so.

A place in the code registers a `Site`. Its `install` is called with a `Probe` when somebody wants to know of what
happens there, and with None when nobody does any more: most places put a handler that tells of things where the plain
one was, and so cost nothing otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from bivisor.events.model import Event, Kind
from bivisor.events.probe import After, Before, Filter, Hook, Listener, Probe, now
from bivisor.events.ring import Subscription

LIMIT = 1 << 16
"""How many events a subscription keeps unless it says otherwise."""


class Site:
    """A place where events of `kind` happen, of `domain` alone or (None) of many."""

    def __init__(self, kind: Kind, domain: int | None, install: Callable[[Probe | None], None]) -> None:
        self.kind = kind
        self.domain = domain
        self.probe: Probe | None = None
        self._install = install

    def install(self, probe: Probe | None) -> None:
        """Tell of events by `probe` from now on, or of none."""
        if probe is not self.probe:
            self.probe = probe
            self._install(probe)


class Events:
    """See the module. Every method may be called from any thread."""

    def __init__(self, clock: Callable[[], int] = now) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._sites: list[Site] = []
        self._listeners: list[Listener] = []
        self._hooks: list[Hook] = []
        self.names: dict[int, str] = {}
        """What the domains are called, as far as anybody has said so."""

    # ---------------------------------------------------------------- places

    def site(self, kind: Kind, install: Callable[[Probe | None], None], domain: int | None = None) -> Site:
        """Register a place. `install` may be called at once, and from any thread later."""
        site = Site(kind, domain, install)
        with self._lock:
            self._sites.append(site)
            self._update(site)
        return site

    def remove(self, *sites: Site) -> None:
        """The places are gone. Those that are no more there are no error."""
        with self._lock:
            for site in sites:
                if site in self._sites:
                    self._sites.remove(site)
                    site.install(None)

    def tell(self, event: Event) -> None:
        """Something rare happened, which has no place of its own: the life of a domain."""
        with self._lock:
            listeners = [each for each in self._listeners if event.kind in each.filter.kinds]
        for listener in listeners:
            listener.tell(event)

    def wants(self, kind: Kind) -> bool:
        """Whether anybody listens to events of `kind`."""
        filters = [each.filter for each in self._listeners] + [each.filter for each in self._hooks]
        return any(kind in each.kinds for each in filters)

    def _update(self, site: Site) -> None:
        listeners = [each for each in self._listeners if each.filter.may_pass(site.kind, site.domain)]
        hooks = [each for each in self._hooks if each.filter.may_pass(site.kind, site.domain)]
        if listeners or hooks:
            site.install(Probe(listeners, hooks, self._clock))
        else:
            site.install(None)

    def _update_kinds(self, kinds: Collection[Kind]) -> None:
        for site in self._sites:
            if site.kind in kinds:
                self._update(site)

    # ---------------------------------------------------------------- who wants to know

    def listen(
        self,
        callback: Callable[[Event], object],
        kinds: Iterable[Kind] = Kind,
        *,
        domains: Collection[int] | None = None,
        names: Collection[str] | None = None,
    ) -> Listener:
        """Call `callback(event)` as things happen, in whatever thread they do. `close()` the listener to end it."""
        listener = Listener(Filter(kinds, domains, names), callback, self._leave)
        with self._lock:
            self._listeners.append(listener)
            self._update_kinds(listener.filter.kinds)
        return listener

    def _leave(self, listener: Listener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
                self._update_kinds(listener.filter.kinds)

    def subscribe(
        self,
        kinds: Iterable[Kind] = Kind,
        *,
        domains: Collection[int] | None = None,
        names: Collection[str] | None = None,
        limit: int = LIMIT,
    ) -> Subscription:
        """Keep events in a ring of `limit`, to be read from another thread."""
        subscription = Subscription(limit)
        subscription.on_close = self.listen(subscription.put, kinds, domains=domains, names=names).close
        return subscription

    def intercept(
        self,
        kinds: Kind | Iterable[Kind],
        before: Before | None = None,
        after: After | None = None,
        *,
        domains: Collection[int] | None = None,
        names: Collection[str] | None = None,
    ) -> Hook:
        """Have `before(event)` decide what becomes of things, and `after(event)` change what came of them. See `Hook`,
        and the classes of events for what each can do."""
        hook = Hook(Filter([kinds] if isinstance(kinds, Kind) else kinds, domains, names), before, after, self._unhook)
        with self._lock:
            self._hooks.append(hook)
            self._update_kinds(hook.filter.kinds)
        return hook

    def _unhook(self, hook: Hook) -> None:
        with self._lock:
            if hook in self._hooks:
                self._hooks.remove(hook)
                self._update_kinds(hook.filter.kinds)
