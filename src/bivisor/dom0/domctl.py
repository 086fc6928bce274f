"""Domains and the hypervisor as Dom0's toolstack sees them: domctl and sysctl as methods (what libxenctrl is in C).

Each call writes Xen's structure into Dom0's own memory, makes the hypercall, and reads the answer there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bivisor.abi.xen import domctl, sysctl
from bivisor.abi.xen.domctl import Domctl, Dominf, Trigger
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import ALLOC_UNBOUND, EvtchnOp
from bivisor.abi.xen.sysctl import Sysctl
from bivisor.abi.xen.xen import HVM_PARAM, HvmOp, Hypercall, ShutdownReason
from bivisor.memory import PAGE
from bivisor.xen.config import DomainConfig
from bivisor.xen.errors import XenError

ROOM = 8 * PAGE
"""How much of Dom0's memory `Domains` needs."""

_BUFFER = 1024
_LIST = (ROOM - _BUFFER) // domctl.GETDOMAININFO.size


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """XEN_DOMCTL_getdomaininfo. `shutdown_reason` is None for a domain that has not shut down; times in ns."""

    domid: int
    flags: Dominf
    tot_pages: int
    max_pages: int
    shared_info_frame: int
    cpu_time: int
    nr_online_vcpus: int
    max_vcpu_id: int
    handle: uuid.UUID
    shutdown_reason: ShutdownReason | None

    @property
    def letters(self) -> str:
        """Running, blocked, paused, shut down, crashed, dying: the column "State" of `xl list`."""
        crashed = self.shutdown_reason is ShutdownReason.CRASH
        shut_down = Dominf.SHUTDOWN in self.flags and not crashed
        marks = (
            ("r", Dominf.RUNNING in self.flags),
            ("b", Dominf.BLOCKED in self.flags),
            ("p", Dominf.PAUSED in self.flags),
            ("s", shut_down),
            ("c", crashed),
            ("d", Dominf.DYING in self.flags),
        )
        return "".join(letter if is_so else "-" for letter, is_so in marks)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> DomainInfo:
        """From `struct xen_domctl_getdomaininfo`."""
        fields = domctl.GETDOMAININFO.unpack_from(data)
        domid, flags, tot, most, _, _, _, frame, cpu_time, online, top, _, handle, *_ = fields
        reason = None
        if flags & Dominf.SHUTDOWN:
            reason = ShutdownReason(flags >> domctl.DOMINF_SHUTDOWN_SHIFT & domctl.DOMINF_SHUTDOWN_MASK)
        known = Dominf(flags & (1 << domctl.DOMINF_SHUTDOWN_SHIFT) - 1)
        return cls(domid, known, tot, most, frame, cpu_time, online, top, uuid.UUID(bytes=handle), reason)


@dataclass(frozen=True, slots=True)
class VcpuState:
    """XEN_DOMCTL_getvcpuinfo. `cpu_time` in nanoseconds."""

    vcpu: int
    online: bool
    blocked: bool
    running: bool
    cpu_time: int
    cpu: int


@dataclass(frozen=True, slots=True)
class PhysInfo:
    """XEN_SYSCTL_physinfo, as far as this hypervisor has something to say."""

    threads_per_core: int
    cores_per_socket: int
    nr_cpus: int
    max_cpu_id: int
    nr_nodes: int
    cpu_khz: int
    capabilities: sysctl.Physcap
    total_pages: int
    free_pages: int


