"""A domain: its identity, its life, its memory as frames, and its virtual processors as the hypervisor sees them.

created → paused ⇄ running ⇄ blocked → shutdown (with a reason) → dying → gone. What holds a reference to a domain (a
mapped grant of it, a port bound to it) keeps it in "dying"; its id is not given to another before it is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from bivisor.abi.xen import xen as abi
from bivisor.abi.xen.domctl import Cdf
from bivisor.abi.xen.errno import Errno
from bivisor.errors import GuestAddressError
from bivisor.memory import PAGE, GuestMemory, Slot
from bivisor.xen.config import DomainConfig
from bivisor.xen.errors import XenError
from bivisor.xen.physmap import MAX_GFN, Physmap

if TYPE_CHECKING:
    from bivisor.events import Site
    from bivisor.xen.event_channel import EventChannels
    from bivisor.xen.grant_table import GrantTable
    from bivisor.xen.hvm.state import HvmState


MAX_PAUSES = 255
"""How often a domain can be paused at the same time (a count that Xen keeps in one byte)."""


class State(Enum):
    """Where a domain is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    DYING = "dying"
    GONE = "gone"


class Upcall(Protocol):
    """What runs the domain: an engine's processors for a guest, Python for Dom0."""

    def event(self, vcpu: int) -> None:
        """`evtchn_upcall_pending` of `vcpu` has been set: interrupt it, or wake it if it sleeps. From any thread."""

    def wake(self, vcpu: int) -> None:
        """One of the ports that `vcpu` polls has become pending, masked or not. From any thread."""

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """Once the hypercall has returned, let `vcpu` sleep until an event is pending (or one of `ports`, for a poll),
        or until system time `deadline` in nanoseconds."""

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """Raise VIRQ_TIMER on `vcpu` at system time `deadline` in nanoseconds; None stops it."""

    def add_slot(self, slot: Slot) -> None:
        """The domain's memory has got another slot: show it to the processors."""

    def populated(self, gfn: int, count: int) -> None:
        """`count` frames from `gfn` on are the domain's again."""

    def released(self, gfn: int, count: int) -> None:
        """`count` frames from `gfn` on are not the domain's any more: give their memory back to the host."""

    def time_info(self) -> bytes:
        """`struct vcpu_time_info` for now."""


class VcpuInfo:
    """The hypervisor's side of one virtual processor: its `struct vcpu_info`, wherever the guest has put it."""

    def __init__(self, index: int, info: memoryview) -> None:
        self.index = index
        self.info = info
        self.upcall_vector = 0
        self.callback_vector = 0
        self.polling: frozenset[int] | None = None
        self.is_registered = False
        self.blocked = False
        """Whether it waits for an event: set by what runs it, between SCHEDOP_block or SCHEDOP_poll and the event."""

    def move(self, info: memoryview) -> None:
        """VCPUOP_register_vcpu_info: the structure lives at `info` (64 bytes) from now on, with what it held."""
        info[:] = bytes(self.info)
        self.info = info
        self.is_registered = True


