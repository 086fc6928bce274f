"""The tree as one request sees it, and what may be done with it: permissions, quotas, what watches hear.

`Store` is the tree that everyone shares. A `View` is that tree, or what a transaction makes of it; the operations are
the same on both. Each raises `XenStoreError` and then has changed nothing.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from bivisor.dom0.xenstore import tree
from bivisor.dom0.xenstore.errors import XenStoreError
from bivisor.dom0.xenstore.path import Path
from bivisor.dom0.xenstore.permissions import OWNER, READ, WRITE, Caller, Permissions
from bivisor.dom0.xenstore.quota import QuotaLog, Quotas
from bivisor.dom0.xenstore.tree import Edit, Node


class Change(NamedTuple):
    """Something that watches may hear of.

    `below`: so do watches on what is above `path`. Who may read the node above, or one of `readable_by`, may hear of
    it.
    """

    path: Path
    below: bool
    readable_by: tuple[Permissions, ...]


class Store:
    """The shared tree, how many nodes each domain owns in it, and the quotas."""

    def __init__(self, quotas: Quotas, quota_log: QuotaLog) -> None:
        self.root: Node = tree.EMPTY
        self.owned: Counter[int] = Counter({0: 1})
        self.quotas = quotas
        self.quota_log = quota_log
        self._generation = 0

    def next_generation(self) -> int:
        """A number that no change has had."""
        self._generation += 1
        return self._generation

    def refuse(self, caller: Caller, quota: str, error: int) -> XenStoreError:
        """The error for a caller that hit a quota, after a record of it."""
        self.quota_log.hit(caller.domid, quota, getattr(self.quotas, quota))
        return XenStoreError(error)

    def owners(self) -> Counter[int]:
        """How many nodes each domain owns, counted anew: what `owned` has to be."""
        return Counter(node.permissions.owner for _, node in tree.walk(self.root, Path()))


class View:
    """The shared tree itself: what a request without a transaction sees. A change is there for all at once."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def root(self) -> Node:
        """The tree."""
        return self.store.root

    def look(self, caller: Caller, path: Path) -> Node | None:
        """The node at `path`, or None; every node that an answer rests on is looked at so."""
        return tree.find(self.store.root, path)

    def edit(self, edit: Edit, path: Path, argument: Any) -> None:
        """Carry out an edit of the tree."""
        store = self.store
        store.root = edit(store.root, path, argument, store.next_generation())

    def owns(self, domid: int) -> int:
        """How many nodes the domain owns."""
        return self.store.owned[domid]

    def account(self, owners: Iterable[tuple[int, int]]) -> None:
        """Each domain owns so many nodes more."""
        owned = self.store.owned
        for domid, count in owners:
            owned[domid] += count

    # What clients ask for

    def read(self, caller: Caller, path: Path) -> bytes:
        """READ: the value. ENOENT, EACCES."""
        return self._get(caller, path, READ).value

    def directory(self, caller: Caller, path: Path) -> Node:
        """DIRECTORY: the node, whose `names` and `generation` are the answer. ENOENT, EACCES."""
        return self._get(caller, path, READ)

    def permissions(self, caller: Caller, path: Path) -> Permissions:
        """GET_PERMS. ENOENT, EACCES."""
        return self._get(caller, path, READ).permissions

    def write(self, caller: Caller, path: Path, value: bytes) -> list[Change]:
        """WRITE: set the value, and make the node and what is missing above it. EACCES, ENOSPC."""
        node = self._find(caller, path, WRITE)
        if node is None:
            return self._create(caller, path, value)
        if not caller.privileged:
            self._check_size(caller, node.size - len(node.value) + len(value))
        self.edit(tree.set_value, path, value)
        return [Change(path, True, (node.permissions,))]

    def mkdir(self, caller: Caller, path: Path) -> list[Change]:
        """MKDIR: make the node if it is not there. EACCES, ENOSPC."""
        if self._find(caller, path, WRITE) is not None:
            return []
        return self._create(caller, path, b"")

    def remove(self, caller: Caller, path: Path) -> list[Change]:
        """RM: the node and all below it. EACCES; ENOENT if what is above it is not there; EINVAL for the root."""
        node = self._find(caller, path, WRITE)
        if node is None:
            if self.look(caller, path.parent) is None:
                raise XenStoreError(errno.ENOENT)
            return []
        if not path:
            raise XenStoreError(errno.EINVAL)
        return self.prune(caller, path, node)

    def prune(self, caller: Caller, path: Path, node: Node) -> list[Change]:
        """Take `node`, which is at `path`, and all below it away, whoever owns it."""
        changes = []
        owners: Counter[int] = Counter()
        for here, gone in tree.walk(node, path):
            self.look(caller, here)
            owners[gone.permissions.owner] -= 1
            above = tree.find(self.root, here.parent)
            readable_by = (gone.permissions, above.permissions) if above else (gone.permissions,)
            changes.append(Change(here, here == path, readable_by))
        self.look(caller, path.parent)
        self.edit(tree.remove, path, None)
        self.account(owners.items())
        return changes

    def set_permissions(self, caller: Caller, path: Path, permissions: Permissions) -> list[Change]:
        """SET_PERMS. ENOENT, EACCES; EPERM where a domain wants to give a node away; ENOSPC."""
        node = self._get(caller, path, WRITE | OWNER)
        old = node.permissions
        if not caller.privileged:
            if permissions.owner != old.owner:
                raise XenStoreError(errno.EPERM)
            if len(permissions) > self.store.quotas.permissions:
                raise self.store.refuse(caller, "permissions", errno.ENOSPC)
            self._check_size(caller, node._replace(permissions=permissions).size)
        self.edit(tree.set_permissions, path, permissions)
        self.account(((old.owner, -1), (permissions.owner, 1)))
        return [Change(path, True, (old, permissions))]

    def _create(self, caller: Caller, path: Path, value: bytes) -> list[Change]:
        above, depth = tree.nearest(self.root, path)
        self.look(caller, Path(path[:depth]))
        count = len(path) - depth
        owner = None
        if not caller.privileged:
            owner = caller.domid
            if self.owns(owner) + count > self.store.quotas.nodes:
                raise self.store.refuse(caller, "nodes", errno.ENOSPC)
            self._check_size(caller, above.size + len(path[depth]) + 1)
            self._check_size(caller, tree.EMPTY._replace(value=value, permissions=above.permissions).size)
        self.edit(tree.create, path, (value, owner))
        self.account(((above.permissions.owner if owner is None else owner, count),))
        permissions = above.permissions if owner is None else above.permissions.owned_by(owner)
        return [Change(path, True, (permissions,))]

    def _check_size(self, caller: Caller, size: int) -> None:
        if size >= self.store.quotas.node_size:
            raise self.store.refuse(caller, "node_size", errno.ENOSPC)

    def _get(self, caller: Caller, path: Path, wanted: int) -> Node:
        node = self._find(caller, path, wanted)
        if node is None:
            raise XenStoreError(errno.ENOENT)
        return node

    def _find(self, caller: Caller, path: Path, wanted: int) -> Node | None:
        """The node with all of `wanted` granted, or None where `caller` may know that there is none. EACCES."""
        node = self.look(caller, path)
        if node is not None:
            if caller.privileged or node.permissions.granted(caller) & wanted == wanted:
                return node
            raise XenStoreError(errno.EACCES)
        above, depth = tree.nearest(self.root, path)
        self.look(caller, Path(path[:depth]))
        # Who may not see what is above must not learn which names there are.
        if not caller.privileged and not above.permissions.granted(caller) & wanted:
            raise XenStoreError(errno.EACCES)
        return None