class Domains:
    """The domains of the host, by domctl; the host, by sysctl. XenError with Xen's number where one refuses."""

    def __init__(
        self, hypercall: Callable[..., int], lock: AbstractContextManager[object], room: memoryview, address: int
    ) -> None:
        """`room` is `ROOM` bytes of Dom0's memory, at `address`, for the structures of `hypercall`s, one at a time."""
        self._hypercall = hypercall
        self._room = room
        self._address = address
        self._lock = lock

    def _domctl(self, cmd: Domctl, domid: int, union: bytes = b"") -> tuple[int, bytes]:
        """The domain that the hypervisor answers for, and the union of the answer."""
        room = self._room
        with self._lock:
            domctl.HEADER.pack_into(room, 0, cmd, domctl.INTERFACE_VERSION, domid)
            room[domctl.HEADER.size : domctl.SIZE] = union.ljust(domctl.UNION_SIZE, b"\0")
            _check(self._hypercall(Hypercall.DOMCTL, self._address))
            _, _, answered = domctl.HEADER.unpack_from(room)
            return answered, bytes(room[domctl.HEADER.size : domctl.SIZE])

    def _sysctl(self, cmd: Sysctl, union: bytes) -> tuple[bytes, bytes]:
        """The union of the answer, and what the buffer holds that it was told of (`_buffer`)."""
        room = self._room
        with self._lock:
            sysctl.HEADER.pack_into(room, 0, cmd, sysctl.INTERFACE_VERSION)
            room[sysctl.HEADER.size : sysctl.SIZE] = union.ljust(sysctl.UNION_SIZE, b"\0")
            _check(self._hypercall(Hypercall.SYSCTL, self._address))
            return bytes(room[sysctl.HEADER.size : sysctl.SIZE]), bytes(room[_BUFFER:])

    @property
    def _buffer(self) -> int:
        return self._address + _BUFFER

    # ---------------------------------------------------------------- life

    def create(self, config: DomainConfig, domid: int = 0) -> int:
        """A new domain, paused: its id, which is `domid` unless that is 0. EEXIST, EINVAL.

        ENOMEM unless a builder has offered what it is made of, under `config.handle` (`Xen.offer`).
        """
        created, _ = self._domctl(Domctl.CREATEDOMAIN, domid, config.pack())
        self._domctl(Domctl.MAX_VCPUS, created, domctl.MAX_VCPUS.pack(config.max_vcpus))
        return created

    def destroy(self, domid: int) -> None:
        """The domain dies at once. It is gone when nobody has anything of it mapped any more."""
        self._domctl(Domctl.DESTROYDOMAIN, domid)

    def pause(self, domid: int) -> None:
        """Its processors stop, until as many `unpause`."""
        self._domctl(Domctl.PAUSEDOMAIN, domid)

    def unpause(self, domid: int) -> None:
        """Undo one `pause`, or the pause that a domain begins its life with. EINVAL where it is not paused."""
        self._domctl(Domctl.UNPAUSEDOMAIN, domid)

    def resume(self, domid: int) -> None:
        """A domain that has shut down goes on."""
        self._domctl(Domctl.RESUMEDOMAIN, domid)

    def trigger(self, domid: int, trigger: Trigger, vcpu: int = 0) -> None:
        """An NMI for one of its processors; what else there is in Xen has no meaning for a PVH domain. ENOSYS."""
        self._domctl(Domctl.SENDTRIGGER, domid, domctl.SENDTRIGGER.pack(trigger, vcpu))

    # ---------------------------------------------------------------- what it is

    def info(self, domid: int) -> DomainInfo:
        """What the hypervisor knows of the domain. ESRCH."""
        answered, union = self._domctl(Domctl.GETDOMAININFO, domid)
        if answered != domid:  # the hypervisor gives the next one
            raise XenError(Errno.ESRCH)
        return DomainInfo.unpack(union)

    def list(self) -> list[DomainInfo]:
        """All domains, dying ones too, by their ids."""
        return list(self._list())

    def _list(self) -> Iterator[DomainInfo]:
        first, size = 0, domctl.GETDOMAININFO.size
        while True:
            wanted = sysctl.GETDOMAININFOLIST.pack(first, _LIST, self._buffer, 0)
            union, data = self._sysctl(Sysctl.GETDOMAININFOLIST, wanted)
            count = sysctl.GETDOMAININFOLIST.unpack_from(union)[3]
            found = [DomainInfo.unpack(data[size * i : size * (i + 1)]) for i in range(count)]
            yield from found
            if count < _LIST:
                return
            first = found[-1].domid + 1

    def vcpu(self, domid: int, vcpu: int) -> VcpuState:
        """One of its processors. ESRCH, EINVAL."""
        _, union = self._domctl(Domctl.GETVCPUINFO, domid, domctl.GETVCPUINFO.pack(vcpu, 0, 0, 0, 0, 0))
        index, online, blocked, running, time, cpu = domctl.GETVCPUINFO.unpack_from(union)
        return VcpuState(index, bool(online), bool(blocked), bool(running), time, cpu)

    def set_max_mem(self, domid: int, kib: int) -> None:
        """How much memory it may have at most, in KiB."""
        self._domctl(Domctl.MAX_MEM, domid, domctl.MAX_MEM.pack(kib))

    def set_handle(self, domid: int, handle: uuid.UUID) -> None:
        """Give it another UUID."""
        self._domctl(Domctl.SETDOMAINHANDLE, domid, handle.bytes)

    # ---------------------------------------------------------------- what it is given

    def set_hvm_param(self, domid: int, index: int, value: int) -> None:
        """HVMOP_set_param: one of `HvmParam`. ESRCH, EINVAL."""
        with self._lock:
            HVM_PARAM.pack_into(self._room, 0, domid, index, value)
            _check(self._hypercall(Hypercall.HVM_OP, HvmOp.SET_PARAM, self._address))

    def hvm_param(self, domid: int, index: int) -> int:
        """HVMOP_get_param. ESRCH, EINVAL."""
        with self._lock:
            HVM_PARAM.pack_into(self._room, 0, domid, index, 0)
            _check(self._hypercall(Hypercall.HVM_OP, HvmOp.GET_PARAM, self._address))
            return int(HVM_PARAM.unpack_from(self._room)[2])

    def alloc_unbound(self, domid: int, remote: int) -> int:
        """EVTCHNOP_alloc_unbound: a port of `domid`, to which `remote` may bind. ESRCH, ENOSPC."""
        with self._lock:
            ALLOC_UNBOUND.pack_into(self._room, 0, domid, remote, 0)
            _check(self._hypercall(Hypercall.EVENT_CHANNEL_OP, EvtchnOp.ALLOC_UNBOUND, self._address))
            return int(ALLOC_UNBOUND.unpack_from(self._room)[2])

    # ---------------------------------------------------------------- the host

    def physinfo(self) -> PhysInfo:
        """The host's processors and memory."""
        fields = sysctl.PHYSINFO.unpack_from(self._sysctl(Sysctl.PHYSINFO, b"")[0])
        threads, cores, cpus, top, nodes, _, khz, capabilities, _, total, free, *_ = fields
        return PhysInfo(threads, cores, cpus, top, nodes, khz, sysctl.Physcap(capabilities), total, free)

    def read_console(self, *, clear: bool = False, index: int | None = None) -> tuple[bytes, int]:
        """What the hypervisor's console ring holds, from `index` on if that is given; and the index after it."""
        incremental = index is not None
        wanted = sysctl.READCONSOLE.pack(clear, incremental, index or 0, self._buffer, ROOM - _BUFFER)
        union, data = self._sysctl(Sysctl.READCONSOLE, wanted)
        _, _, end, _, count = sysctl.READCONSOLE.unpack_from(union)
        return data[:count], end

    def close(self) -> None:
        """Let go of Dom0's memory."""
        self._room.release()


def _check(result: int) -> None:
    if result < 0:
        raise XenError(Errno(-result))
