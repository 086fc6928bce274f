"""The hypercalls by which a PV guest changes its page tables (xen.h): mmu_update, mmuext_op, update_va_mapping."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bivisor.abi.xen import pv as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.pv import MmuExt
from bivisor.abi.xen.xen import DOMID_IO, DOMID_SELF
from bivisor.memory import PAGE
from bivisor.xen.call import Preempted
from bivisor.xen.errors import XenError
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.machine import PvMachine
from bivisor.xen.pv.pages import L1, WRITABLE
from bivisor.xen.pv.vcpus import processors_of

_BATCH = 512
"""Entries between which other processors get the hypervisor's lock."""

_SOME = frozenset((MmuExt.TLB_FLUSH_MULTI, MmuExt.INVLPG_MULTI))
_COUNT = struct.Struct("<I")
_IN_PAGE = PAGE - 1
_UPDATE, _SIZE = abi.MMU_UPDATE.unpack_from, abi.MMU_UPDATE.size


def _own_tables(call: PvCall, domains: int) -> None:
    """The low half names who owns the frames, the high half, less 1, who owns the tables. ESRCH, EPERM, EINVAL."""
    frames, tables = domains & 0xFFFF, domains >> 16
    if tables and tables - 1 not in (call.domain.domid, DOMID_SELF):
        call.hypervisor.target(call.domain, tables - 1)
        raise XenError(Errno.EINVAL)
    if frames not in (DOMID_SELF, call.domain.domid):
        if frames != DOMID_IO:
            call.hypervisor.target(call.domain, frames)
        raise XenError(Errno.EPERM)


def mmu_update(call: PvCall, list_: int, count: int, done_at: int = 0, domains: int = DOMID_SELF, *_: int) -> int:
    """HYPERVISOR_mmu_update(list, count, done, domains): stops at the first that is wrong."""
    if count == 1 and not done_at and domains == DOMID_SELF and list_ & _IN_PAGE <= PAGE - _SIZE and not list_ & 7:
        # what kernels do most of the time
        machine = call.machine
        pages = machine.pages
        at = pages.translate(machine.root, list_)
        if at is None:
            raise XenError(Errno.EFAULT)
        at >>= 3
        try:
            address, value = pages.words[at], pages.words[at + 1]
        except IndexError:
            raise XenError(Errno.EFAULT) from None
        kind = address & 3
        if kind != abi.MMU_MACHPHYS_UPDATE or address & 4:
            pages.update(address & -4, value, kind == abi.MMU_PT_UPDATE_PRESERVE_AD)
            return 0
    count &= 0xFFFF_FFFF
    if domains != DOMID_SELF:
        _own_tables(call, domains & 0xFFFF_FFFF)
    part = min(count, _BATCH)
    done = 0
    update = call.machine.pages.update
    try:
        data = call.read(list_, _SIZE * part)
        for at in range(0, _SIZE * part, _SIZE):
            address, value = _UPDATE(data, at)
            kind = address & 3
            if kind != abi.MMU_MACHPHYS_UPDATE or address & 4:
                update(address & -4, value, kind == abi.MMU_PT_UPDATE_PRESERVE_AD)
            else:
                _machphys(call.machine, address >> 12, value)
            done += 1
    finally:
        if done_at:
            call.write(done_at, _COUNT.pack(done))
    if part < count:
        raise Preempted(list_ + _SIZE * part, count - part, 0, domains)
    return 0


def _machphys(machine: PvMachine, mfn: int, pfn: int) -> None:
    if not machine.pages.has(mfn):
        raise XenError(Errno.EINVAL)
    machine.frames.private.m2p[mfn] = pfn


def update_va_mapping(call: PvCall, va: int, value: int, flags: int, *_: int) -> int:
    """HYPERVISOR_update_va_mapping(va, entry, flags)."""
    machine = call.machine
    pages = machine.pages
    index = pages.l1_index(machine.root, va)
    if index is None or pages.kind[index >> 9] != L1:
        raise XenError(Errno.EINVAL)
    pages.set_l1(index, value)
    match flags & abi.UVMF_FLUSHTYPE_MASK:
        case abi.UVMF_INVLPG:
            machine.cpu.flush_page(va)
        case abi.UVMF_TLB_FLUSH:
            machine.cpu.flush_tlb()
    return 0


def update_va_mapping_otherdomain(call: PvCall, va: int, value: int, flags: int, domid: int, *_: int) -> int:
    """HYPERVISOR_update_va_mapping_otherdomain(va, entry, flags, domid)."""
    _own_tables(call, domid & 0xFFFF)
    return update_va_mapping(call, va, value, flags)


