"""What a grantee does: map, unmap and copy, as one function each that takes the calling domain and decoded arguments.

Dom0 in this program is Python and uses these directly: `map_grant_ref` gives it the memory itself. For guests the
hypercall's decoder (`hypercalls/grant_table.py`) calls them. GrantError says with which GNTST_* an operation fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.abi.xen.xen import DOMID_SELF
from bivisor.memory import PAGE
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_table import Held, Window, live
from bivisor.xen.maptrack import Mapping
from bivisor.xen.watched_grants import begin, done, failed


def map_grant_ref(mapper: Domain, domid: int, ref: int, *, readonly: bool = False, gfn: int | None = None) -> Mapping:
    """Map grant `ref` of domain `domid`, for a guest at its frame `gfn`. The view is the granter's own frame.

    GrantError: BAD_DOMAIN, BAD_GNTREF, BAD_PAGE (the granter has no such frame), NO_SPACE (no handle left), or
    GENERAL_ERROR (the entry does not grant that to `mapper`, or it cannot be mapped there).
    """
    with mapper.grants.domains.lock:
        mapping = _map(mapper, domid, ref, readonly, gfn)
        _settle(mapper, domid, [mapping])
        return mapping


def map_grant_refs(mapper: Domain, domid: int, refs: Iterable[int], *, readonly: bool = False) -> list[Mapping]:
    """Map all of `refs` of domain `domid` for a mapper that uses the views, or none. GrantError as above."""
    mapped: list[Mapping] = []
    with mapper.grants.domains.lock:
        try:
            for ref in refs:
                mapped.append(_map(mapper, domid, ref, readonly, None))
        except GrantError:
            _undo(mapper, mapped)
            raise
        _settle(mapper, domid, mapped)
    return mapped


def _map(mapper: Domain, domid: int, ref: int, readonly: bool, gfn: int | None) -> Mapping:
    probe = mapper.grants.probe
    if probe is None:
        return _map_now(mapper, domid, ref, readonly, gfn)
    event = begin(probe, mapper.domid, "map", domid, ref, readonly=readonly)
    try:
        mapping = _map_now(mapper, domid, event.ref, event.readonly, gfn)
    except GrantError as error:
        raise failed(probe, event, error) from None
    done(probe, event, mapping.handle)
    return mapping


def _map_now(mapper: Domain, domid: int, ref: int, readonly: bool, gfn: int | None) -> Mapping:
    table = mapper.grants
    domains = table.domains
    if mapper.state is State.DYING or mapper.state is State.GONE:  # nobody would unmap it
        raise GrantError(GrantStatus.GENERAL_ERROR)
    table.maptrack.check_room()
    granter = live(domains, domid)
    active = granter.grants.pin(ref, mapper.domid, readonly=readonly)
    view = active.view.toreadonly() if readonly else active.view[:]
    if gfn is not None:
        try:
            domains.map_frame(mapper, gfn, granter, active.gfn, readonly=readonly)
        except XenError:
            view.release()
            granter.grants.unpin(ref, readonly=readonly)
            raise GrantError(GrantStatus.GENERAL_ERROR) from None
    mapping = Mapping(domid, ref, view, readonly=readonly, gfn=gfn)
    table.maptrack.add(mapping)
    granter.references.add(mapping)
    return mapping


def _settle(mapper: Domain, domid: int, mapped: list[Mapping]) -> None:
    """See `GrantTable.settle`; what does not stand is taken back."""
    if mapped:
        try:
            mapper.grants.domains.find(domid).grants.settle([mapping.ref for mapping in mapped])
        except GrantError:
            _undo(mapper, mapped)
            raise


def _undo(mapper: Domain, mapped: list[Mapping]) -> None:
    for mapping in mapped:
        unmap_grant_ref(mapper, mapping.handle)


def unmap_grant_ref(mapper: Domain, handle: int) -> None:
    """Take back a mapping. Its view is released: whoever still uses it is refused, not the granter harmed.

    GrantError: BAD_HANDLE, or GENERAL_ERROR where the view is in use at this moment, by a system call for one.
    """
    table = mapper.grants
    with table.domains.lock:
        mapping = table.maptrack.get(handle)
        probe = table.probe
        if probe is not None:
            readonly = mapping.readonly
            event = begin(probe, mapper.domid, "unmap", mapping.domid, mapping.ref, readonly=readonly, handle=handle)
            done(probe, event)
        if mapping.gfn is not None:
            try:
                table.domains.unmap_frame(mapper, mapping.gfn)
            except XenError:
                raise GrantError(GrantStatus.GENERAL_ERROR) from None
        try:
            mapping.view.release()
        except BufferError:
            if mapping.gfn is None:
                raise GrantError(GrantStatus.GENERAL_ERROR) from None
        table.forget(mapping)


def written(mapper: Domain, mapping: Mapping, start: int, length: int) -> None:
    """The mapper wrote `length` bytes at `start` of a frame that it keeps mapped: the granter's engine has to know."""
    granter = mapper.grants.domains.find(mapping.domid)  # there: the mapping is a reference to it
    granter.memory.written(granter.grants.mapped_gfn(mapping.ref) * PAGE + start, length)


