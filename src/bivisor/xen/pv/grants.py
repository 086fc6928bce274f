"""Grants in a PV guest's page tables: maps by address, or by the machine address of an entry (grant_table.h).

What is granted appears in the domain's machine at a frame number that the guest may not use for anything else: only a
map puts it into a page table, once, with the rights that the grant gives.
"""

from __future__ import annotations

from typing import Final

from bivisor.abi.x86 import Pte
from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.abi.xen.xen import PAGE_SHIFT
from bivisor.xen.errors import GrantError
from bivisor.xen.grant_ops import map_grant_ref, unmap_grant_ref
from bivisor.xen.hypercalls.grant_table import Fields
from bivisor.xen.maptrack import Mapping
from bivisor.xen.pv.call import PvCall
from bivisor.xen.pv.pages import L1

_MAPPED: Final = int(Pte.P | Pte.A | Pte.D | Pte.US)
_RW: Final = int(Pte.RW)
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_OWN_BITS_SHIFT, _OWN_BITS = 16, 7  # _GNTMAP_guest_avail0
_ALLOWED: Final = (
    abi.GNTMAP_HOST_MAP | abi.GNTMAP_READONLY | abi.GNTMAP_APPLICATION_MAP | abi.GNTMAP_CONTAINS_PTE
) | _OWN_BITS << _OWN_BITS_SHIFT


def map_grant(call: PvCall, fields: Fields) -> Fields:
    """GNTTABOP_map_grant_ref. GrantError: as `map_grant_ref`, and GENERAL_ERROR where there is no entry for it."""
    host_addr, flags, ref, domid, _, _, _ = fields
    if not flags & (abi.GNTMAP_DEVICE_MAP | abi.GNTMAP_HOST_MAP):
        raise GrantError(GrantStatus.BAD_GNTREF)
    if flags & ~_ALLOWED:  # there are no devices
        raise GrantError(GrantStatus.GENERAL_ERROR)
    by_entry, readonly = bool(flags & abi.GNTMAP_CONTAINS_PTE), bool(flags & abi.GNTMAP_READONLY)
    index = _index(call, host_addr, by_entry)
    frames = call.machine.frames
    mfn = frames.take_number()
    if mfn is None:
        raise GrantError(GrantStatus.NO_SPACE)
    try:
        mapping = map_grant_ref(call.domain, domid, ref, readonly=readonly, gfn=mfn)
    except GrantError:
        frames.give_number_back(mfn)
        raise
    entry = mfn << PAGE_SHIFT | _MAPPED | (0 if readonly else _RW) | (flags >> _OWN_BITS_SHIFT & _OWN_BITS) << 9
    frames.pages.put_foreign(index, entry)
    frames.flush()
    frames.by_entry[mfn] = by_entry
    return host_addr, flags, ref, domid, GrantStatus.OKAY, mapping.handle, mfn << PAGE_SHIFT


def _index(call: PvCall, host_addr: int, by_entry: bool) -> int:
    """The level-1 entry that is named, as an index of words of memory. GrantError(GENERAL_ERROR)."""
    pages = call.machine.pages
    if by_entry:
        index = None if host_addr & 7 or host_addr >> PAGE_SHIFT >= pages.frames else host_addr >> 3
    else:
        index = pages.l1_index(call.machine.root, host_addr)
    if index is None or pages.kind[index >> 9] != L1:
        raise GrantError(GrantStatus.GENERAL_ERROR)
    return index


def _mapped(call: PvCall, host_addr: int, handle: int) -> tuple[Mapping, int]:
    """The mapping, and the entry at `host_addr`, which is what it was put into."""
    mapping = call.domain.grants.maptrack.get(handle)
    assert mapping.gfn is not None
    index = _index(call, host_addr, call.machine.frames.by_entry[mapping.gfn])
    if (call.machine.pages.words[index] & _ADDRESS) >> PAGE_SHIFT != mapping.gfn:
        raise GrantError(GrantStatus.GENERAL_ERROR)
    return mapping, index


def unmap_grant(call: PvCall, fields: Fields) -> None:
    """GNTTABOP_unmap_grant_ref. GrantError: BAD_HANDLE, GENERAL_ERROR."""
    host_addr, dev_bus_addr, handle, _ = fields
    mapping = call.domain.grants.maptrack.get(handle)
    if dev_bus_addr and (mapping.gfn is None or dev_bus_addr != mapping.gfn << PAGE_SHIFT):
        raise GrantError(GrantStatus.GENERAL_ERROR)
    if not host_addr:
        return
    _, index = _mapped(call, host_addr, handle)
    _take_back(call, mapping, index, 0)


def unmap_and_replace(call: PvCall, fields: Fields) -> None:
    """GNTTABOP_unmap_and_replace: what is mapped at the second address goes to the first. GrantError as above."""
    host_addr, new_addr, handle, _ = fields
    mapping, index = _mapped(call, host_addr, handle)
    if not new_addr:
        _take_back(call, mapping, index, 0)
        return
    assert mapping.gfn is not None
    if call.machine.frames.by_entry[mapping.gfn]:
        raise GrantError(GrantStatus.GENERAL_ERROR)
    source = _index(call, new_addr, False)
    pages = call.machine.pages
    if source == index:
        raise GrantError(GrantStatus.GENERAL_ERROR)
    entry = pages.words[source]
    pages.store(source, 0)
    _take_back(call, mapping, index, entry)


def _take_back(call: PvCall, mapping: Mapping, index: int, entry: int) -> None:
    frames = call.machine.frames
    frames.pages.store(index, entry)
    frames.flush()
    unmap_grant_ref(call.domain, mapping.handle)
    assert mapping.gfn is not None
    frames.give_number_back(mapping.gfn)
