"""A domain's grant table: what it grants (its frames of entries, and who has pinned which), and what it has mapped.

grant_table.h; the rules that the header leaves open are those of Xen 4.17. What a *grantee* does with another's table
is in `grant_ops.py`. Everything here runs under the hypervisor's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import Final, NamedTuple, Protocol, TypeAlias

from bivisor.abi.xen import grant_table as abi
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.grant_table import GrantStatus
from bivisor.events import Probe
from bivisor.memory import PAGE
from bivisor.memory.atomics import atomics
from bivisor.xen.domain import Domain, State
from bivisor.xen.errors import GrantError, XenError
from bivisor.xen.grant_entries import Entries, EntriesV1, EntriesV2, SubPage, Transitive
from bivisor.xen.grant_frames import INVALID_GFN, TableFrame, TableFrames
from bivisor.xen.maptrack import ENTRIES_PER_FRAME, MAX_MAPTRACK_FRAMES, Active, Mapping, MapTrack

MAX_GRANT_FRAMES: Final = 64
MAX_VERSION: Final = 2
PIN_LIMIT: Final = 1 << 7
"""How often one entry may be mapped at the same time for reading, and how often for writing."""

_STATUS_PER_SHARED: Final = 8  # one frame of 16-bit status serves the 16-byte entries of so many frames
_BOTH = abi.GTF_READING | abi.GTF_WRITING


class Domains(Protocol):
    """What grants need of the hypervisor."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held while grants change; the same thread may take it again."""

    def find(self, domid: int) -> Domain:
        """The domain with this id, a dying one too. XenError(ESRCH)."""

    def release(self, domain: Domain) -> None:
        """A reference to the dying `domain` went."""

    def map_frame(self, mapper: Domain, gfn: int, granter: Domain, frame: int, *, readonly: bool) -> None:
        """Let guest `mapper` see `frame` of `granter` at `gfn`. XenError where it cannot."""

    def unmap_frame(self, mapper: Domain, gfn: int) -> None:
        """Take back what `map_frame` put at `gfn`: the guest has nothing there. XenError where nothing was put."""


class Window(NamedTuple):
    """What one end of a copy may touch: `length` bytes from `start` on of `view`, which is frame `gfn` of `domain`."""

    domain: Domain
    gfn: int
    view: memoryview
    start: int = 0
    length: int = PAGE


Held: TypeAlias = "list[tuple[GrantTable, int, bool]]"
"""Entries that a copy has pinned: table, reference, and whether for reading only."""


