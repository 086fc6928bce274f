"""Transactions, with the conflict rule of Xen 4.17.

A transaction works on a tree of its own, which costs nothing to begin with, because trees are immutable. It keeps the
generation of every node at its first look at it. At its end each of them must still have that generation in the shared
tree, or the answer is EAGAIN; then its changes are merged into the shared tree. So a committed transaction is as good
as one that ran whole at the moment of its end.

Others' changes come in before the end, too: a node that the transaction has not looked at yet is as the shared tree
has it at the first look, as in C xenstored. For a transaction that has looked at many nodes that would cost too much:
it sees the node as it was, and its end is EAGAIN.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from bivisor.dom0.xenstore import tree
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.path import Path
from bivisor.dom0.xenstore.permissions import Caller
from bivisor.dom0.xenstore.store import Change, Store, View
from bivisor.dom0.xenstore.tree import ABSENT, Edit, Node

_CHEAP: Final = 64
"""Nodes that are compared for a first look: a guest makes each comparison cost what a long path costs."""


class Transaction(View):
    """One transaction, from TRANSACTION_START to TRANSACTION_END."""

    def __init__(self, store: Store, number: int) -> None:
        super().__init__(store)
        self.number = number
        self._base = store.root
        self._root = store.root
        self._seen: dict[Path, int] = {}
        self._owned: Counter[int] = Counter()
        self._changes: dict[Path, Change] = {}
        self._failed = False
        self._conflicts = False

    @property
    def root(self) -> Node:
        """The transaction's own tree."""
        return self._root

    def look(self, caller: Caller, path: Path) -> Node | None:
        """See `View.look`. ENOSPC where the transaction has looked at too many nodes; it cannot be committed then."""
        if path not in self._seen:
            quotas = self.store.quotas
            if not caller.privileged and len(self._seen) >= quotas.transaction_nodes:
                self._failed = True
                raise self.store.refuse(caller, "transaction_nodes", errno.ENOSPC)
            shared = self.store.root
            if shared is not self._base and len(self._seen) <= _CHEAP:
                self._catch_up()
            self._seen[path] = _generation(self._base, path)
        return tree.find(self._root, path)

    def edit(self, edit: Edit, path: Path, argument: Any) -> None:
        """See `View.edit`; nobody else sees it before the end."""
        self._root = edit(self._root, path, argument, self.store.next_generation())

    def owns(self, domid: int) -> int:
        """See `View.owns`."""
        return self.store.owned[domid] + self._owned[domid]

    def account(self, owners: Iterable[tuple[int, int]]) -> None:
        """See `View.account`."""
        for domid, count in owners:
            self._owned[domid] += count

    def note(self, changes: Iterable[Change]) -> None:
        """Keep what watches are to hear at the end: each node once, in the order of the first change to it."""
        for change in changes:
            earlier = self._changes.get(change.path)
            if earlier is not None:
                # Not all that there were: a guest may change permissions as often as it likes.
                readable_by = (*earlier.readable_by[:2], *change.readable_by)
                change = Change(change.path, change.below or earlier.below, readable_by)
            self._changes[change.path] = change

    def commit(self, caller: Caller) -> list[Change]:
        """Make the changes everyone's; what watches are to hear of them. EAGAIN, ENOSPC, ENOMEM."""
        store = self.store
        if self._failed:
            raise XenStoreError(errno.ENOMEM)
        if not self._catch_up():
            raise XenStoreError(errno.EAGAIN)
        if not caller.privileged:
            for domid, count in self._owned.items():
                # What others made meanwhile counts, too.
                if domid == caller.domid and count > 0 and store.owned[domid] + count > store.quotas.nodes:
                    raise store.refuse(caller, "nodes", errno.ENOSPC)
        store.root = self._root
        for domid, count in self._owned.items():
            store.owned[domid] += count
        return list(self._changes.values())

    def disown(self) -> None:
        """A domain is gone, and with it what it was granted: what was read before must not bring that back."""
        if self._seen:
            self._conflicts = True

    def _catch_up(self) -> bool:
        """Go on from the shared tree as it is now. False, and nothing happens, where a node seen has changed."""
        if self._conflicts:
            return False
        shared = self.store.root
        if shared is self._base:
            return True
        if any(_generation(shared, path) != generation for path, generation in self._seen.items()):
            self._conflicts = True
            return False
        self._base, self._root = shared, tree.merge(self._base, self._root, shared)
        return True


def _generation(root: Node, path: Path) -> int:
    node = tree.find(root, path)
    return ABSENT if node is None else node.generation
