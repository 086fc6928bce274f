"""The native way of mmu_update and of a change of address space: it does what mmu.py does, or nothing."""

from __future__ import annotations

import ctypes as C
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pv_guests import FRAMES, RW, US, P, Table

from bivisor.abi.xen.pv import MmuExt
from bivisor.abi.xen.xen import DOMID_SELF, Hypercall
from bivisor.cpu.soft import library
from bivisor.memory import PAGE
from bivisor.memory.atomics import address_of
from bivisor.xen.pv import fast
from bivisor.xen.pv.pages import GONE, L4, Pages

SOURCE = Path(fast.__file__).with_name("fast.S")
LIST = 50  # a frame that is mapped writable at 0x1000 and holds the lists


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs the GNU assembler")
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    obj, out = tmp_path / "f.o", tmp_path / "f.bin"
    subprocess.run(["as", SOURCE, "-o", obj], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, out], check=True)
    assert out.read_bytes() == fast.CODE


class Native:
    """Two trees at frames 1 and 5, both pinned, the first in use, and the native code on them."""

    def __init__(self) -> None:
        self.table = table = Table()
        for first in (1, 5):
            table.tree(first)
            table.put(first + 3, 1, LIST << 12 | P | RW)
            table.pages.pin(first, L4)
        table.pages.get(1, L4)
        table.absent.add(45)
        table.pages.kind[45] = GONE
        self.state = fast.FastState(table.pages)
        self.state.values[fast.ROOT] = 1
        self.registers = (C.c_uint64 * 16)()
        prototype = C.CFUNCTYPE(C.c_uint64, C.c_void_p, C.c_void_p)
        self._code = prototype(library.load().executable(fast.CODE))

    def call(self, number: int, data: bytes, count: int, at: int = 0) -> int:
        table = self.table.memory
        table[LIST * PAGE + at : LIST * PAGE + at + len(data)] = data
        regs = self.registers
        regs[0], regs[7], regs[6], regs[2], regs[10] = number, 0x1000 + at, count, 0, DOMID_SELF
        return int(self._code(C.addressof(regs), self.state.address))

    def update(self, address: int, value: int) -> int:
        return self.call(Hypercall.MMU_UPDATE, struct.pack("<QQ", address, value), 1)

    def switch(self, root: int, user: int) -> int:
        data = struct.pack("<I4xQQI4xQQ", MmuExt.NEW_BASEPTR, root, 0, MmuExt.NEW_USER_BASEPTR, user, 0)
        return self.call(Hypercall.MMUEXT_OP, data, 2)

    def snapshot(self) -> tuple[bytes, bytes, bytes]:
        pages = self.table.pages
        return bytes(self.table.memory), bytes(pages.kind), pages.count.tobytes()


def copy_of(table: Table) -> Pages:
    """Page types in the same state, for the slow way."""
    other = Pages(
        memoryview(bytearray(table.memory)).cast("Q"), table.absent, lambda mfn: mfn == 1000, (), lambda: None
    )
    other.kind[:] = table.pages.kind
    other.count[:] = table.pages.count
    other.pinned = set(table.pages.pinned)
    return other


FRAME = st.integers(0, FRAMES - 1) | st.sampled_from([1, 4, 8, 40, 45, 1000, 1 << 26, (1 << 40) - 1])
FLAGS = st.sampled_from(
    [0, P, P | RW, P | RW | US, P | RW | 0x60, P | 0x18, P | RW | 1 << 63, P | RW | 1 << 52, P | 0x80]
)
ADDRESS = st.builds(
    lambda mfn, slot, kind: mfn << 12 | slot << 3 | kind,
    st.sampled_from([4, 8, 4, 8, 3, 1, 40, LIST, 45, FRAMES]),
    st.integers(0, 3),
    st.sampled_from([0, 0, 0, 2, 1, 3, 4]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ADDRESS, FRAME, FLAGS), max_size=25))
def test_an_update_leaves_what_the_slow_way_would_or_nothing_at_all(steps: list[tuple[int, int, int]]) -> None:
    native = Native()
    for address, mfn, flags in steps:
        value = mfn << 12 | flags
        native.table.memory[LIST * PAGE : LIST * PAGE + 16] = struct.pack("<QQ", address, value)
        before, slow = native.snapshot(), copy_of(native.table)
        done = native.update(address, value)
        assert done in (0, 1)
        if not done:
            assert native.snapshot() == before
            continue
        assert native.registers[0] == 0
        slow.update(address & -4, value, address & 3 == 2)
        assert native.snapshot() == (slow.words.tobytes(), bytes(slow.kind), slow.count.tobytes())