def _pin(level: int) -> Callable[[PvMachine, int, int], None]:
    return lambda machine, mfn, _: machine.pages.pin(mfn, level)


def _clear(machine: PvMachine, mfn: int, _: int) -> None:
    machine.pages.get(mfn, WRITABLE)
    machine.domain.memory.write(mfn * PAGE, bytes(PAGE))
    machine.pages.put(mfn)


def _copy(machine: PvMachine, mfn: int, source: int) -> None:
    if not machine.pages.has(source):
        raise XenError(Errno.EINVAL)
    machine.pages.get(mfn, WRITABLE)
    machine.domain.memory.write(mfn * PAGE, machine.domain.memory.read(source * PAGE, PAGE))
    machine.pages.put(mfn)


def _set_ldt(machine: PvMachine, address: int, entries: int) -> None:
    entries &= 0xFFFF_FFFF
    if address & PAGE - 1 or entries > abi.MAX_LDT_ENTRIES:
        raise XenError(Errno.EINVAL)
    machine.set_ldt(address, entries)


def _flush(machine: PvMachine, _: int, __: int) -> None:
    machine.cpu.flush_tlb()


def _flush_page(machine: PvMachine, va: int, _: int) -> None:
    machine.cpu.flush_page(va)


def _nothing(_: PvMachine, __: int, ___: int) -> None:
    pass


def _refuse(errno: Errno) -> Callable[[PvMachine, int, int], None]:
    def op(_: PvMachine, __: int, ___: int) -> None:
        raise XenError(errno)

    return op


_EXT: dict[int, Callable[[PvMachine, int, int], None]] = {
    MmuExt.PIN_L1_TABLE: _pin(1),
    MmuExt.PIN_L2_TABLE: _pin(2),
    MmuExt.PIN_L3_TABLE: _pin(3),
    MmuExt.PIN_L4_TABLE: _pin(4),
    MmuExt.UNPIN_TABLE: lambda machine, mfn, _: machine.pages.unpin(mfn),
    MmuExt.NEW_BASEPTR: lambda machine, mfn, _: machine.new_root(mfn),
    MmuExt.NEW_USER_BASEPTR: lambda machine, mfn, _: machine.new_user_root(mfn),
    MmuExt.TLB_FLUSH_LOCAL: _flush,
    MmuExt.TLB_FLUSH_ALL: lambda machine, _, __: machine.frames.flush(),
    MmuExt.INVLPG_LOCAL: _flush_page,
    MmuExt.INVLPG_ALL: lambda machine, va, _: machine.frames.flush_page(va),
    MmuExt.FLUSH_CACHE: _refuse(Errno.EACCES),
    MmuExt.FLUSH_CACHE_GLOBAL: _refuse(Errno.EINVAL),
    MmuExt.SET_LDT: _set_ldt,
    MmuExt.CLEAR_PAGE: _clear,
    MmuExt.COPY_PAGE: _copy,
    MmuExt.MARK_SUPER: _refuse(Errno.EOPNOTSUPP),
    MmuExt.UNMARK_SUPER: _refuse(Errno.EOPNOTSUPP),
}


def _flush_some(call: PvCall, cmd: int, va: int, mask: int) -> None:
    """MMUEXT_TLB_FLUSH_MULTI and MMUEXT_INVLPG_MULTI."""
    for machine in processors_of(call, mask):
        if cmd == MmuExt.TLB_FLUSH_MULTI:
            machine.cpu.flush_tlb()
        else:
            machine.cpu.flush_page(va)


def mmuext_op(call: PvCall, list_: int, count: int, done_at: int = 0, domid: int = DOMID_SELF, *_: int) -> int:
    """HYPERVISOR_mmuext_op(list, count, done, domid): stops at the first that is wrong."""
    count &= 0xFFFF_FFFF
    if domid & 0xFFFF not in (DOMID_SELF, call.domain.domid):
        _own_tables(call, domid & 0xFFFF)
    part = min(count, _BATCH)
    size = abi.MMUEXT_OP.size
    done = 0
    try:
        data = call.read(list_, size * part)
        for cmd, first, second in abi.MMUEXT_OP.iter_unpack(data):
            op = _EXT.get(cmd)
            if op is not None:
                op(call.machine, first, second)
            elif cmd in _SOME:
                _flush_some(call, cmd, first, second)
            else:
                raise XenError(Errno.ENOSYS)
            done += 1
    finally:
        if done_at:
            call.write(done_at, _COUNT.pack(done))
    if part < count:
        raise Preempted(list_ + size * part, count - part, 0, domid)
    return 0