class GrantTable:
    """The grant table of `domain`: version 1 and one frame at first."""

    def __init__(
        self,
        domain: Domain,
        domains: Domains,
        *,
        max_frames: int = MAX_GRANT_FRAMES,
        max_version: int = MAX_VERSION,
        maptrack_frames: int = MAX_MAPTRACK_FRAMES,
    ) -> None:
        self.domain = domain
        self.domains = domains
        self.max_frames = max_frames
        self.max_version = max_version
        self.maptrack = MapTrack(maptrack_frames * ENTRIES_PER_FRAME)
        self.probe: Probe | None = None
        """Somebody listens to what the domain does with grants of others."""
        self._atomics = atomics()
        self._shared = TableFrames()
        self._status = TableFrames()
        self._entries: Entries = EntriesV1(self._shared, self._atomics)
        self._active: dict[int, Active] = {}
        self._shared.grow(1)
        domain.on_gone.append(self._gone)

    # ── the table itself ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def version(self) -> int:
        """The layout of the entries: 1 or 2."""
        return self._entries.version

    @property
    def nr_frames(self) -> int:
        """How many shared frames there are."""
        return len(self._shared)

    @property
    def nr_status_frames(self) -> int:
        """How many status frames there are: none in version 1."""
        return len(self._status)

    @property
    def max_status_frames(self) -> int:
        """How many status frames there can be."""
        return -(-self.max_frames // _STATUS_PER_SHARED)

    @property
    def nr_entries(self) -> int:
        """How many entries the shared frames hold; a grant reference is less."""
        return len(self._shared) * self._entries.per_frame

    @property
    def in_use(self) -> tuple[int, ...]:
        """The references that are mapped by somebody."""
        return tuple(self._active)

    def mapped_frames(self) -> set[int]:
        """The domain's frames that somebody has mapped."""
        return {active.gfn for active in self._active.values()}

    def listing(self) -> dict[int, Active]:
        """The references that are mapped, and by whom and how often. For a person who looks; the lock held."""
        return dict(self._active)

    def grow(self, nr_frames: int) -> None:
        """Have at least `nr_frames` shared frames, with their status in version 2. XenError(EINVAL) past the limit."""
        if nr_frames > self.max_frames:
            raise XenError(Errno.EINVAL)
        self._shared.grow(nr_frames)
        if self.version == 2:
            self._status.grow(-(-len(self._shared) // _STATUS_PER_SHARED))

    def frame(self, index: int) -> memoryview:
        """Shared frame `index` in place, until it is moved; the table grows to have it. XenError(EINVAL)."""
        return self._frame(index).view[:]

    def status_frame(self, index: int) -> memoryview:
        """Status frame `index` in place, until it is moved; the table grows to have it. XenError(EINVAL)."""
        return self._status_frame(index).view[:]

    def move_frame(self, index: int, page: memoryview, gfn: int = INVALID_GFN) -> None:
        """XENMAPSPACE_grant_table: shared frame `index` lives in `page`, the guest's `gfn`, from now on. EINVAL."""
        self._frame(index)
        self.reclaim(gfn)  # what was there before; two frames in one page would be one
        self._shared.move(index, page, gfn)

    def move_status_frame(self, index: int, page: memoryview, gfn: int = INVALID_GFN) -> None:
        """The same for status frame `index` (XENMAPIDX_grant_table_status)."""
        self._status_frame(index)
        self.reclaim(gfn)
        self._status.move(index, page, gfn)

    def reclaim(self, gfn: int, count: int = 1) -> None:
        """The guest gives up `count` pages from `gfn` on: frames that lived there are the hypervisor's own again."""
        for frames in (self._shared, self._status):
            for index, frame in enumerate(frames):
                if gfn <= frame.gfn < gfn + count and frame.gfn != INVALID_GFN:
                    frames.reclaim(index)

    def gfns(self) -> list[int]:
        """Where each shared frame is in the guest; INVALID_GFN for one that is nowhere."""
        return [frame.gfn for frame in self._shared]

    def status_gfns(self) -> list[int]:
        """The same for each status frame."""
        return [frame.gfn for frame in self._status]

    def _frame(self, index: int) -> TableFrame:
        if not 0 <= index < len(self._shared):
            if index < 0:
                raise XenError(Errno.EINVAL)
            self.grow(index + 1)
        return self._shared[index]

    def _status_frame(self, index: int) -> TableFrame:
        if self.version != 2 or index < 0:
            raise XenError(Errno.EINVAL)
        if index >= len(self._status):
            self.grow(index * _STATUS_PER_SHARED + 1)
        return self._status[index]

    def set_version(self, version: int) -> None:
        """Change the layout. All entries are cleared but the reserved ones, which the tools may have mapped.

        EINVAL for no version, ENOSYS where the table may not change, EBUSY while another entry is mapped, ERANGE where
        a reserved one cannot be said in version 1.
        """
        if self.max_version == 1:
            raise XenError(Errno.ENOSYS)
        if version not in (1, 2):
            raise XenError(Errno.EINVAL)
        if version == self.version:
            return
        if any(ref >= abi.RESERVED_ENTRIES for ref in self._active):
            raise XenError(Errno.EBUSY)
        reserved = self._entries.save_reserved()
        for frame in self._shared:
            frame.view[:] = bytes(PAGE)
        if version == 2:
            self._entries = EntriesV2(self._shared, self._status, self._atomics)
            self.grow(len(self._shared))
        else:
            self._entries = EntriesV1(self._shared, self._atomics)
            self._status.drop()
        self._entries.restore_reserved(reserved)

    def swap(self, a: int, b: int) -> None:
        """Exchange two entries that nobody has mapped. GrantError(BAD_GNTREF, EAGAIN)."""
        if a >= self.nr_entries or b >= self.nr_entries:
            raise GrantError(GrantStatus.BAD_GNTREF)
        if a in self._active or b in self._active:
            raise GrantError(GrantStatus.EAGAIN)
        self._entries.swap(a, b)

    # ── entries, pinned for others ──────────────────────────────────────────────────────────────────────────────────

    def pin(self, ref: int, domid: int, *, readonly: bool) -> Active:
        """Let `domid` map entry `ref` once more. GrantError(BAD_GNTREF, GENERAL_ERROR, BAD_PAGE)."""
        entries = self._entries
        active = self._active.get(ref)
        if active is None:
            if ref >= self.nr_entries:
                raise GrantError(GrantStatus.BAD_GNTREF)
            entries.pin(ref, domid, readonly=readonly, pinned=False, mapping=True)
            gfn = entries.gfn(ref)
            try:
                view = self.domain.own_frame(gfn)
                if not readonly:
                    self.domain.hold(gfn)
            except XenError:
                entries.unpin(ref, _BOTH)
                raise GrantError(GrantStatus.BAD_PAGE) from None
            active = self._active[ref] = Active(domid, gfn, view)
        else:
            if active.domid != domid or (active.readers if readonly else active.writers) >= PIN_LIMIT:
                raise GrantError(GrantStatus.GENERAL_ERROR)
            if not readonly and not active.writers:
                entries.pin(ref, domid, readonly=False, pinned=True, mapping=True)
                try:
                    self.domain.hold(active.gfn)
                except XenError:
                    entries.unpin(ref, abi.GTF_WRITING)
                    raise GrantError(GrantStatus.BAD_PAGE) from None
                active.settled = False
        if readonly:
            active.readers += 1
        else:
            active.writers += 1
        return active

    def settle(self, refs: Iterable[int]) -> None:
        """After `pin` of all `refs`: make sure that their guest has not taken one back. GrantError(GENERAL_ERROR).

        Where a guest's locked instructions are not atomic, a revocation that began before the entry was pinned may
        overwrite that. Once the processors have been between two instructions it has, and can be seen.
        """
        quiesce = self.domain.quiesce
        if quiesce is None:
            return
        fresh = {ref: active for ref in refs if not (active := self._active[ref]).settled}
        if fresh:
            quiesce()
        for ref, active in fresh.items():
            if not self._entries.stands(ref, readonly=not active.writers):
                raise GrantError(GrantStatus.GENERAL_ERROR)
        for active in fresh.values():
            active.settled = True

    def check_held(self, ref: int, *, readonly: bool) -> None:
        """The same for an entry that `acquire` has pinned for a copy."""
        quiesce = self.domain.quiesce
        if quiesce is not None and ref not in self._active:
            quiesce()
            if not self._entries.stands(ref, readonly=readonly):
                raise GrantError(GrantStatus.GENERAL_ERROR)

    def unpin(self, ref: int, *, readonly: bool) -> None:
        """Take back one `pin`. GTF_writing goes with the last writer, GTF_reading with the last of all."""
        active = self._active[ref]
        bits = 0
        if readonly:
            active.readers -= 1
        else:
            active.writers -= 1
            if not active.writers:
                bits = abi.GTF_WRITING
                self.domain.let_go(active.gfn)
            # There is no telling what was written, or whether it is code that the granter has run before.
            self.domain.memory.written(active.gfn * PAGE, PAGE)
        if not active.readers and not active.writers:
            bits |= abi.GTF_READING
            del self._active[ref]
        if bits:
            self._entries.unpin(ref, bits)

    def mapped_gfn(self, ref: int) -> int:
        """The frame of an entry that somebody has mapped."""
        return self._active[ref].gfn

    def acquire(self, ref: int, domid: int, held: Held, *, readonly: bool, transitive: bool = True) -> Window:
        """What entry `ref` lets `domid` copy from, or to if not `readonly`. GrantError.

        The entries that this pins are added to `held`, also when it fails; the caller gives each to `give_back`.
        """
        entries = self._entries
        active = self._active.get(ref)
        if active is not None:
            if active.domid != domid:
                raise GrantError(GrantStatus.GENERAL_ERROR)
            if not readonly and not active.writers:
                entries.pin(ref, domid, readonly=False, pinned=True, mapping=False)
            held.append((self, ref, readonly))
            return Window(self.domain, active.gfn, active.view)
        if ref >= self.nr_entries:
            raise GrantError(GrantStatus.BAD_GNTREF)
        entries.pin(ref, domid, readonly=readonly, pinned=False, mapping=False)
        held.append((self, ref, readonly))
        match entries.source(ref):
            case Transitive(owner, onward):
                # Of a grant of a grant no further one is made: it could go in circles.
                if not transitive or owner == self.domain.domid:
                    raise GrantError(GrantStatus.GENERAL_ERROR)
                table = live(self.domains, owner, GrantStatus.GENERAL_ERROR).grants
                return table.acquire(onward, self.domain.domid, held, readonly=readonly, transitive=False)
            case SubPage(gfn, start, length):
                return self._window(gfn, start, length)
            case int(gfn):
                return self._window(gfn, 0, PAGE)

    def give_back(self, ref: int, *, readonly: bool) -> None:
        """End what `acquire` began: clear what no mapping of the entry needs."""
        active = self._active.get(ref)
        bits = abi.GTF_READING if active is None else 0
        if not readonly and (active is None or not active.writers):
            bits |= abi.GTF_WRITING
        if bits:
            self._entries.unpin(ref, bits)

    def _window(self, gfn: int, start: int, length: int) -> Window:
        try:
            return Window(self.domain, gfn, self.domain.own_frame(gfn), start, length)
        except XenError:
            raise GrantError(GrantStatus.BAD_PAGE) from None

    # ── the domain's end ────────────────────────────────────────────────────────────────────────────────────────────

    def destroy(self) -> None:
        """The domain dies: it has nothing mapped any more. What others have mapped of it stays until they let go."""
        for mapping in self.maptrack:
            if mapping.gfn is not None:
                with suppress(XenError):
                    self.domains.unmap_frame(self.domain, mapping.gfn)
            with suppress(BufferError):  # nothing of a dead domain runs, so nothing can use it
                mapping.view.release()
            self.forget(mapping)

    def forget(self, mapping: Mapping) -> None:
        """Remove one of the domain's own mappings, whose memory it cannot reach any more."""
        self.maptrack.remove(mapping)
        granter = self.domains.find(mapping.domid)  # there: the mapping is a reference to it
        granter.grants.unpin(mapping.ref, readonly=mapping.readonly)
        granter.references.discard(mapping)
        if granter.state is State.DYING:
            self.domains.release(granter)

    def _gone(self, _: Domain) -> None:
        self._shared.drop()
        self._status.drop()


def live(domains: Domains, domid: int, otherwise: GrantStatus = GrantStatus.BAD_DOMAIN) -> Domain:
    """The domain `domid` that grants something. GrantError: `otherwise` if there is none, GENERAL_ERROR if it dies."""
    try:
        domain = domains.find(domid)
    except XenError:
        raise GrantError(otherwise) from None
    if domain.state in (State.DYING, State.GONE):
        raise GrantError(GrantStatus.GENERAL_ERROR)
    return domain