class Domain:
    """One domain. Fields that hold subsystems (`events`, `grants`) are set by the hypervisor that creates it."""

    events: EventChannels
    grants: GrantTable

    def __init__(
        self,
        domid: int,
        memory: GuestMemory,
        *,
        privileged: bool = False,
        vcpus: int = 1,
        max_pages: int | None = None,
        upcall: Upcall,
        config: DomainConfig | None = None,
    ) -> None:
        self.config = DomainConfig(max_vcpus=vcpus) if config is None else config
        self.handle = self.config.handle
        self.domid = domid
        self.memory = memory
        self.privileged = privileged
        self.state = State.CREATED
        self.pauses = 0
        self.watchdogs: dict[int, int] = {}
        """When each watchdog of the domain rings (SCHEDOP_watchdog), by its number, in nanoseconds of system time."""
        self.watched = False
        """Whether somebody looks after them."""
        self.claimed = 0
        """Pages that the toolstack has claimed for it (XENMEM_claim_pages)."""
        self.shutdown_reason: abi.ShutdownReason | None = None
        self.upcall = upcall
        self.max_pages = memory.size // PAGE if max_pages is None else max_pages
        self.references: set[object] = set()
        self.params: dict[int, int] = {}
        self.memory_map: tuple[tuple[int, int, int], ...] = ()
        self.online = {0}
        self._absent: set[int] = set()
        self.physmap = Physmap(memory, upcall.add_slot)
        self._added = self.physmap.pages
        self._shared_page = bytearray(PAGE)
        self.shared_info = memoryview(self._shared_page)
        self.shared_info_gfn: int | None = None
        self.vcpus = [VcpuInfo(i, self._vcpu_slot(i)) for i in range(vcpus)]
        self.on_gone: list[Callable[[Domain], None]] = []
        self.sites: tuple[Site, ...] = ()
        """Where the stream of events hears of the domain."""
        self.on_run: Callable[[bool], None] = lambda _: None
        """Called under the hypervisor's lock with whether processors may run from now on; after a False they stop soon,
        and it does not wait for that."""
        self.cpu_time: Callable[[int], int] = lambda _: 0
        """For how many nanoseconds processor n has run."""
        self.halts: Callable[[int], bool] = lambda _: False
        """Whether processor n waits for an interrupt (HLT)."""
        self.quiesce: Callable[[], None] | None = None
        """Returns once each processor has been between two instructions since it was called. Only for an engine that
        carries out a guest's locked instructions in several steps; called with the hypervisor's lock held."""
        self.run_now: Callable[[Callable[[], None]], None] = lambda wake: wake()
        """Called by a processor of another domain that can do nothing before this one has done something, with what
        wakes this one: if what runs this domain can use the calling thread, it does, as Xen's scheduler would give it
        the processor."""
        self.hold: Callable[[int], None] = lambda _: None
        """Somebody else is about to write a frame, until as many calls of `let_go`: a PV guest must not have it as a
        page table meanwhile. XenError(EINVAL) where it has. Both with the hypervisor's lock held."""
        self.let_go: Callable[[int], None] = lambda _: None
        self.hvm: HvmState | None = None
        """What an HVM domain has beside a PVH domain."""
        self.set_periodic_timer: Callable[[int, int | None], None] = lambda _, __: None
        """VCPUOP_set_periodic_timer of processor n: its period in nanoseconds, None to stop it."""
        self.send_nmi: Callable[[int], None] | None = None
        """Gives processor n a non-maskable interrupt; None where what runs the domain cannot."""

    def _vcpu_slot(self, index: int) -> memoryview:
        start = index * abi.SHARED_VCPU_INFO_SIZE
        return self.shared_info[start : start + abi.SHARED_VCPU_INFO_SIZE]

    @property
    def is_hvm(self) -> bool:
        """Whether it has paging of its own: a PVH or HVM domain. Dom0 is not, as far as others can tell."""
        return bool(self.config.flags & Cdf.HVM)

    def has_frame(self, gfn: int) -> bool:
        """Whether the domain has memory at `gfn`."""
        return gfn in self._added or (self._is_ram(gfn) and gfn not in self._absent) or self.physmap.is_foreign(gfn)

    def _is_ram(self, gfn: int, count: int = 1) -> bool:
        """Whether there is RAM at `gfn`, in the domain's hands or released."""
        start = gfn << abi.PAGE_SHIFT
        end = start + (count << abi.PAGE_SHIFT)
        return any(at <= start and end <= at + size for at, size in self.memory.ram_ranges)

    def frame(self, gfn: int) -> memoryview:
        """The 4096 bytes of guest frame `gfn`, in place. XenError(EINVAL) where the domain has none of its own."""
        added = self._added.get(gfn)
        return self.own_frame(gfn) if added is None else added

    def own_frame(self, gfn: int) -> memoryview:
        """Frame `gfn` if it is RAM and the domain's to give away: nothing that it asked for or has mapped. EINVAL."""
        # ballooned out: what the host has there now is nobody's, or another's that is mapped there
        if gfn in self._absent:
            raise XenError(Errno.EINVAL)
        try:
            view = self.memory.view(gfn << abi.PAGE_SHIFT, PAGE)
        except GuestAddressError:
            raise XenError(Errno.EINVAL) from None
        if view.obj is not self.memory.ram.view.obj:
            raise XenError(Errno.EINVAL)
        return view

    def frame_for(self, gfn: int) -> memoryview:
        """Frame `gfn`; a new one where the guest has no memory. EINVAL outside what a guest can address, ENOMEM."""
        try:
            return self.frame(gfn)
        except XenError:
            if gfn >= MAX_GFN:
                raise
        return self.physmap.page(gfn)

    def place_for(self, gfn: int) -> int:
        """`gfn`, where the domain has nothing, so that a frame of another can be put there. XenError(EINVAL)."""
        if gfn >= MAX_GFN or self.has_frame(gfn):
            raise XenError(Errno.EINVAL)
        return gfn

    @property
    def absent(self) -> set[int]:
        """The frames of its RAM that it has given up."""
        return self._absent

    @property
    def has_holes(self) -> bool:
        """Whether some frame of its RAM may not be its own: given up, or another's that is mapped there."""
        return bool(self._absent)

    @property
    def pages(self) -> int:
        """How many frames the domain has (XENMEM_current_reservation)."""
        return self.memory.size // PAGE - len(self._absent)

    @property
    def maximum_gpfn(self) -> int:
        """The highest frame number in use (XENMEM_maximum_gpfn)."""
        start, length = self.memory.ram_ranges[-1]
        return max((start + length) // PAGE - 1, *self._added) if self._added else (start + length) // PAGE - 1

    def release(self, gfn: int, count: int) -> bool:
        """XENMEM_decrease_reservation: frames go back to the host. False if one of them is not the domain's."""
        frames = range(gfn, gfn + count)
        if not self._is_ram(gfn, count) or not self._absent.isdisjoint(frames):
            return False
        self.grants.reclaim(gfn, count)
        self._absent.update(frames)
        self.upcall.released(gfn, count)
        return True

    def remove(self, gfn: int) -> bool:
        """XENMEM_remove_from_physmap: the guest has nothing at `gfn` any more. False if it had nothing."""
        if gfn not in self._added:
            return gfn < MAX_GFN and self.release(gfn, 1)
        del self._added[gfn]  # the page stays where it is, and is nobody's
        self.grants.reclaim(gfn)
        if gfn == self.shared_info_gfn:
            self.move_shared_info(memoryview(bytearray(PAGE)))
        return True

    def populate(self, gfn: int, count: int) -> bool:
        """XENMEM_populate_physmap: frames that were released are the domain's again. False where that cannot be."""
        frames = set(range(gfn, gfn + count))
        taken = any(frame in self._added or self.physmap.is_foreign(frame) for frame in frames)
        if not frames <= self._absent or taken or self.pages + count > self.max_pages:
            return False
        self._absent -= frames
        self.upcall.populated(gfn, count)
        return True

    # ---------------------------------------------------------------- life

    @property
    def alive(self) -> bool:
        """Whether it is neither dying nor gone."""
        return self.state not in (State.DYING, State.GONE)

    @property
    def runnable(self) -> bool:
        """Whether its processors may run guest code."""
        return self.state is State.RUNNING

    def pause(self) -> None:
        """XEN_DOMCTL_pausedomain: it runs again after as many `unpause`. EINVAL where that is too often to count."""
        if self.pauses >= MAX_PAUSES:
            raise XenError(Errno.EINVAL)
        self.pauses += 1
        if self.state in (State.RUNNING, State.CREATED):
            self._turn(State.PAUSED)

    def unpause(self) -> None:
        """XEN_DOMCTL_unpausedomain. XenError(EINVAL) where it is not paused."""
        if not self.pauses:
            raise XenError(Errno.EINVAL)
        self.pauses -= 1
        if not self.pauses and self.state is State.PAUSED:
            self._turn(State.RUNNING)

    def shutdown(self, reason: abi.ShutdownReason) -> None:
        """SCHEDOP_shutdown: nothing of it runs until `resume`."""
        self.shutdown_reason = reason
        self._turn(State.SHUTDOWN)

    def resume(self) -> None:
        """XEN_DOMCTL_resumedomain: it has not shut down after all, as after a suspend that was given up."""
        if self.state is State.SHUTDOWN:
            self.shutdown_reason = None
            self._turn(State.PAUSED if self.pauses else State.RUNNING)

    def die(self) -> None:
        """It runs no more, whatever happens."""
        self._turn(State.DYING)

    def _turn(self, state: State) -> None:
        ran = self.runnable
        self.state = state
        if self.runnable != ran or state is State.DYING:
            self.on_run(self.runnable)

    def waits(self, vcpu: int) -> bool:
        """Whether a processor waits for an event or an interrupt."""
        return self.vcpus[vcpu].blocked or self.halts(vcpu)

    def block(self, vcpu: int, ports: tuple[int, ...] | None, deadline: int | None) -> None:
        """SCHEDOP_block and SCHEDOP_poll."""
        self.vcpus[vcpu].polling = None if ports is None else frozenset(ports)
        self.upcall.block(vcpu, ports, deadline)

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """VCPUOP_set_singleshot_timer."""
        self.upcall.set_timer(vcpu, deadline)

    def register_vcpu_info(self, index: int, info: memoryview) -> None:
        """VCPUOP_register_vcpu_info: an event may have been missed in the move, so one is made pending, as Xen does."""
        vcpu = self.vcpus[index]
        vcpu.move(info)
        self.write_time(index)
        if not (vcpu.upcall_vector or vcpu.callback_vector or info[abi.VCPU_UPCALL_PENDING]):
            return  # nothing could be missed yet, and an upcall to a guest without a vector would be its last
        info[abi.VCPU_PENDING_SEL : abi.VCPU_PENDING_SEL + 8] = b"\xff" * 8
        info[abi.VCPU_UPCALL_PENDING] = 1
        self.upcall.event(index)

    def write_time(self, index: int) -> None:
        """Bring `vcpu_time_info` of a processor up to date; its version is odd while it changes."""
        info = self.vcpus[index].info
        at = abi.VCPU_TIME
        version = int.from_bytes(info[at : at + 4], "little") + 2 & 0xFFFF_FFFE
        info[at : at + 4] = (version - 1 & 0xFFFF_FFFF).to_bytes(4, "little")
        info[at + 4 : at + abi.VCPU_TIME_INFO.size] = self.upcall.time_info()[4:]
        info[at : at + 4] = version.to_bytes(4, "little")

    def move_shared_info(self, page: memoryview, gfn: int | None = None) -> None:
        """XENMAPSPACE_shared_info: `struct shared_info` lives in `page`, frame `gfn`, with what it held."""
        self.shared_info_gfn = gfn
        page[:] = bytes(self.shared_info)
        inside = [vcpu for i, vcpu in enumerate(self.vcpus) if vcpu.info.obj is self.shared_info.obj]
        self.shared_info = page
        for vcpu in inside:
            vcpu.info = self._vcpu_slot(vcpu.index)
