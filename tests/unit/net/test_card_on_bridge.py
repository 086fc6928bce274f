"""An e1000 on a bridge with a wire: whatever the order in which guest, wire and loop go on, all frames arrive.

The guest is as lazy as Linux: it looks at its rings when it is interrupted and not before, so a wake-up that is lost
anywhere on the way is a frame that never comes.
"""

from __future__ import annotations

import struct
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from netfront import Way

sys.path.append(str(Path(__file__).parents[1] / "board"))

from board_bench import bench

from bivisor.dom0.net.bridge import Bridge
from bivisor.dom0.net.wire import Wire
from bivisor.host.link import patch
from bivisor.platform.e1000 import E1000
from bivisor.platform.e1000 import registers as r

BASE, TX, RX, BUFFERS, OUTGOING = 0xE000_0000, 0x1000, 0x2000, 0x10000, 0x8000
SLOTS = 16
LINE = 11
MAC, STATION = bytes.fromhex("525400123456"), bytes.fromhex("525400000009")
CAUSES = r.INT_TXDW | r.INT_RXT0 | r.INT_RXO
SMALL = {
    "bivisor.host.link._PATCH_BYTES": 4000,
    "bivisor.dom0.net.wire.BUSY_BYTES": 3000,
    "bivisor.dom0.net.wire.TURN_FRAMES": 3,
    "bivisor.platform.e1000.card.TURN": 4,
}


def number_of(frame: bytes) -> int:
    return int(struct.unpack_from(">I", frame, 14)[0])


