"""The FIFO event ABI (event_channel.h and the design document "FIFO-based event channels"): a word for each port in an
event array of the guest's pages, and for each processor 16 queues by priority, whose heads are in its control block.

A queue is a list through the LINK fields of its words. The hypervisor keeps the tails and appends; the guest takes from
the head. Both change a word at the same time, so each change is atomic. The guest may set and clear MASKED, clear
PENDING, and clear LINKED together with LINK; BUSY keeps it from clearing MASKED while the hypervisor has to win.
"""

from __future__ import annotations

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen.errno import Errno
from bivisor.memory import PAGE
from bivisor.memory.atomics import Atomics, address_of
from bivisor.xen.domain import Domain
from bivisor.xen.errors import XenError
from bivisor.xen.upcalls import Channel, Upcalls

WORDS_PER_PAGE = PAGE // 4
MAX_EVENT_ARRAY_PAGES = abi.EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE

_LINKED = 1 << abi.EVTCHN_FIFO_LINKED
_UNLINK = ~(1 << abi.EVTCHN_FIFO_BUSY | abi.EVTCHN_FIFO_LINK_MASK)
_GUEST_CHANGES = 4
"""How often a guest that keeps to the rules can change a BUSY word: MASKED, PENDING and LINKED once each; one spare."""


class Words:
    """A guest's page, or a part of one, as 32-bit words: loads and stores of whole words, and its host address."""

    __slots__ = ("address", "words")

    def __init__(self, view: memoryview) -> None:
        self.address = address_of(view)
        self.words = view.cast("I")


