"""The files of a shared folder that a guest knows by number, and how they are found again without leaving the folder.

A node remembers its parent and its name there. A descriptor for it (O_PATH, which neither reads nor waits) is opened
name by name from the folder down, never through a symbolic link, and is only good for the very file that the guest was
told of; some of them are kept. So the guest may know many files while few are open.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import OrderedDict

NODES_MAX = 1 << 20
FDS_MAX = 128
ROOT_ID = 1  # FUSE_ROOT_ID of linux/fuse.h


class Node:
    """A file, folder or other thing: `identity` is its (st_dev, st_ino), `kind` its S_IFMT bits. `lookups` is how often
    the guest was told of it, `children` how many nodes have it as their parent, `open_fds` are those of its handles."""

    __slots__ = ("children", "fd", "gone", "id", "identity", "kind", "lookups", "name", "open_fds", "parent")

    def __init__(self, number: int, status: os.stat_result, parent: Node | None, name: bytes) -> None:
        self.id = number
        self.identity = identity_of(status)
        self.kind = stat.S_IFMT(status.st_mode)
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.children = 0
        self.fd = -1
        self.open_fds: list[int] = []
        self.gone = False


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """What tells a file from all others while it exists."""
    return status.st_dev, status.st_ino


def stale() -> OSError:
    """The number is of nothing that the guest may name, or not any more."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Nodes:
    """All nodes below the folder that is open as `root_fd`, which belongs to this object from now on."""

    def __init__(self, root_fd: int) -> None:
        self.root = Node(ROOT_ID, os.fstat(root_fd), None, b"")
        self.root.fd = root_fd
        self._numbers = itertools.count(ROOT_ID + 1)
        self._recent: OrderedDict[Node, None] = OrderedDict()  # those with a descriptor, the last used one last
        self._start()

    def _start(self) -> None:
        self.root.children = 0
        self._by_id = {ROOT_ID: self.root}
        self._known = {self.root.identity: self.root}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, number: int) -> Node:
        """The node that the guest means. ESTALE."""
        node = self._by_id.get(number)
        if node is None:
            raise stale()
        return node

    def found(self, parent: Node, name: bytes, status: os.stat_result, *, fresh: bool = False) -> Node:
        """The node of what stands as `name` in `parent`, counted once more. `fresh`: it has only just been made, so
        a node of the same identity is of a file that is gone. ENFILE."""
        node = self._known.get(identity_of(status))
        if node is not None and (fresh or node.kind != stat.S_IFMT(status.st_mode)):
            self.lost(node)
            node = None
        if node is None:
            # A guest that never forgets anything would fill the host's memory.
            if len(self._by_id) >= NODES_MAX:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            node = Node(next(self._numbers), status, parent, name)
            parent.children += 1
            self._by_id[node.id] = self._known[node.identity] = node
        else:
            self.moved(node, parent, name)
        node.lookups += 1
        return node

    def known(self, status: os.stat_result) -> Node | None:
        """The node of a file, if the guest knows it."""
        return self._known.get(identity_of(status))

    def moved(self, node: Node, parent: Node, name: bytes) -> None:
        """`node` stands as `name` in `parent` now."""
        before = node.parent
        if before is None or node.gone:
            return
        if before is not parent:
            above: Node | None = parent
            while above is not None:  # who else moves folders about could make it its own ancestor
                if above is node:
                    return
                above = above.parent
            node.parent = parent
            parent.children += 1
            before.children -= 1
            self._drop(before)
        node.name = name

    def lost(self, node: Node) -> None:
        """The last name of `node` is gone: its identity may soon be another's."""
        if node is not self.root:
            node.gone = True
            if self._known.get(node.identity) is node:
                del self._known[node.identity]

    def forget(self, number: int, count: int) -> None:
        """The guest takes back `count` of the times that it was told of a node. What makes no sense is ignored."""
        node = self._by_id.get(number)
        if node is not None and node is not self.root:
            node.lookups = max(0, node.lookups - count)
            self._drop(node)

    def _drop(self, node: Node) -> None:
        """Remove `node`, and what is above it, as far as nobody needs it."""
        while node.parent is not None and not node.lookups and not node.children:
            if self._by_id.pop(node.id, None) is None:
                return
            self.lost(node)
            if node.fd >= 0:
                del self._recent[node]
                os.close(node.fd)
                node.fd = -1
            node = node.parent
            node.children -= 1

    def fd(self, node: Node) -> int:
        """A descriptor of `node`, good until the next call. ESTALE where it is not there any more."""
        if node.fd >= 0:
            if node is not self.root:
                self._recent.move_to_end(node)
            return node.fd
        if node.open_fds:
            return node.open_fds[-1]
        way = []
        at = node
        while at.fd < 0:
            if at.gone or at.parent is None:
                raise stale()
            way.append(at)
            at = at.parent
        fd = at.fd
        for step in reversed(way):
            fd = self._open(step, fd)
        return fd

    def _open(self, node: Node, parent_fd: int) -> int:
        fd = os.open(node.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        status = os.fstat(fd)
        # Somebody else may have put another file there, whose number the guest was never told.
        if identity_of(status) != node.identity or stat.S_IFMT(status.st_mode) != node.kind:
            os.close(fd)
            raise stale()
        node.fd = fd
        self._recent[node] = None
        if len(self._recent) > FDS_MAX:
            oldest, _ = self._recent.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1
        return fd

    def forget_all(self) -> None:
        """The guest knows the folder itself and nothing else."""
        while self._recent:
            node, _ = self._recent.popitem()
            os.close(node.fd)
            node.fd = -1
        self._start()

    def close(self) -> None:
        """Close everything, the folder too."""
        self.forget_all()
        if self.root.fd >= 0:
            os.close(self.root.fd)
            self.root.fd = -1
