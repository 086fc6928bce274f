"""The stub of PV domains on engine kvm: its bytes are its source's, and its ways in lead where they should."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from bivisor.xen.pv.ring3 import hidden as h
from bivisor.xen.pv.ring3 import stub
from bivisor.xen.pv.ring3.block import Block
from bivisor.xen.pv.ring3.privileged import Privileged, decode

SOURCE = Path(stub.__file__).with_name("stub.S")
FRAMES = 4096
_IRETQ = b"\x48\xcf"


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs the GNU assembler")
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    obj, out = tmp_path / "s.o", tmp_path / "s.bin"
    subprocess.run(["as", SOURCE, "-o", obj], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, out], check=True)
    assert out.read_bytes() == stub.CODE


def test_the_code_fits_its_pages_and_the_return_is_where_it_is_said_to_be() -> None:
    assert len(stub.CODE) <= 2 * 4096
    assert stub.CODE[stub.ENTRIES.iretq : stub.ENTRIES.iretq + 2] == _IRETQ
    assert 0 < stub.ENTRIES.native_end - stub.ENTRIES.native < 256


def walk(hidden: h.Hidden, linear: int) -> tuple[int, bool, bool] | None:
    """(offset in the hidden memory or -1, reachable at CPL 3, writable) of a linear address, from the slots on."""
    entry = hidden.slots[(linear >> 39 & 511) - 256]
    user = writable = True
    for shift in (30, 21, 12):
        if not entry & 1:
            return None
        user, writable = user and bool(entry & 4), writable and bool(entry & 2)
        if entry & 0x80:
            break
        at = (entry & 0x000F_FFFF_FFFF_F000) - h.GPA + 8 * (linear >> shift & 511)
        (entry,) = struct.unpack_from("<Q", hidden.view, at)
    if not entry & 1:
        return None
    user, writable = user and bool(entry & 4), writable and bool(entry & 2)
    size = 1 << (21 if entry & 0x80 else 12)
    found = (entry & 0x000F_FFFF_FFFF_F000) - h.GPA + linear % size
    return (found if found >= 0 else -1), user, writable


@pytest.fixture
def hidden() -> h.Hidden:
    hidden = h.Hidden(FRAMES, 2)
    hidden.cpus = [Block(hidden, index) for index in range(2)]
    return hidden


def test_a_guest_reaches_the_table_of_frames_and_the_gate_alone_and_writes_neither(hidden: h.Hidden) -> None:
    for linear in (h.M2P, h.GATE):
        found = walk(hidden, linear)
        assert found is not None and found[1:] == (True, False)
    for linear in (
        h.STUB,
        h.IDT,
        h.NEAR,
        h.WINDOW,
        h.TYPES,
        h.TYPES + h.COUNTS,
        *(block.linear + page * 4096 for block in hidden.cpus for page in range(37)),
    ):
        found = walk(hidden, linear)
        assert found is None or not found[1]
    for linear, part in ((h.TYPES + FRAMES - 1, hidden.kind), (h.TYPES + h.COUNTS + 4 * FRAMES - 4, hidden.count)):
        found = walk(hidden, linear)
        assert found is not None and found[2]
        part[FRAMES - 1] = 7
        assert hidden.view[found[0]] == 7


def test_each_processor_has_a_stack_and_data_of_its_own(hidden: h.Hidden) -> None:
    places = [walk(hidden, block.top - 64) for block in hidden.cpus]
    assert None not in places and len(set(places)) == 2
    for block, place in zip(hidden.cpus, places, strict=True):
        assert place is not None
        block.frame[0] = 0x1234
        assert struct.unpack_from("<Q", hidden.view, place[0]) == (0x1234,)


def test_what_the_stub_is_to_do_ends_with_zeroes_and_names_an_address_space_only_if_told(hidden: h.Hidden) -> None:
    block = hidden.cpus[1]
    block.forget()
    block.set_root(0x5000)
    block.stores.update({h.WINDOW + 8 * n: n + 1 for n in range(3)})
    block.retired |= {7}
    block.work(False)
    at = 0x2000 // 8
    wanted = [h.WINDOW, 1, h.WINDOW + 8, 2, h.WINDOW + 16, 3, 0, h.WINDOW + 7 * 4096, 0]
    assert block.quads[at : at + 9].tolist() == wanted
    assert not block.stores and not block.retired and block.quads[5] == 0 and block.bytes[1] == 1
    block.work(True)
    assert block.quads[5] == 0x5000


def test_what_does_not_fit_is_noticed_before_it_is_written(hidden: h.Hidden) -> None:
    block = hidden.cpus[0]
    block.forget()
    block.retired |= set(range(8190))
    assert block.fits
    block.work(False)
    block.retired |= set(range(8189))
    block.stores[0] = 0
    assert not block.fits


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("0f32", Privileged("rdmsr", 2)),
        ("0f30", Privileged("wrmsr", 2)),
        ("fa", Privileged("nothing", 1)),
        ("e442", Privileged("in", 2, 1, 0x42)),
        ("ec", Privileged("in", 1, 1)),
        ("66ef", Privileged("out", 2, 2)),
        ("ef", Privileged("out", 1, 4)),
        ("0f20c0", Privileged("read_cr", 3, 8, 0, 0)),
        ("440f20c0", Privileged("read_cr", 4, 8, 8, 0)),
        ("410f22d9", Privileged("write_cr", 4, 8, 3, 9)),
        ("0f06", Privileged("clts", 2)),
        ("0f0b", None),
        ("90", None),
        ("66", None),
        ("", None),
    ],
)
def test_privileged_instructions_are_recognised(code: str, wanted: Privileged | None) -> None:
    assert decode(bytes.fromhex(code)) == wanted


def test_a_single_store_is_for_registers_and_any_more_for_the_list(hidden: h.Hidden) -> None:
    block = hidden.cpus[0]
    block.forget()
    assert block.take_one() is None
    block.stores[h.WINDOW + 8] = 5
    block.retired.add(7)
    assert block.take_one() is None
    block.retired.clear()
    assert block.take_one() == (h.WINDOW + 8, 5)
    assert not block.stores and block.bytes[1] == 2
    block.stores.update({h.WINDOW: 1, h.WINDOW + 8: 2})
    assert block.take_one() is None
