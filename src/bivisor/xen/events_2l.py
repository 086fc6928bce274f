"""The 2-level event ABI (event_channel.h, xen.h): a bit for each port in `evtchn_pending` and `evtchn_mask` of
`struct shared_info`, and a bit for each of their words in `evtchn_pending_sel` of `struct vcpu_info`.

The pending bit is always set by an atomic test-and-set, even where it seems to be set already: that is the barrier
between what the sender wrote before and a guest that clears the bit now.
"""

from __future__ import annotations

from bivisor.abi.xen.event_channel import EVTCHN_2L_NR_CHANNELS
from bivisor.abi.xen.xen import SHARED_EVTCHN_MASK, SHARED_EVTCHN_PENDING
from bivisor.memory.atomics import Atomics, address_of
from bivisor.xen.domain import Domain
from bivisor.xen.upcalls import Channel, Upcalls


class TwoLevel:
    """`EventAbi` with which every domain begins."""

    limit = EVTCHN_2L_NR_CHANNELS

    def __init__(self, domain: Domain, upcalls: Upcalls, atomics: Atomics) -> None:
        self._domain = domain
        self._upcalls = upcalls
        self._test_and_set = atomics.test_and_set_bit
        self._test_and_clear = atomics.test_and_clear_bit
        self._page: memoryview | None = None
        self._address = 0

    def _pending(self) -> int:
        page = self._domain.shared_info
        if self._page is not page:  # the guest has moved it
            self._page, self._address = page, address_of(page)
        return self._address + SHARED_EVTCHN_PENDING

    def _mask(self) -> int:
        return self._pending() + SHARED_EVTCHN_MASK - SHARED_EVTCHN_PENDING

    def _test(self, bitmap: int, port: int) -> bool:
        return bool(self._domain.shared_info[bitmap + (port >> 3)] >> (port & 7) & 1)

    def set_pending(self, channel: Channel) -> None:
        """See `EventAbi`."""
        port = channel.port
        if self._test_and_set(self._pending(), port):
            return  # whoever set it has told the guest, or will when the guest unmasks
        if not self._test(SHARED_EVTCHN_MASK, port):
            self._upcalls.select(channel.vcpu, port >> 6)
        self._upcalls.check_pollers(port)

    def clear_pending(self, channel: Channel) -> None:
        """See `EventAbi`."""
        self._test_and_clear(self._pending(), channel.port)

    def unmask(self, channel: Channel) -> None:
        """See `EventAbi`."""
        port = channel.port
        if self._test_and_clear(self._mask(), port) and self.is_pending(port):
            self._upcalls.select(channel.vcpu, port >> 6)

    def is_pending(self, port: int) -> bool:
        """See `EventAbi`."""
        return self._test(SHARED_EVTCHN_PENDING, port)

    def is_busy(self, port: int) -> bool:
        """Never: there are no queues."""
        del port
        return False

    def close(self) -> None:
        """See `EventAbi`."""
        self._page = None
