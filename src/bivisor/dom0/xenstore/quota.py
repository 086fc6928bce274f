"""What an unprivileged domain may take of the store: Xen's defaults, and a record of who hits which limit.

C xenstored 4.17 has the same limits (`xenstored --help`) and answers them with the same errors, but says nothing of
them to anybody. Tools and Dom0 have no limit.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Quotas:
    """The most that one domain may have. CONTROL quota|set changes them."""

    nodes: int = 1000
    watches: int = 128
    outstanding: int = 20
    """Replies that the domain has not taken; more requests are not read before it takes some."""
    transactions: int = 10
    transaction_nodes: int = 1024
    permissions: int = 5
    node_size: int = 2048
    """A node must take fewer bytes: value, names of children, permissions and a header of 24."""
    output: int = 2560 << 10
    """Bytes of watch events that the domain has not taken; further events are dropped. C xenstored's `memory`."""


@dataclass(frozen=True, slots=True)
class QuotaHit:
    """Domain `domid` wanted more than `limit` of the quota `quota`, for the `times`-th time."""

    domid: int
    quota: str
    limit: int
    times: int

    def __str__(self) -> str:
        again = f" ({self.times} times)" if self.times > 1 else ""
        return f"xenstore: domain {self.domid} is at its quota {self.quota}={self.limit}{again}"


class QuotaLog:
    """Tells `report` of the 1st, 10th, 100th, … time that a domain hits a quota: a guest must not fill a disk with log.

    Without `report`, the records go to the logger of this module as warnings.
    """

    def __init__(self, report: Callable[[QuotaHit], None] | None = None) -> None:
        self._report = report or _warn
        self._times: Counter[tuple[int, str]] = Counter()

    def hit(self, domid: int, quota: str, limit: int) -> None:
        """Domain `domid` was held to `limit` of `quota`."""
        self._times[domid, quota] += 1
        times = self._times[domid, quota]
        if times == 10 ** (len(str(times)) - 1):
            self._report(QuotaHit(domid, quota, limit, times))

    def forget(self, domid: int) -> None:
        """The domain is gone."""
        for key in [key for key in self._times if key[0] == domid]:
            del self._times[key]


def _warn(hit: QuotaHit) -> None:
    _LOG.warning("%s", hit)
