"""Who may do what with a node (docs/misc/xenstore.txt, GET_PERMS and SET_PERMS).

The first entry names the owner, who may do everything, and what those may do that no other entry names. Each further
entry says what one domain may do.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from bivisor.dom0.xenstore.errors import XenStoreError

# XS_PERM_*
NONE: Final = 0
READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4
ALL: Final = READ | WRITE | OWNER

_LETTERS: Final = {ord("n"): NONE, ord("r"): READ, ord("w"): WRITE, ord("b"): READ | WRITE}
_LETTER_OF: Final = {mode: b"%c" % letter for letter, mode in _LETTERS.items()}
_DOMID_LIMIT: Final = 1 << 16


class Caller(Protocol):
    """Who asks: a domain, perhaps one that acts for another (SET_TARGET), or a tool."""

    domid: int
    privileged: bool

    @property
    def target_domid(self) -> int | None:
        """The domain whose rights the caller has besides its own."""


class Entry(NamedTuple):
    """What one domain may do: `mode` is NONE, READ, WRITE or both."""

    domid: int
    mode: int


class Permissions(tuple[Entry, ...]):
    """The entries of a node, at least one."""

    __slots__ = ()

    @property
    def owner(self) -> int:
        """The domain that owns the node."""
        return self[0].domid

    @property
    def wire(self) -> bytes:
        """The entries as GET_PERMS answers them."""
        return b"".join(b"%s%d\0" % (_LETTER_OF[mode], domid) for domid, mode in self)

    def granted(self, caller: Caller) -> int:
        """What `caller` may do, as READ | WRITE | OWNER."""
        first = self[0]
        domid, target = caller.domid, caller.target_domid
        if caller.privileged or first.domid == domid or first.domid == target:
            return ALL
        for entry in self[1:]:
            if entry.domid == domid or entry.domid == target:
                return entry.mode
        return first.mode

    def owned_by(self, domid: int) -> Permissions:
        """The same for a new owner."""
        return Permissions((Entry(domid, self[0].mode), *self[1:]))

    def without(self, domid: int) -> Permissions:
        """The same without what `domid` was granted as another than the owner."""
        return Permissions((self[0], *(entry for entry in self[1:] if entry.domid != domid)))


DOM0_ONLY: Final = Permissions((Entry(0, NONE),))


def parse(strings: Sequence[bytes]) -> Permissions:
    """Permissions from strings such as b"r5". EINVAL where one is none."""
    return Permissions(map(_entry, strings))


def _entry(string: bytes) -> Entry:
    mode = _LETTERS.get(string[0]) if string else None
    digits = string[1:]
    # Length first: int() of thousands of digits costs time quadratic in them.
    if mode is None or not 0 < len(digits) <= 5 or not digits.isdigit():
        raise XenStoreError(errno.EINVAL)
    domid = int(digits)
    if domid >= _DOMID_LIMIT:
        raise XenStoreError(errno.EINVAL)
    return Entry(domid, mode)