class Fifo:
    """`EventAbi` of a domain that has called EVTCHNOP_init_control."""

    limit = abi.EVTCHN_FIFO_NR_CHANNELS

    def __init__(self, domain: Domain, upcalls: Upcalls, atomics: Atomics) -> None:
        self._domain = domain
        self._upcalls = upcalls
        self._test_and_set = atomics.test_and_set_bit
        self._test_and_clear = atomics.test_and_clear_bit
        self._cmpxchg = atomics.cmpxchg_u32
        self._raise_alone = atomics.raise_alone
        self._array: list[Words] = []
        self._held: list[int] = []
        self._control: list[Words | None] = [None for _ in domain.vcpus]
        self._tails = [[0] * abi.EVTCHN_FIFO_MAX_QUEUES for _ in domain.vcpus]

    def init_control(self, vcpu: int, gfn: int, offset: int) -> None:
        """The control block of `vcpu` is at `offset` of frame `gfn`. EINVAL: none such, or it has one already."""
        # inside the page: what lies behind it is another's; aligned: atomic operations on it must not split
        if offset > PAGE - abi.CONTROL_BLOCK_SIZE or offset % 8:
            raise XenError(Errno.EINVAL)
        if self._control[vcpu] is not None:
            raise XenError(Errno.EINVAL)
        self._control[vcpu] = Words(self._frame(gfn)[offset : offset + abi.CONTROL_BLOCK_SIZE])

    def expand_array(self, gfn: int) -> range:
        """Frame `gfn` holds the next 1024 event words, those of the ports returned. EINVAL; ENOSPC if complete."""
        if len(self._array) >= MAX_EVENT_ARRAY_PAGES:
            raise XenError(Errno.ENOSPC)
        self._array.append(Words(self._frame(gfn)))
        last = len(self._array) * WORDS_PER_PAGE
        return range(last - WORDS_PER_PAGE, last)

    def _frame(self, gfn: int) -> memoryview:
        view = self._domain.frame(gfn)
        self._domain.hold(gfn)
        self._held.append(gfn)
        return view

    def _test(self, port: int, bit: int) -> bool:
        page = port // WORDS_PER_PAGE
        array = self._array
        return page < len(array) and bool(array[page].words[port % WORDS_PER_PAGE] >> bit & 1)

    def set_pending(self, channel: Channel) -> None:
        """See `EventAbi`. Where the guest has no word for the port yet, the event waits for `expand_array`."""
        page, at = divmod(channel.port, WORDS_PER_PAGE)
        if page >= len(self._array):
            channel.pending = True
            return
        words = self._array[page]
        queue = vcpu, priority = channel.vcpu, channel.priority
        control = self._control[vcpu]
        if self._tails[vcpu][priority] == channel.port and channel.last_queue == queue and control is not None:
            # No other has been in that queue since: if it is not linked, it begins and ends the queue again.
            done = self._raise_alone(
                words.address + 4 * at, control.address, channel.port, priority, self._upcalls.address(vcpu)
            )
            if done & 2:
                self._domain.upcall.event(vcpu)
            if not done & 1:
                self._upcalls.check_pollers(channel.port)
            return
        was_pending = self._test_and_set(words.address, at * 32 + abi.EVTCHN_FIFO_PENDING)
        self._link(channel, words, at)
        if not was_pending:
            self._upcalls.check_pollers(channel.port)

    def _link(self, channel: Channel, words: Words, at: int) -> None:
        """Put the port into its queue, unless it is masked, or in one."""
        control = self._control[channel.vcpu]
        if (
            control is not None  # a guest must not unmask before it has one: such an event is dropped
            and not words.words[at] >> abi.EVTCHN_FIFO_MASKED & 1
            and not self._test_and_set(words.address, at * 32 + abi.EVTCHN_FIFO_LINKED)
        ):
            self._append(channel, control)

    def _append(self, channel: Channel, control: Words) -> None:
        port, vcpu, priority = channel.port, channel.vcpu, channel.priority
        last_vcpu, last_priority = channel.last_queue
        if self._tails[last_vcpu][last_priority] == port:
            # The word was not linked, so that queue is empty. Its tail must not seem to be linked in it now.
            self._tails[last_vcpu][last_priority] = 0
        channel.last_queue = (vcpu, priority)
        tail = self._tails[vcpu][priority]
        self._tails[vcpu][priority] = port
        if tail and self._set_link(tail, port):
            return
        control.words[abi.CONTROL_BLOCK_HEAD + priority] = port
        if not self._test_and_set(control.address, priority):
            self._upcalls.mark(vcpu)

    def _set_link(self, tail: int, port: int) -> bool:
        """Let `port` follow `tail`, if that is still in the queue. False: it has been taken, the queue is empty."""
        page, at = divmod(tail, WORDS_PER_PAGE)
        words = self._array[page]
        linked = self._try_link(words, at, port)
        if linked is not None:
            return linked
        busy = at * 32 + abi.EVTCHN_FIFO_BUSY
        self._test_and_set(words.address, busy)
        for _ in range(_GUEST_CHANGES):
            linked = self._try_link(words, at, port)
            if linked is not None:
                if not linked:
                    self._test_and_clear(words.address, busy)
                return linked
        # only a guest that breaks the rules comes here, to keep the hypervisor busy; the event is its own loss
        self._test_and_clear(words.address, busy)
        return True

    def _try_link(self, words: Words, at: int, port: int) -> bool | None:
        """Whether it was linked; None where the guest changed the word in between."""
        word = words.words[at]
        if not word & _LINKED:
            return False
        return True if self._cmpxchg(words.address + 4 * at, word, word & _UNLINK | port) == word else None

    def clear_pending(self, channel: Channel) -> None:
        """See `EventAbi`. The word stays in its queue: the guest takes it out and sees that nothing is pending."""
        channel.pending = False
        page, at = divmod(channel.port, WORDS_PER_PAGE)
        if page < len(self._array):
            self._test_and_clear(self._array[page].address, at * 32 + abi.EVTCHN_FIFO_PENDING)

    def unmask(self, channel: Channel) -> None:
        """See `EventAbi`."""
        page, at = divmod(channel.port, WORDS_PER_PAGE)
        if page < len(self._array):
            words = self._array[page]
            self._test_and_clear(words.address, at * 32 + abi.EVTCHN_FIFO_MASKED)
            if self.is_pending(channel.port):
                self._link(channel, words, at)  # not made pending again: the guest may have cleared it just now

    def is_pending(self, port: int) -> bool:
        """See `EventAbi`."""
        return self._test(port, abi.EVTCHN_FIFO_PENDING)

    def is_busy(self, port: int) -> bool:
        """See `EventAbi`."""
        return self._test(port, abi.EVTCHN_FIFO_LINKED)

    def close(self) -> None:
        """See `EventAbi`."""
        self._array = []
        self._control = [None for _ in self._control]
        for gfn in self._held:
            self._domain.let_go(gfn)
        self._held.clear()
