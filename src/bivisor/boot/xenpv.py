"""The PV domain builder: a kernel with Xen notes put into memory with everything that it finds when it starts.

Specification: xen.h, "Start-of-day memory layout". From the kernel's first page on, in one piece of virtual memory:
the kernel, the initramfs (unless the kernel takes it by frame number), the physical-to-machine list (unless the kernel
names another place for it), start_info, the pages of the store and the console, page tables, a stack, and room to the
next 4 MiB. Frames are machine frames; as far as anything is put here, pseudo-physical frame n is machine frame n.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bivisor.abi.x86 import Pte
from bivisor.abi.xen import pv as abi
from bivisor.boot import bzimage, elf
from bivisor.boot.cache import Cache, uncached
from bivisor.boot.elf import Elf
from bivisor.boot.loader import open_image
from bivisor.boot.source import Source, clear, copy
from bivisor.boot.xenframes import MachineFrames
from bivisor.boot.xennotes import XenNotes, xen_notes
from bivisor.errors import ImageError
from bivisor.memory import PAGE, GuestMemory

_TABLE = int(Pte.P | Pte.RW | Pte.A | Pte.D)
_READ_ONLY = int(Pte.P | Pte.A | Pte.D)
_ROUND = 4 << 20
_SLACK = 512 << 10
_ENTRIES = 512


@dataclass(frozen=True, slots=True)
class Ports:
    """The event channels that the guest finds in its start_info, and the machine frame of its shared_info."""

    store: int
    console: int
    shared_info: int


@dataclass(frozen=True, slots=True)
class PvEntry:
    """A PV domain that is ready: where it starts (RIP, RSI, RSP are virtual) and which frames are what."""

    rip: int
    rsi: int
    rsp: int
    page_table: int
    hypercall_page: int | None
    store: int
    console: int
    kernel: tuple[int, int]
    """(guest-physical address, length)."""


def build(
    memory: GuestMemory,
    kernel: Path,
    ports: Ports,
    *,
    initrd: Path | None = None,
    cmdline: str = "",
    cache: Cache | None = None,
    frames: MachineFrames | None = None,
) -> PvEntry:
    """Load `kernel` with its `initrd`. ImageError with one line if anything about the files is wrong. Without `frames`,
    the domain has all of `memory`."""
    text = cmdline.encode("utf-8", "surrogateescape")
    if len(text) >= abi.MAX_GUEST_CMDLINE or b"\0" in text:
        raise ImageError(f"the command line has {len(text)} bytes; a PV kernel takes {abi.MAX_GUEST_CMDLINE - 1}")
    cache = cache or uncached
    with ExitStack() as stack:
        source = stack.enter_context(Source.open(kernel, "kernel"))
        source, image = open_image(source, cache, stack)
        if image.bzimage is not None:
            inner = bzimage.payload(source, image.bzimage, cache)
            if inner is None:
                raise ImageError(f"{source.name}: cannot be unpacked here, which a PV domain needs")
            source = stack.enter_context(inner)
        elif image.elf is None:
            raise ImageError(
                f"{source.name}: {image.kind}; a PV domain needs an ELF kernel or a bzImage with one inside"
            )
        headers = elf.parse(source)
        notes = xen_notes(source, headers)
        module = stack.enter_context(Source.open(initrd, "initrd")) if initrd else None
        frames = frames or MachineFrames.of(memory.size, 0)
        return _Builder(memory, frames, source, headers, notes).build(module, text, ports)


class _Builder:
    """One domain on its way. Physical addresses are pseudo-physical, which are machine addresses here."""

    def __init__(
        self, memory: GuestMemory, frames: MachineFrames, source: Source, headers: Elf, notes: XenNotes
    ) -> None:
        self._memory, self._source, self._elf, self._notes = memory, source, headers, notes
        self._frames, self._p2m = frames.count, frames.p2m()
        self._end = 0
        self._size = frames.count * PAGE
        self._limit = min(frames.count, frames.hole.start) * PAGE

    def build(self, module: Source | None, cmdline: bytes, ports: Ports) -> PvEntry:
        """Put everything into memory."""
        start, size = self._load_kernel()
        mod_start = self._load_module(module)
        self._p2m_frames = _up(8 * self._frames) // PAGE
        apart = self._notes.init_p2m
        p2m_at = self._take(8 * self._frames) if apart is None else 0
        info, store, console = (self._take(PAGE) for _ in range(3))
        tables, table_end, end = self._page_tables()
        if apart is not None:  # behind all that is mapped with the kernel, which would not take it out of there
            self._end = end
            p2m_at = self._take(8 * self._frames)
        self._memory.write(p2m_at, self._p2m)
        stack = table_end
        self._memory.write(
            info,
            abi.START_INFO.pack(
                abi.START_MAGIC,
                self._frames,
                ports.shared_info * PAGE,
                abi.SIF_MOD_START_PFN if module and self._notes.mod_start_pfn else 0,
                store // PAGE,
                ports.store,
                console // PAGE,
                ports.console,
                self._virtual(tables),
                (table_end - tables) // PAGE,
                self._virtual(p2m_at) if apart is None else apart,
                mod_start,
                module.size if module else 0,
                cmdline,
                p2m_at // PAGE,
                self._p2m_frames,
            ),
        )
        page = self._notes.hypercall_page
        return PvEntry(
            rip=self._notes.entry,
            rsi=self._virtual(info),
            rsp=self._virtual(stack + PAGE),
            page_table=tables // PAGE,
            hypercall_page=None if page is None else self._physical(page),
            store=store // PAGE,
            console=console // PAGE,
            kernel=(start, size),
        )

    def _load_kernel(self) -> tuple[int, int]:
        segments = self._elf.segments
        if not segments:
            raise ImageError(f"{self._source.name}: an ELF file with nothing to load")
        offset = self._notes.paddr_offset
        start = min(segment.paddr for segment in segments) - offset
        end = max(segment.paddr + segment.memsz for segment in segments) - offset
        if start < 0 or end > self._limit:
            raise ImageError(
                f"kernel does not fit: it needs {-(-end >> 20)} MiB; the domain has {self._size >> 20} MiB of memory"
            )
        for segment in segments:
            at = segment.paddr - offset
            copy(self._source, segment.offset, segment.filesz, self._memory, at)
            clear(self._memory, at + segment.filesz, segment.memsz - segment.filesz)
        self._end = _up(end)
        return start, end - start

    def _load_module(self, module: Source | None) -> int:
        """The initramfs: its frame number or, for kernels that want that, its virtual address."""
        if module is None:
            return 0
        if self._notes.mod_start_pfn:
            at = self._limit - _up(module.size)
            if at < self._end + _ROUND:
                raise ImageError(f"initrd {module.name} of {module.size >> 20} MiB does not fit beside the kernel")
            self._limit = at
            copy(module, 0, module.size, self._memory, at)
            return at // PAGE
        at = self._take(module.size)
        copy(module, 0, module.size, self._memory, at)
        return self._virtual(at)

    def _take(self, size: int) -> int:
        at = self._end
        self._end += _up(size)
        if self._end > self._limit:
            raise ImageError(f"the domain's {self._size >> 20} MiB of memory are too small for this kernel")
        return at

    def _virtual(self, gpa: int) -> int:
        return self._notes.virt_base + gpa

    def _physical(self, virtual: int) -> int:
        gpa = virtual - self._notes.virt_base
        if gpa % PAGE or not 0 <= gpa < self._end:
            raise ImageError(f"{self._source.name}: damaged: its hypercall page at {virtual:#x} is not in the kernel")
        return gpa

    def _page_tables(self) -> tuple[int, int, int]:
        """(address of the top one, end) of the tables, which map themselves read-only; the stack's page follows. And
        the end of what they map with the kernel; a list that has a place of its own is to follow there."""
        start = self._end
        count = 1
        while True:  # the tables map themselves too, so that their number depends on itself
            end = -(-(start + (count + 1) * PAGE + _SLACK) // _ROUND) * _ROUND
            tables = _Tables(start)
            tables.map(self._virtual(0), 0, end // PAGE)
            if self._notes.init_p2m is not None:
                tables.map(self._notes.init_p2m, end // PAGE, self._p2m_frames)
            if len(tables.entries) == count:
                break
            count = len(tables.entries)
        if end > self._limit:
            raise ImageError(f"the domain's {self._size >> 20} MiB of memory are too small for this kernel")
        after = start + count * PAGE
        tables.protect(start // PAGE, after // PAGE)
        for at, entries in tables.entries.items():
            self._memory.write(at, struct.pack("<512Q", *entries))
        self._end = after + PAGE
        return start, after, end


class _Tables:
    """Page tables that are being made, from `start` on: by guest-physical address, 512 entries each."""

    def __init__(self, start: int) -> None:
        self._root = start
        self.entries: dict[int, list[int]] = {start: [0] * _ENTRIES}
        self._leaves: list[list[int]] = []

    def map(self, virtual: int, pfn: int, count: int) -> None:
        """Map `count` frames from `pfn` on at `virtual`."""
        for page in range(count):
            va = virtual + page * PAGE
            if not page or va & (_ENTRIES * PAGE - 1) == 0:
                leaf = self._leaf(va)
            leaf[va >> 12 & 511] = (pfn + page) * PAGE | _TABLE

    def _leaf(self, va: int) -> list[int]:
        table = self.entries[self._root]
        for shift in (39, 30, 21):
            index = va >> shift & 511
            if not table[index]:
                at = self._root + len(self.entries) * PAGE
                self.entries[at] = [0] * _ENTRIES
                table[index] = at | _TABLE
                if shift == 21:
                    self._leaves.append(self.entries[at])
            table = self.entries[table[index] & ~(PAGE - 1)]
        return table

    def protect(self, first: int, end: int) -> None:
        """Make the frames from `first` to `end` read-only where they are mapped."""
        for leaf in self._leaves:
            for index, entry in enumerate(leaf):
                if entry and first <= entry >> 12 < end:
                    leaf[index] = entry & ~(PAGE - 1) | _READ_ONLY


def _up(size: int) -> int:
    return -(-size // PAGE) * PAGE
