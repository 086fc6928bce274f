"""Paths, parsed once where they enter (docs/misc/xenstore.txt, "Paths are /-separated").

A `Path` is the tuple of its components, so that walking, comparing and cutting it need no parsing. What cannot be a
path is EINVAL, whoever asks.
"""

from __future__ import annotations

import errno
from typing import Final

from bivisor.abi.xen.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX
from bivisor.dom0.xenstore.errors import XenStoreError

LEGAL: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"
_DOMAINS: Final = (b"local", b"domain")


class Path(tuple[bytes, ...]):
    """The components of an absolute path, from the root; the root is empty."""

    __slots__ = ()

    @property
    def wire(self) -> bytes:
        """The path as clients write it."""
        return b"/" + b"/".join(self)

    @property
    def parent(self) -> Path:
        """The path without its last component; the root is its own parent."""
        return Path(self[:-1])

    def __str__(self) -> str:
        return self.wire.decode("ascii", "backslashreplace")


class Special(bytes):
    """The name of an event that the store invents, such as @releaseDomain; it may end in /<domid>."""

    __slots__ = ()

    @property
    def wire(self) -> bytes:
        """The name as clients write it."""
        return bytes(self)


ROOT: Final = Path()
INTRODUCE_DOMAIN: Final = Special(b"@introduceDomain")
RELEASE_DOMAIN: Final = Special(b"@releaseDomain")


def domain_path(domid: int) -> Path:
    """The home of a domain, to which its relative paths are relative."""
    return Path((b"local", b"domain", b"%d" % domid))


def parse(wire: bytes, home: Path = ROOT) -> Path:
    """A path from its bytes; one that does not begin with / is relative to `home`. EINVAL where it is none."""
    # One character outside the set would let a client smuggle a separator or a NUL into a later reply.
    if wire.translate(None, LEGAL):
        raise XenStoreError(errno.EINVAL)
    if wire[:1] == b"/":
        names = wire.split(b"/")[1:]
        if names == [b""]:
            return ROOT
    elif wire[:1] == b"@":
        raise XenStoreError(errno.EINVAL)
    else:
        names = [*home, *wire.split(b"/")]
    if b"" in names:
        raise XenStoreError(errno.EINVAL)
    path = Path(names)
    if len(wire) > XENSTORE_REL_PATH_MAX - 64:
        _check_length(path)
    return path


def _check_length(path: Path) -> None:
    """Xen 4.17 does not count /local/domain/<domid>/ where a path begins with it."""
    length = len(path.wire)
    own = length
    if path[:2] == _DOMAINS and len(path) > 3 and path[2].isdigit():
        own -= len(b"/local/domain/") + len(path[2]) + 1
    if own > XENSTORE_REL_PATH_MAX or length > XENSTORE_ABS_PATH_MAX:
        raise XenStoreError(errno.EINVAL)


def parse_watchable(wire: bytes, home: Path) -> Path | Special:
    """What WATCH and SET_PERMS accept: a path, or anything that begins with @."""
    if wire[:1] != b"@":
        return parse(wire, home)
    if len(wire) > XENSTORE_REL_PATH_MAX:
        raise XenStoreError(errno.EINVAL)
    return Special(wire)
