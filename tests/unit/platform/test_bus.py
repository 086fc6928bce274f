from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bivisor.errors import UsageError
from bivisor.platform.bus import Bus, port_bus


class Echo:
    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return 0x1111_1111_1111_1111 * (offset + 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_a_device_sees_offsets_and_gives_no_more_than_was_asked_for() -> None:
    bus, device = port_bus(), Echo()
    bus.attach(0x100, 4, device)
    assert bus.read(0x101, 1) == 0x22
    bus.write(0x103, 2, 7)
    assert device.written == [(3, 2, 7)]


def test_where_nothing_answers_reads_are_all_ones_and_writes_go_nowhere() -> None:
    bus = port_bus()
    assert [bus.read(0x80, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    bus.write(0x80, 1, 0)


def test_an_address_that_was_looked_up_before_follows_attach_and_detach() -> None:
    bus = port_bus()
    assert bus.read(0x100, 1) == 0xFF
    claim = bus.attach(0x100, 1, Echo())
    assert bus.read(0x100, 1) == 0x11
    bus.detach(claim)
    bus.detach(claim)
    assert bus.read(0x100, 1) == 0xFF


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 20)), max_size=20))
def test_claims_never_overlap_and_each_address_finds_its_own(wanted: list[tuple[int, int]]) -> None:
    bus = Bus("test", 110)
    taken: dict[int, object] = {}
    for base, length in wanted:
        range_ = range(base, base + length)
        if base + length > 110 or any(address in taken for address in range_):
            with pytest.raises(UsageError):
                bus.attach(base, length, Echo())
        else:
            claim = bus.attach(base, length, Echo())
            taken.update(dict.fromkeys(range_, claim))
    for address in range(110):
        assert bus.find(address) is taken.get(address)
