"""Event channels (event_channel.h): a domain's ports and the operations on them, with the errors of Xen 4.17.

What changes ports or raises events runs under the hypervisor's lock, so nothing here locks. Guest code holds no lock
and changes pending and mask bits at any time: these are changed by atomic instructions only (`memory/atomics.py`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bivisor.abi.xen import event_channel as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import EvtchnStat
from bivisor.abi.xen.xen import DOMID_SELF, NR_VIRQS, PER_VCPU_VIRQS
from bivisor.memory.atomics import Atomics, atomics
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import XenError
from bivisor.xen.events_2l import TwoLevel
from bivisor.xen.events_fifo import Fifo
from bivisor.xen.upcalls import Channel, EventAbi, Upcalls

PORTS_PER_BUCKET = 64
"""Ports come into being by so many at a time, as in Xen: one beyond them is -EINVAL where a closed one is not."""


DEFAULT_MAX_PORT = 1023
"""The highest port of a domain without privilege, unless its configuration says otherwise (`event_channels`)."""


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """EVTCHNOP_status: `remote` is the other domain, `remote_port` its port, as far as `status` has them."""

    status: EvtchnStat
    vcpu: int
    remote: int = 0
    remote_port: int = 0
    virq: int = 0


class EventChannels:
    """The ports of `domain`. `find_domain` finds another by its id, or raises XenError(ESRCH).

    The methods that are named as an operation EVTCHNOP_* are called by `domain` itself, with decoded arguments.
    """

    def __init__(
        self,
        domain: Domain,
        find_domain: Callable[[int], Domain],
        *,
        max_port: int | None = None,
        operations: Atomics | None = None,
    ) -> None:
        self.defer: Callable[[Callable[[], None]], bool] | None = None
        """Takes an event to be raised later on the processor's own thread, or answers False: for an engine on which a
        guest's locked instructions are not atomic against other threads. Called and done with Xen's lock held."""
        self.on_send: Callable[[str, int, Channel], bool] | None = None
        """Somebody listens: called with what sends ("send", "notify", "virq"), from which port, and to which channel,
        before it does. False: it does not."""
        self.domain = domain
        if max_port is None:
            max_port = abi.EVTCHN_FIFO_NR_CHANNELS - 1 if domain.privileged else DEFAULT_MAX_PORT
        self.max_port = max_port
        self._find_domain = find_domain
        self._atomics = atomics() if operations is None else operations
        self._upcalls = Upcalls(domain, self._atomics)
        self._abi: EventAbi = TwoLevel(domain, self._upcalls, self._atomics)
        self._ports: list[Channel] = []
        self._free: list[int] = []
        self._virqs: dict[tuple[int, int], Channel] = {}
        self._grow()
        self._free.remove(0)  # a port for which nobody can ask: 0 means none

    @property
    def open_ports(self) -> int:
        """How many ports are not closed."""
        return len(self._ports) - len(self._free) - 1

    # ---------------------------------------------------------------- ports

    def _grow(self) -> None:
        start = len(self._ports)
        self._ports += [Channel(self.domain, port) for port in range(start, start + PORTS_PER_BUCKET)]
        self._free += range(start, start + PORTS_PER_BUCKET)

    def _find_free(self) -> int:
        """The lowest port that can be given out. EINVAL in a dying domain, ENOSPC."""
        if self.domain.state in (State.DYING, State.GONE):
            raise XenError(Errno.EINVAL)
        limit = min(self._abi.limit, self.max_port + 1)
        free = next((port for port in self._free if not self._abi.is_busy(port)), len(self._ports))
        if free >= limit:
            raise XenError(Errno.ENOSPC)
        if free == len(self._ports):
            self._grow()
        return free

    def _open(self, port: int, status: EvtchnStat, vcpu: int = 0) -> Channel:
        self._free.remove(port)
        channel = self._ports[port]
        channel.status = status
        channel.vcpu = vcpu
        return channel

    def _channel(self, port: int) -> Channel:
        """EINVAL where there has never been such a port."""
        if not 0 <= port < len(self._ports):
            raise XenError(Errno.EINVAL)
        return self._ports[port]

    def _own(self, port: int) -> Channel:
        """EINVAL where there has never been such a port, or it is the hypervisor's own."""
        channel = self._channel(port)
        if channel.consumer is not None:
            raise XenError(Errno.EINVAL)
        return channel

    def _check_vcpu(self, vcpu: int) -> None:
        if not 0 <= vcpu < len(self.domain.vcpus):
            raise XenError(Errno.ENOENT)

    def _target(self, domid: int) -> Domain:
        """The domain that the caller names: itself, or another for a privileged one. ESRCH, EPERM."""
        if domid in (DOMID_SELF, self.domain.domid):
            return self.domain
        found = self._find_domain(domid)
        if not self.domain.privileged:
            raise XenError(Errno.EPERM)
        return found

    # ---------------------------------------------------------------- binding

    def alloc_unbound(self, domid: int, remote: int) -> int:
        """A new port of domain `domid`, to which domain `remote` may bind. ESRCH, EPERM, ENOSPC."""
        events = self._target(domid).events
        channel = events._open(events._find_free(), EvtchnStat.UNBOUND)
        channel.remote_domid = self.domain.domid if remote == DOMID_SELF else remote
        return channel.port

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """A new port, bound to `remote_port` of domain `remote`, which waits for the caller. ESRCH, ENOSPC, EINVAL.

        It is pending at once: the other end may have sent before there was anybody to hear.
        """
        there = self.domain if remote in (DOMID_SELF, self.domain.domid) else self._find_domain(remote)
        port = self._find_free()
        peer = there.events._channel(remote_port)
        # reserved for the caller: no domain takes a port that was meant for another
        if peer.status is not EvtchnStat.UNBOUND or peer.remote_domid != self.domain.domid:
            raise XenError(Errno.EINVAL)
        channel = self._open(port, EvtchnStat.INTERDOMAIN)
        peer.status = EvtchnStat.INTERDOMAIN
        channel.peer, channel.remote_domid = peer, there.domid
        peer.peer = channel
        there.references.add(channel)
        self.domain.references.add(peer)
        self._raise(channel)
        return port

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """A new port for virtual interrupt `virq` of `vcpu` (0 for a global one). EINVAL, ENOENT, EEXIST, ENOSPC."""
        if not 0 <= virq < NR_VIRQS or (virq not in PER_VCPU_VIRQS and vcpu != 0):
            raise XenError(Errno.EINVAL)
        self._check_vcpu(vcpu)
        if (virq, vcpu) in self._virqs:
            raise XenError(Errno.EEXIST)
        channel = self._open(self._find_free(), EvtchnStat.VIRQ, vcpu)
        channel.virq = virq
        self._virqs[virq, vcpu] = channel
        return channel.port

    def bind_ipi(self, vcpu: int) -> int:
        """A new port that interrupts `vcpu` when the domain itself sends to it. ENOENT, ENOSPC."""
        self._check_vcpu(vcpu)
        return self._open(self._find_free(), EvtchnStat.IPI, vcpu).port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """Events of `port` go to `vcpu` from now on. ENOENT; EINVAL where it belongs to one processor for good."""
        self._check_vcpu(vcpu)
        channel = self._own(port)
        match channel.status:
            case EvtchnStat.UNBOUND | EvtchnStat.INTERDOMAIN:
                pass
            case EvtchnStat.VIRQ if channel.virq not in PER_VCPU_VIRQS:
                pass
            case _:
                raise XenError(Errno.EINVAL)
        channel.vcpu = vcpu

    def alloc_for_xen(self, remote: int, consumer: Callable[[], None]) -> int:
        """A port of this domain that is the hypervisor's: domain `remote` binds to it, and `consumer` is called, under
        the hypervisor's lock, when it sends. The domain itself can do nothing with it. ENOSPC."""
        channel = self._open(self._find_free(), EvtchnStat.UNBOUND)
        channel.remote_domid = remote
        channel.consumer = consumer
        return channel.port

    def close_for_xen(self, port: int) -> None:
        """Close a port of `alloc_for_xen`; nothing to do where the domain has gone before."""
        channel = self._channel(port)
        if channel.consumer is not None:
            channel.consumer = None
            self.close(port)

    def send_from_xen(self, port: int) -> None:
        """An event for whoever has bound a port of `alloc_for_xen`."""
        peer = self._channel(port).peer
        if peer is not None:
            peer.owner.events._raise(peer)

    def close(self, port: int) -> None:
        """Close `port`; the other end of an interdomain channel waits for a new connection. EINVAL if it is closed."""
        channel = self._own(port)
        match channel.status:
            case EvtchnStat.CLOSED:
                raise XenError(Errno.EINVAL)
            case EvtchnStat.INTERDOMAIN:
                self._disconnect(channel)
            case EvtchnStat.VIRQ:
                self._virqs = {key: other for key, other in self._virqs.items() if other is not channel}
        self._abi.clear_pending(channel)
        channel.clear()
        insort(self._free, port)

    def _disconnect(self, channel: Channel) -> None:
        peer = channel.peer
        assert peer is not None
        peer.owner.references.discard(channel)
        self.domain.references.discard(peer)
        peer.status = EvtchnStat.UNBOUND
        peer.peer = None
        peer.remote_domid = self.domain.domid

    def reset(self, domid: int = DOMID_SELF) -> None:
        """Close every port of `domid`, go back to the 2-level ABI. ESRCH, EPERM; EINVAL if it is another that runs."""
        target = self._target(domid)
        if target is not self.domain and target.state is State.RUNNING:
            raise XenError(Errno.EINVAL)
        events = target.events
        events._close_all()
        events._abi.close()
        events._abi = TwoLevel(target, events._upcalls, events._atomics)

    def _close_all(self) -> None:
        for channel in self._ports:
            if channel.status is not EvtchnStat.CLOSED and channel.consumer is None:
                self.close(channel.port)

    def destroy(self) -> None:
        """The domain dies: every port closes, and its memory is not touched from here any more."""
        for channel in self._ports:
            channel.consumer = None
        self._close_all()
        self._abi.close()
        self._upcalls.close()

    # ---------------------------------------------------------------- events

    def _raise(self, channel: Channel) -> None:
        """Every event of this domain comes through here, from whatever thread."""
        if channel.consumer is not None:
            channel.consumer()
            return
        if self.defer is None or not self.defer(lambda: self._raise_now(channel)):
            self._abi.set_pending(channel)

    def _raise_now(self, channel: Channel) -> None:
        if channel.status is not EvtchnStat.CLOSED:  # it may have been closed while this waited
            self._abi.set_pending(channel)

    def send(self, port: int) -> None:
        """An event for the other end of `port`; to one that nobody has bound it is lost. EINVAL for any other kind."""
        channel = self._own(port)
        match channel.status:
            case EvtchnStat.INTERDOMAIN:
                peer = channel.peer
                assert peer is not None
                if self.on_send is None or self.on_send("send", port, peer):
                    peer.owner.events._raise(peer)
            case EvtchnStat.IPI:
                if self.on_send is None or self.on_send("send", port, channel):
                    self._raise(channel)
            case EvtchnStat.UNBOUND:
                pass
            case _:
                raise XenError(Errno.EINVAL)

    def notify(self, port: int) -> None:
        """The hypervisor itself raises an event at `port` of this domain. Nothing happens where it is closed."""
        channel = self._channel(port)
        if channel.status is not EvtchnStat.CLOSED and (self.on_send is None or self.on_send("notify", 0, channel)):
            self._raise(channel)

    def arrive(self, channel: Channel) -> None:
        """An event arrives at `channel` of this domain that was held up."""
        if channel.status is not EvtchnStat.CLOSED:
            self._raise(channel)

    def raise_virq(self, virq: int, vcpu: int = 0) -> None:
        """Virtual interrupt `virq` of `vcpu` (or a global one) occurs. It is lost where no port is bound to it."""
        channel = self._virqs.get((virq, vcpu if virq in PER_VCPU_VIRQS else 0))
        if channel is None or (self.on_send is not None and not self.on_send("virq", 0, channel)):
            return
        if self.defer is None and channel.consumer is None:
            self._abi.set_pending(channel)  # as `_raise` does: a tick takes as few steps as can be
        else:
            self._raise(channel)

    def unmask(self, port: int) -> None:
        """Unmask `port`, and tell its processor if an event is pending. EINVAL."""
        channel = self._channel(port)
        if channel.status is not EvtchnStat.CLOSED:
            self._abi.unmask(channel)

    def status(self, domid: int, port: int) -> ChannelStatus:
        """What `port` of domain `domid` is. ESRCH, EPERM, EINVAL."""
        channel = self._target(domid).events._channel(port)
        remote_port = channel.peer.port if channel.peer is not None else 0
        return ChannelStatus(channel.status, channel.vcpu, channel.remote_domid, remote_port, channel.virq)

    def listing(self) -> dict[int, ChannelStatus]:
        """Each port that is not closed, and what `status` says of it. For a person who looks; the lock held."""
        return {
            channel.port: self.status(DOMID_SELF, channel.port)
            for channel in self._ports
            if channel.status is not EvtchnStat.CLOSED
        }

    # ---------------------------------------------------------------- waiting

    def pending(self, vcpu: int) -> bool:
        """Whether `vcpu` has an upcall to take, so that it must not block."""
        return self._upcalls.is_marked(vcpu)

    def any_pending(self, ports: Iterable[int]) -> bool:
        """SCHEDOP_poll: whether one of `ports` is pending, masked or not. EINVAL where one has never been."""
        for port in ports:
            if not self._channel(port).port:
                raise XenError(Errno.EINVAL)
        return any(self._abi.is_pending(port) for port in ports)

    # ---------------------------------------------------------------- the FIFO ABI

    def init_control(self, control_gfn: int, offset: int, vcpu: int) -> int:
        """The control block of `vcpu`; the first turns the FIFO ABI on. The width of LINK. ENOENT, EINVAL."""
        self._check_vcpu(vcpu)
        if isinstance(self._abi, Fifo):
            self._abi.init_control(vcpu, control_gfn, offset)
            return abi.EVTCHN_FIFO_LINK_BITS
        fifo = Fifo(self.domain, self._upcalls, self._atomics)
        fifo.init_control(vcpu, control_gfn, offset)
        for channel in self._ports:
            if channel.status is not EvtchnStat.CLOSED and channel.port < self._abi.limit:
                channel.pending = self._abi.is_pending(channel.port)
        self._abi.close()
        self._abi = fifo
        return abi.EVTCHN_FIFO_LINK_BITS

    def expand_array(self, array_gfn: int) -> None:
        """One more page of event words. EOPNOTSUPP with the 2-level ABI, EINVAL, ENOSPC."""
        if not isinstance(self._abi, Fifo):
            raise XenError(Errno.EOPNOTSUPP)
        ports = self._abi.expand_array(array_gfn)
        for channel in self._ports[ports.start : ports.stop]:
            if channel.pending:
                channel.pending = False
                self._abi.set_pending(channel)

    def set_priority(self, port: int, priority: int) -> None:
        """Later events of `port` go to queue `priority`. EINVAL; ENOSYS with the 2-level ABI; EACCES if closed."""
        channel = self._channel(port)
        if not isinstance(self._abi, Fifo):
            raise XenError(Errno.ENOSYS)
        if channel.status is EvtchnStat.CLOSED:
            raise XenError(Errno.EACCES)
        if not abi.EVTCHN_FIFO_PRIORITY_MAX <= priority <= abi.EVTCHN_FIFO_PRIORITY_MIN:
            raise XenError(Errno.EINVAL)
        channel.priority = priority