@dataclass(frozen=True, slots=True)
class GrantEnd:
    """One end of a copy: byte `offset` of what grant `ref` of `domid` gives the caller."""

    domid: int
    ref: int
    offset: int


@dataclass(frozen=True, slots=True)
class FrameEnd:
    """One end of a copy: byte `offset` of the caller's own frame `gfn`."""

    gfn: int
    offset: int


def copy(caller: Domain, source: GrantEnd | FrameEnd, dest: GrantEnd | FrameEnd, length: int) -> None:
    """Copy `length` bytes within a page each. GrantError, and then nothing has been copied.

    BAD_COPY_ARG beyond a page, BAD_DOMAIN, BAD_GNTREF, BAD_PAGE, GENERAL_ERROR (not granted, or beyond a sub-page).
    """
    if source.offset + length > PAGE or dest.offset + length > PAGE:
        raise GrantError(GrantStatus.BAD_COPY_ARG)
    held: Held = []
    with caller.grants.domains.lock:
        try:
            from_ = _reach(caller, source, length, held, readonly=True)
            to = _to_write(_reach(caller, dest, length, held, readonly=False))
            _check_held(caller, held)
            to.view[dest.offset : dest.offset + length] = from_.view[source.offset : source.offset + length]
            to.domain.memory.written(to.gfn * PAGE + dest.offset, length)
        finally:
            _let_go(held)


def copy_from(caller: Domain, source: GrantEnd, into: memoryview) -> None:
    """Fill `into`, which is the caller's own, from a grant. GrantError as for `copy`."""
    length = len(into)
    if source.offset + length > PAGE:
        raise GrantError(GrantStatus.BAD_COPY_ARG)
    held: Held = []
    with caller.grants.domains.lock:
        try:
            window = _reach(caller, source, length, held, readonly=True)
            into[:] = window.view[source.offset : source.offset + length]
        finally:
            _let_go(held)


def copy_to(caller: Domain, dest: GrantEnd, data: bytes | bytearray | memoryview) -> None:
    """Copy `data` to a grant. GrantError as for `copy`."""
    length = len(data)
    if dest.offset + length > PAGE:
        raise GrantError(GrantStatus.BAD_COPY_ARG)
    held: Held = []
    with caller.grants.domains.lock:
        try:
            window = _to_write(_reach(caller, dest, length, held, readonly=False))
            window.view[dest.offset : dest.offset + length] = data
            window.domain.memory.written(window.gfn * PAGE + dest.offset, length)
        finally:
            _let_go(held)


def _reach(caller: Domain, end: GrantEnd | FrameEnd, length: int, held: Held, *, readonly: bool) -> Window:
    """What `end` gives the caller; the copy stays within it."""
    match end:
        case GrantEnd(domid, ref, offset):
            domains = caller.grants.domains
            if caller.grants.probe is not None:
                ref = _told(caller, caller.domid if domid == DOMID_SELF else domid, ref, readonly)
            granter = caller if domid == DOMID_SELF else live(domains, domid)
            window = granter.grants.acquire(ref, caller.domid, held, readonly=readonly)
            if offset < window.start or offset + length > window.start + window.length:
                raise GrantError(GrantStatus.GENERAL_ERROR)
            return window
        case FrameEnd(gfn):
            try:
                return Window(caller, gfn, caller.own_frame(gfn))
            except XenError:
                raise GrantError(GrantStatus.BAD_PAGE) from None


def _to_write(window: Window) -> Window:
    """`window`, if its guest may have it written. GrantError(BAD_PAGE) for a page table."""
    try:
        window.domain.hold(window.gfn)
    except XenError:
        raise GrantError(GrantStatus.BAD_PAGE) from None
    window.domain.let_go(window.gfn)  # it stays so until the lock is given back
    return window


def _told(caller: Domain, granter: int, ref: int, readonly: bool) -> int:
    """Tell of one end of a copy; the reference that hooks want it to have. GrantError where they refuse it."""
    probe = caller.grants.probe
    assert probe is not None
    event = begin(probe, caller.domid, "copy", granter, ref, readonly=readonly)
    done(probe, event)
    return event.ref


def _check_held(caller: Domain, held: Held) -> None:
    """A guest could copy while another takes its grant back; Dom0 is asked to copy by those who grant."""
    if not caller.privileged:
        for table, ref, readonly in held:
            if table.domain is not caller:
                table.check_held(ref, readonly=readonly)


def _let_go(held: Held) -> None:
    for table, ref, readonly in held:
        table.give_back(ref, readonly=readonly)