def test_what_kernels_do_most_is_done_natively() -> None:
    native = Native()
    entry = 4 << 12 | 8 * 2
    for value in (41 << 12 | P, 41 << 12 | P | RW, 42 << 12 | P | RW, 42 << 12 | P | RW | 0x60, 42 << 12 | P, 0):
        assert native.update(entry, value) == 1
    assert native.state.values[fast.UPDATES] == 6
    assert native.update(entry, 1 << 12 | P | RW) == 0  # a page table, writable: Python has the error for it
    assert native.update(entry, 45 << 12 | P) == 0


@pytest.mark.parametrize("at", [8, PAGE - 16])
def test_a_list_is_where_compilers_put_it(at: int) -> None:
    native = Native()
    assert native.call(Hypercall.MMU_UPDATE, struct.pack("<QQ", 4 << 12 | 16, 41 << 12 | P), 1, at) == 1
    assert native.table.pages.words[4 << 9 | 2] == 41 << 12 | P


def test_entries_get_bits_of_the_hypervisors_if_it_says_so() -> None:
    native = Native()
    native.state.values[fast.EXTRA] = US
    for value, wanted in ((41 << 12 | P | RW, 41 << 12 | P | RW | US), (0, 0), (42 << 12, 42 << 12)):
        assert native.update(4 << 12 | 16, value) == 1
        assert native.table.pages.words[4 << 9 | 2] == wanted


@pytest.mark.parametrize("table", [2, 3])
def test_what_leads_nowhere_is_cleared_natively_in_tables_above(table: int) -> None:
    native = Native()
    assert native.update(table << 12 | 8 * 7, 41 << 12) == 1
    assert native.table.pages.words[table << 9 | 7] == 41 << 12
    assert native.update(table << 12 | 8 * 7, 0) == 1
    before = native.snapshot()
    for address, value in ((table << 12, 0), (table << 12 | 8 * 7, 41 << 12 | P), (table << 12 | 8 * 7 | 2, 0)):
        assert native.update(address, value) == 0
        native.table.memory[LIST * PAGE : LIST * PAGE + 16] = before[0][LIST * PAGE : LIST * PAGE + 16]
        assert native.snapshot() == before
    assert native.update(1 << 12 | 8 * 7, 0) == 0


def test_a_change_of_address_space_counts_as_the_slow_way_does() -> None:
    native = Native()
    count, values = native.table.pages.count, native.state.values
    assert native.switch(5, 0) == 5 << 12
    assert (values[fast.ROOT], count[1], count[5]) == (5, 1, 2)
    assert native.switch(1, 5) == 1 << 12
    assert (values[fast.ROOT], values[fast.USER_ROOT], count[1], count[5]) == (1, 5, 2, 2)
    assert native.switch(5, 0) == 5 << 12
    assert (values[fast.USER_ROOT], count[1], count[5]) == (0, 1, 2)
    native.table.pages.unpin(5)  # its last use is that it is the root: whoever leaves it makes it an ordinary page
    before = native.snapshot()
    for root, user in ((1, 0), (5, 0), (40, 0), (0, 0), (1, 40), (FRAMES, 0), (1, 1 << 40)):
        native.table.memory[:] = before[0]
        assert native.switch(root, user) == 0
        assert native.snapshot()[1:] == before[1:]
        assert (values[fast.ROOT], values[fast.USER_ROOT]) == (5, 0)


@pytest.mark.parametrize(
    ("register", "value"),
    [(0, 99), (2, 0x1000), (6, 2), (7, 0x5000), (7, 1 << 60), (7, 0x1004), (7, 0x1FF8), (10, 0), (10, 7)],
    ids=[
        "another number",
        "done wanted",
        "two",
        "no list",
        "not canonical",
        "not aligned",
        "two pages",
        "dom0",
        "another",
    ],
)
def test_what_is_not_plain_is_left_to_python(register: int, value: int) -> None:
    native = Native()
    data = struct.pack("<QQ", 4 << 12 | 16, 41 << 12 | P)
    assert native.call(Hypercall.MMU_UPDATE, data, 1) == 1
    registers = (C.c_uint64 * 16)(*native.registers)
    registers[0] = Hypercall.MMU_UPDATE
    registers[register] = value
    assert native._code(C.addressof(registers), native.state.address) == 0


def test_an_event_that_waits_is_seen_at_the_next_hypercall() -> None:
    native = Native()
    info = memoryview(bytearray(64))
    native.state.set_info(info)
    assert native.update(4 << 12 | 16, 41 << 12 | P) == 1
    info[0] = 1
    assert native.update(4 << 12 | 16, 0) == 0
    info[1] = 1  # masked
    assert native.update(4 << 12 | 16, 0) == 1
    assert address_of(info) == native.state.values[fast.INFO]