class CardOnBridge(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patcher = pytest.MonkeyPatch()
        for name, value in SMALL.items():
            self.patcher.setattr(name, value)
        self.stack = ExitStack()
        made = self.made = self.stack.enter_context(bench())
        bridge = Bridge("b", made.loop, patient=True)
        ours, theirs = patch(made.loop)
        self.way = Way()
        self.wires = Wire(bridge, ours), Wire(bridge, self.way)
        self.card = E1000(made.memory, theirs, MAC.hex(":"), made.loop)
        made.board.add(self.card, 3)
        made.config(1, 0, 0x60 + 2, LINE, 1)
        made.config(3, 0, 0x10, BASE)
        made.config(3, 0, 0x04, 7, 2)
        self.brought = self.sent = 0
        self.got: list[int] = []
        self.lost: set[int] = set()
        self.set_up(tail_first=True)

    def set(self, offset: int, value: int) -> None:
        self.made.mmio.write(BASE + offset, 4, value)

    def set_up(self, *, tail_first: bool) -> None:
        """Both rings anew, as a driver does after a reset."""
        self.polling = False
        self.next = self.tail = self.sending = 0
        self.is_on = True
        for at in range(SLOTS):
            self.made.memory.write(RX + 16 * at, struct.pack("<QQ", BUFFERS + 2048 * at, 0))
        for low, place in ((r.TDBAL, TX), (r.RDBAL, RX)):
            self.set(low, place)
            self.set(low + 8, SLOTS * 16)
            self.set(low + 16, 0)
            self.set(low + 24, 0)
        self.set(r.TCTL, r.TCTL_EN)
        self.set(r.IMS, CAUSES)
        if not tail_first:
            self.set(r.RCTL, r.RCTL_EN)
        self.refill()
        self.set(r.RCTL, r.RCTL_EN)

    # The network

    @rule(sizes=st.lists(st.sampled_from([60, 600, 1500, 5000]), min_size=1, max_size=30))
    def bring(self, sizes: list[int]) -> None:
        for size in sizes:
            self.way.waiting.append((MAC + STATION + b"\x88\xb5" + struct.pack(">I", self.brought)).ljust(size, b"."))
            self.brought += 1

    @rule(is_open=st.booleans())
    def open(self, is_open: bool) -> None:
        self.way.is_open = is_open

    # The loop

    @rule(seconds=st.sampled_from([0, 1e-3, 0.1]))
    def turn(self, seconds: float) -> None:
        loop = self.made.loop
        for _ in range(len(loop._soon)):
            loop._soon.popleft()()
        if seconds:
            loop.advance(seconds)
        if self.way.waiting and self.way.readable is not None:
            self.way.readable()
        if self.way.is_open and self.way.writable is not None:
            self.way.writable()

    # The guest

    @precondition(lambda self: self.made.lines.get(LINE) and not self.polling)
    @rule()
    def interrupt(self) -> None:
        assert self.made.mmio.read(BASE + r.ICR, 4)
        self.set(r.IMC, 0x1FFFF)
        self.polling = True

    @precondition(lambda self: self.polling)
    @rule(budget=st.integers(1, 12), refill=st.booleans())
    def poll(self, budget: int, refill: bool) -> None:
        """Take frames; with the last one, wait for an interrupt again. It never waits without buffers in the ring."""
        for done in range(budget):
            if not self.take():
                budget = done + 1
                break
        else:
            done = budget
        if refill or done < budget:
            self.refill()
        if done < budget:
            self.polling = False
            self.set(r.IMS, CAUSES)

    def take(self) -> bool:
        """One descriptor, which may be a part of a frame."""
        place = RX + 16 * self.next
        address, length, _, status, _, _ = r.RX_DESCRIPTOR.unpack(self.made.memory.read(place, 16))
        if not status & r.DD:
            return False
        data = self.made.memory.read(address, length)
        if data[:6] == MAC:
            self.got.append(number_of(data))
        self.made.memory.write(place + 8, bytes(8))
        self.next = (self.next + 1) % SLOTS
        return True

    def refill(self) -> None:
        self.tail = (self.next - 1) % SLOTS
        self.set(r.RDT, self.tail)

    @precondition(lambda self: self.room() > 0)
    @rule(count=st.integers(1, 6), size=st.sampled_from([60, 1500]))
    def send(self, count: int, size: int) -> None:
        for _ in range(min(count, self.room())):
            frame = (STATION + MAC + b"\x88\xb5" + struct.pack(">I", self.sent)).ljust(size, b".")
            self.sent += 1
            buffer = OUTGOING + 2048 * self.sending
            self.made.memory.write(buffer, frame)
            word = r.TX_LEGACY.pack(buffer, size, 0, r.CMD_EOP | r.CMD_RS, 0, 0, 0)
            self.made.memory.write(TX + 16 * self.sending, word)
            self.sending = (self.sending + 1) % SLOTS
        self.set(r.TDT, self.sending)

    def room(self) -> int:
        return (self.made.mmio.read(BASE + r.TDH, 4) - self.sending - 1) % SLOTS

    @rule(is_on=st.booleans())
    def listen(self, is_on: bool) -> None:
        self.is_on = is_on
        self.set(r.RCTL, r.RCTL_EN if is_on else 0)

    @precondition(lambda self: self.room() == SLOTS - 1 and not self.card._outgoing)
    @rule(tail_first=st.booleans())
    def reset(self, tail_first: bool) -> None:
        """What the card has and the guest has not looked at is lost."""
        self.lost.update(number_of(each) for each in self.card._arrived if each[:6] == MAC)
        before = len(self.got)
        while self.take():
            pass
        self.lost.update(self.got[before:])
        del self.got[before:]
        self.set(r.CTRL, r.CTRL_RST)
        self.set_up(tail_first=tail_first)

    def teardown(self) -> None:
        try:
            self.open(True)
            if not self.is_on:
                self.listen(True)
            for _ in range(40 + self.brought + self.sent):
                self.turn(1e-3)
                if self.made.lines.get(LINE) and not self.polling:
                    self.interrupt()
                if self.polling:
                    self.poll(12, True)
            expected = [number for number in range(self.brought) if number not in self.lost]
            assert [each for each in self.got if each not in self.lost] == expected
            assert [number_of(frame) for frame in self.way.sent] == list(range(self.sent))
        finally:
            for wire in self.wires:
                wire.close()
            self.stack.close()
            self.patcher.undo()


TestCardOnBridge = CardOnBridge.TestCase
TestCardOnBridge.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
