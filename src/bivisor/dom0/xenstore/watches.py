"""Watches: who hears of which change (docs/misc/xenstore.txt, "Watches").

The watches hang in a tree of names like the store's, so that a change costs a step for each component of its path and
not one for each watch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from bivisor.dom0.xenstore import tree, wire
from bivisor.dom0.xenstore.path import Path, Special
from bivisor.dom0.xenstore.permissions import READ, Caller, Permissions
from bivisor.dom0.xenstore.store import Change
from bivisor.dom0.xenstore.tree import Node


class Watcher(Caller, Protocol):
    """A connection that has watches."""

    def send_event(self, event: bytes) -> None:
        """Queue a WATCH_EVENT, unless the same one waits already."""


class Watch:
    """One watch. Events give the path without its first `skip` components if it was set with a relative path.

    `depth`: how many levels below the path it hears of; None is all. `order`: its place among all that were ever set.
    """

    __slots__ = ("depth", "order", "path", "skip", "token", "watcher")

    def __init__(
        self, watcher: Watcher, path: Path | Special, token: bytes, *, skip: int, depth: int | None, order: int
    ) -> None:
        self.watcher = watcher
        self.path = path
        self.token = token
        self.skip = skip
        self.depth = depth
        self.order = order

    def event(self, path: Path | Special) -> bytes | None:
        """The message that tells of a change at `path`; None where it would be too long."""
        if isinstance(path, Path) and self.skip:
            return wire.watch_event(b"/".join(path[self.skip :]), self.token)
        return wire.watch_event(path.wire, self.token)


class _Branch:
    """The watches on one path, and those below it by the next component."""

    __slots__ = ("below", "watches")

    def __init__(self) -> None:
        self.below: dict[bytes, _Branch] = {}
        self.watches: list[Watch] = []


class Watches:
    """All watches of a store."""

    def __init__(self) -> None:
        self._root = _Branch()
        self._special: list[Watch] = []
        self._order = 0

    def add(
        self, watcher: Watcher, path: Path | Special, token: bytes, *, skip: int = 0, depth: int | None = None
    ) -> Watch:
        """Set a watch. The first event, which every new watch gets, is the caller's to send, after its reply."""
        self._order += 1
        watch = Watch(watcher, path, token, skip=skip, depth=depth, order=self._order)
        if isinstance(path, Special):
            self._special.append(watch)
            return watch
        branch = self._root
        for name in path:
            branch = branch.below.setdefault(name, _Branch())
        branch.watches.append(watch)
        return watch

    def remove(self, watch: Watch) -> None:
        """Take a watch back, which is set."""
        if isinstance(watch.path, Special):
            self._special.remove(watch)
            return
        trail = [self._root]
        for name in watch.path:
            trail.append(trail[-1].below[name])
        trail[-1].watches.remove(watch)
        for depth in range(len(watch.path) - 1, -1, -1):
            branch = trail[depth + 1]
            if branch.watches or branch.below:
                break
            del trail[depth].below[watch.path[depth]]

    def fire(self, changes: Iterable[Change], root: Node) -> None:
        """Tell the watchers of changes that are now in `root`: change by change, in the order of their watches."""
        for change in changes:
            heard = self._hearing(change)
            if len(heard) > 1:
                heard.sort(key=lambda watch: watch.order)
            for watch in heard:
                if _may_hear(watch.watcher, change, root):
                    event = watch.event(change.path)
                    if event is not None:
                        watch.watcher.send_event(event)

    def fire_special(self, name: Special, domid: int, permissions: Permissions) -> None:
        """Tell of @introduceDomain or @releaseDomain for a domain.

        A watch on <name>/<domid> hears of this domain only; one with a depth hears which domain it is.
        """
        with_domid = Special(b"%s/%d" % (name, domid))
        for watch in self._special:
            if watch.path not in (name, with_domid) or not permissions.granted(watch.watcher) & READ:
                continue
            event = watch.event(with_domid if watch.path == with_domid or watch.depth else name)
            if event is not None:
                watch.watcher.send_event(event)

    def _hearing(self, change: Change) -> list[Watch]:
        """The watches that a change concerns, as far as paths say."""
        path, below, _ = change
        branch = self._root
        heard: list[Watch] = []
        left = len(path)
        for name in path:
            if below and branch.watches:
                heard += [watch for watch in branch.watches if watch.depth is None or left <= watch.depth]
            left -= 1
            following = branch.below.get(name)
            if following is None:
                return heard
            branch = following
        return heard + branch.watches


def _may_hear(watcher: Watcher, change: Change, root: Node) -> bool:
    if watcher.privileged:
        return True
    if any(permissions.granted(watcher) & READ for permissions in change.readable_by):
        return True
    above = tree.find(root, change.path.parent)
    return above is not None and bool(above.permissions.granted(watcher) & READ)
