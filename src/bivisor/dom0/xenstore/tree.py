"""The store as an immutable tree: every change makes a new root that shares all that did not change.

A node's `generation` is the number of the last change of its value, its permissions or its list of children (not of
what is in them); transactions and DIRECTORY_PART compare it. No function here recurses: a client chooses the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from bivisor.dom0.xenstore.path import Path
from bivisor.dom0.xenstore.permissions import DOM0_ONLY, Permissions

ABSENT: Final = -1
"""The generation of a node that is not there."""

# sizeof of the record and of one permission in C xenstored, by which the quota of a node's size counts.
_RECORD_SIZE: Final = 24
_PERMISSION_SIZE: Final = 8


class Node(NamedTuple):
    """One node. A named tuple, because a write makes one for each level and a frozen dataclass takes thrice as long."""

    value: bytes
    permissions: Permissions
    children: Mapping[bytes, Node]
    generation: int

    @property
    def names(self) -> bytes:
        """The names of the children, each with a NUL, in the order of their creation."""
        return b"".join(name + b"\0" for name in self.children)

    @property
    def size(self) -> int:
        """Bytes, as the quota of C xenstored counts them."""
        names = sum(map(len, self.children)) + len(self.children)
        return _RECORD_SIZE + _PERMISSION_SIZE * len(self.permissions) + len(self.value) + names


NO_CHILDREN: Final[Mapping[bytes, Node]] = MappingProxyType({})
EMPTY: Final = Node(b"", DOM0_ONLY, NO_CHILDREN, 0)

Edit = Callable[[Node, Path, Any, int], Node]
"""(root, path, argument, generation) → new root. The four edits below."""


def find(root: Node, path: Path) -> Node | None:
    """The node at `path`, or None."""
    node: Node | None = root
    for name in path:
        node = node.children.get(name)  # type: ignore[union-attr]
        if node is None:
            return None
    return node


def nearest(root: Node, path: Path) -> tuple[Node, int]:
    """The deepest node at `path` or above it that is there, and its depth."""
    node = root
    for depth, name in enumerate(path):
        child = node.children.get(name)
        if child is None:
            return node, depth
        node = child
    return node, len(path)


def walk(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    """`node`, which is at `path`, and all below it, every node after its children."""
    stack = [(path, node, iter(node.children.items()))]
    while stack:
        here, current, rest = stack[-1]
        for name, child in rest:
            stack.append((Path((*here, name)), child, iter(child.children.items())))
            break
        else:
            yield here, current
            stack.pop()


def set_value(root: Node, path: Path, value: bytes, generation: int) -> Node:
    """Give the node at `path`, which is there, a value."""
    trail = _trail(root, path)
    old = trail.pop()
    return _graft(trail, path, Node(value, old.permissions, old.children, generation))


def set_permissions(root: Node, path: Path, permissions: Permissions, generation: int) -> Node:
    """Give the node at `path`, which is there, permissions."""
    trail = _trail(root, path)
    old = trail.pop()
    return _graft(trail, path, Node(old.value, permissions, old.children, generation))


def create(root: Node, path: Path, what: tuple[bytes, int | None], generation: int) -> Node:
    """Make the node at `path`, which is not there, and what is missing above it.

    `what` is its value and its owner: each new node inherits the permissions of the node above, with this owner, or
    with the same one if it is None.
    """
    value, owner = what
    above, depth = nearest(root, path)
    permissions = above.permissions if owner is None else above.permissions.owned_by(owner)
    new = Node(value, permissions, NO_CHILDREN, generation)
    for name in reversed(path[depth + 1 :]):
        new = Node(b"", permissions, {name: new}, generation)
    trail = _trail(root, Path(path[:depth]))
    trail.pop()
    above = Node(above.value, above.permissions, {**above.children, path[depth]: new}, generation)
    return _graft(trail, path, above)


def remove(root: Node, path: Path, _: None, generation: int) -> Node:
    """Take the node at `path`, which is there and not the root, and all below it away."""
    trail = _trail(root, path.parent)
    above = trail.pop()
    children = dict(above.children)
    del children[path[-1]]
    return _graft(trail, path, Node(above.value, above.permissions, children or NO_CHILDREN, generation))


def merge(base: Node, own: Node, shared: Node) -> Node:
    """What `own` made of `base`, made of `shared` instead, which is another descendant of `base`.

    Only where both changed a node's own value, permissions or list of children is that ambiguous, and then `own` has
    its way: see to it before. What either shares with `base` is not looked into.
    """
    if own is base:
        return shared
    if shared is base:
        return own
    stack = [_Merging(base, own, shared)]
    while True:
        top = stack[-1]
        for name in top.rest:
            before, ours, theirs = (node.children.get(name) for node in (top.base, top.own, top.shared))
            if before is None or ours is None or theirs is None:
                chosen = ours if top.is_ours else theirs
            elif ours is before:
                chosen = theirs
            elif theirs is before:
                chosen = ours
            else:
                top.name = name
                stack.append(_Merging(before, ours, theirs))
                break
            if chosen is not None:
                top.children[name] = chosen
        else:
            chief = top.own if top.is_ours else top.shared
            merged = Node(chief.value, chief.permissions, top.children, chief.generation)
            stack.pop()
            if not stack:
                return merged
            stack[-1].children[stack[-1].name] = merged


class _Merging:
    """A node that `merge` is at: the three of it, the children merged so far, and the names of the rest."""

    __slots__ = ("base", "children", "is_ours", "name", "own", "rest", "shared")

    def __init__(self, base: Node, own: Node, shared: Node) -> None:
        self.base = base
        self.own = own
        self.shared = shared
        self.is_ours = own.generation != base.generation
        self.rest = iter((own if self.is_ours else shared).children)
        self.children: dict[bytes, Node] = {}
        self.name = b""


def _trail(root: Node, path: Path) -> list[Node]:
    """The nodes from the root to `path`, both included; all are there."""
    node = root
    trail = [root]
    for name in path:
        node = node.children[name]
        trail.append(node)
    return trail


def _graft(trail: list[Node], path: Path, new: Node) -> Node:
    """A root in which `new` stands at the first `len(trail)` components of `path`, below the nodes of `trail`."""
    for depth in range(len(trail) - 1, -1, -1):
        old = trail[depth]
        new = Node(old.value, old.permissions, {**old.children, path[depth]: new}, old.generation)
    return new
