"""How a hypercall fails."""

from __future__ import annotations

from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantStatus


class XenError(Exception):
    """A hypercall that returns `-errno`; nothing else has happened."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno = errno


class GrantError(Exception):
    """One grant operation of a batch that fails with a GNTST_* status; nothing else has happened."""

    def __init__(self, status: GrantStatus) -> None:
        super().__init__(status.name)
        self.status = status
