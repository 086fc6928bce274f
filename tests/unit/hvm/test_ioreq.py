"""Accesses of an HVM domain on their way to a device model and back, and what stands in the way of the wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hvm_world import MEMORY, World
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.abi.xen import dm_op, ioreq
from bivisor.abi.xen.domctl import Trigger
from bivisor.abi.xen.errno import Errno
from bivisor.abi.xen.event_channel import EvtchnStat
from bivisor.abi.xen.xen import RESOURCE_IOREQ_SERVER, Hypercall, ShutdownReason
from bivisor.memory import PAGE
from bivisor.xen.call import Call, Identity
from bivisor.xen.domain import State
from bivisor.xen.errors import XenError
from bivisor.xen.hvm.ioreq import BadState
from bivisor.xen.table import hypercall

ONES = (1 << 64) - 1


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


class Model:
    """A device model that a test writes: `answer(fields)` gives what a read is answered with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.emulation = world.control.emulation
        self.server = self.emulation.create_server(world.domid)
        self.buffer, self.page = world.control.map_resource(world.domid, RESOURCE_IOREQ_SERVER, self.server, 0, 2)
        self.seen: list[tuple[int, ...]] = []
        self.state = ioreq.STATE_IORESP_READY
        self.answer = 0
        port = int.from_bytes(self.page[ioreq.PORT_AT : ioreq.PORT_AT + 4], "little")
        self.port = world.control.bind(world.domid, port, self.event)
        self.emulation.enable_server(world.domid, self.server, True)
        world.loop.run_soon()

    def take(self, kind: int, start: int, end: int) -> None:
        self.emulation.map_range(self.world.domid, self.server, kind, start, end)

    def event(self) -> None:
        flags = self.page[ioreq.FLAGS_AT]
        if flags & ioreq.STATE_MASK != ioreq.STATE_IOREQ_READY:
            return
        self.seen.append(ioreq.IOREQ.unpack_from(self.page))
        struct.pack_into("<Q", self.page, ioreq.DATA_AT, self.answer)
        self.page[ioreq.FLAGS_AT] = flags & ~ioreq.STATE_MASK | self.state
        self.world.control.notify(self.port)


def refused(errno: Errno) -> pytest.RaisesExc[XenError]:
    return pytest.raises(XenError, match=errno.name)


def test_a_port_access_is_an_ioreq_and_its_answer_comes_back(world: World) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_PORT, 0x60, 0x64)
    model.answer = 0x1234
    assert world.accesses.port(0x60, 1, None) == 0x34
    world.accesses.port(0x64, 1, 0xFE)
    (read, write) = model.seen
    assert (read[0], read[2], read[3], read[7]) == (0x60, 1, 1, ioreq.IOREQ_TYPE_PIO)
    assert read[6] & ioreq.DIR_READ and not write[6] & ioreq.DIR_READ
    assert write[:2] == (0x64, 0xFE)
    assert model.page[ioreq.FLAGS_AT] & ioreq.STATE_MASK == ioreq.STATE_IOREQ_NONE


def test_what_no_server_has_reads_as_ones(world: World) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_PORT, 0x60, 0x63)
    assert world.accesses.port(0x60, 4, None) == 0
    assert world.accesses.port(0x62, 4, None) == 0xFFFF_FFFF  # half outside
    assert world.accesses.memory(0xF000_0000, 8, None) == ONES
    model.emulation.enable_server(world.domid, model.server, False)
    assert world.accesses.port(0x60, 1, None) == 0xFF
    assert len(model.seen) == 1


def test_a_configuration_access_goes_to_who_has_the_function(world: World) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_PORT, 0xCF8, 0xCFF)
    model.take(dm_op.IO_RANGE_PCI, 3 << 3, 3 << 3)
    world.accesses.port(0xCF8, 4, 0x8000_0000 | 3 << 11 | 0x40)
    world.accesses.port(0xCFE, 2, None)
    world.accesses.port(0xCF8, 4, 0x8000_0000 | 4 << 11)
    world.accesses.port(0xCFC, 4, None)
    kinds = [(fields[7], fields[0]) for fields in model.seen]
    assert kinds[1] == (ioreq.IOREQ_TYPE_PCI_CONFIG, 3 << 35 | 0x42)
    assert kinds[3] == (ioreq.IOREQ_TYPE_PIO, 0xCFC)


@pytest.mark.parametrize("size", [3, 5, 6, 7])
def test_an_access_of_an_odd_length_comes_in_bytes(world: World, size: int) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_MEMORY, 0xF000_0000, 0xF000_FFFF)
    model.answer = 0x5A
    assert world.accesses.memory(0xF000_0010, size, None) == int.from_bytes(b"\x5a" * size, "little")
    assert [fields[0] for fields in model.seen] == list(range(0xF000_0010, 0xF000_0010 + size))


@pytest.mark.parametrize("state", [ioreq.STATE_IOREQ_NONE, 4, 9, 15])
def test_a_state_that_there_cannot_be_ends_the_domain_and_not_the_host(world: World, state: int) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_PORT, 0x60, 0x60)
    model.state = state
    with pytest.raises(BadState):
        world.accesses.port(0x60, 1, None)


def test_an_ioreq_that_was_left_unfinished_is_not_written_over(world: World) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_PORT, 0x60, 0x60)
    model.page[ioreq.FLAGS_AT] = ioreq.STATE_IOREQ_INPROCESS
    with pytest.raises(BadState):
        world.accesses.port(0x60, 1, None)


def test_a_device_model_that_does_not_answer_keeps_nobody_who_wants_to_stop(world: World) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_PORT, 0x60, 0x60)
    model.state = ioreq.STATE_IOREQ_INPROCESS
    world.stopping = True
    with pytest.raises(BadState, match="the domain ends"):
        world.accesses.port(0x60, 1, None)


def test_writes_to_the_old_video_memory_wait_in_a_ring_and_nobody_waits_for_them(world: World) -> None:
    model = Model(world)
    model.take(dm_op.IO_RANGE_MEMORY, 0xA_0000, 0xB_FFFF)
    world.accesses.memory(0xB_8000, 2, 0x0741)
    world.accesses.memory(0xA_0010, 8, 0x1122_3344_5566_7788)
    assert model.seen == []
    assert ioreq.BUF_POINTERS.unpack_from(model.buffer) == (0, 3)
    heads = [ioreq.BUF_IOREQ.unpack_from(model.buffer, 8 + 8 * slot) for slot in range(3)]
    assert heads[0] == (ioreq.IOREQ_TYPE_COPY | 1 << 10 | 0xB_8000 << 12, 0x0741)
    assert [data for _, data in heads[1:]] == [0x5566_7788, 0x1122_3344]


@given(st.binary(min_size=8, max_size=8))
@settings(max_examples=20, deadline=None)
def test_pointers_of_the_ring_are_the_device_models_and_believed_by_nobody(pointers: bytes) -> None:
    with World() as world:
        model = Model(world)
        model.take(dm_op.IO_RANGE_MEMORY, 0xA_0000, 0xB_FFFF)
        model.buffer[:8] = pointers
        for _ in range(3):
            world.accesses.memory(0xB_8000, 8, 1)
        read, write = ioreq.BUF_POINTERS.unpack_from(model.buffer)
        assert len(model.seen) == 3 or write - read & 0xFFFF_FFFF <= ioreq.IOREQ_BUFFER_SLOT_NUM


def test_the_guest_can_do_nothing_with_the_ports_of_its_device_model(world: World) -> None:
    model = Model(world)
    port = int.from_bytes(model.page[ioreq.PORT_AT : ioreq.PORT_AT + 4], "little")
    events = world.domain.events
    for forbidden in (events.close, events.send, lambda number: events.bind_vcpu(number, 0)):
        with refused(Errno.EINVAL):
            forbidden(port)
    world.domain.pause()
    events.reset()
    model.take(dm_op.IO_RANGE_PORT, 0x60, 0x60)
    model.answer = 7
    assert world.accesses.port(0x60, 1, None) == 7  # it has survived the reset
    assert events.status(world.domid, port).status is EvtchnStat.INTERDOMAIN


def test_servers_are_refused_what_they_cannot_have(world: World) -> None:
    emulation, domid = world.control.emulation, world.domid
    numbers = [emulation.create_server(domid) for _ in range(8)]
    with refused(Errno.ENOSPC):
        emulation.create_server(domid)
    emulation.map_range(domid, 0, dm_op.IO_RANGE_PORT, 0x10, 0x20)
    for start, end, errno in ((0x20, 0x30, Errno.EEXIST), (0x40, 0x3F, Errno.EINVAL)):
        with refused(errno):
            emulation.map_range(domid, 0, dm_op.IO_RANGE_PORT, start, end)
    with refused(Errno.EINVAL):
        emulation.map_range(domid, 0, 3, 0, 1)
    with refused(Errno.ENOENT):
        emulation.unmap_range(domid, 0, dm_op.IO_RANGE_PORT, 0x10, 0x1F)
    emulation.unmap_range(domid, 0, dm_op.IO_RANGE_PORT, 0x10, 0x20)
    emulation.destroy_server(domid, numbers[3])
    with refused(Errno.ENOENT):
        emulation.enable_server(domid, numbers[3], True)
    assert emulation.create_server(domid) == numbers[3]
    with refused(Errno.EINVAL):
        world.control.map_resource(domid, RESOURCE_IOREQ_SERVER, 0, 0, 3)
    with refused(Errno.EINVAL):
        world.control.map_resource(domid, RESOURCE_IOREQ_SERVER, 17, 0, 1)


def test_no_guest_is_a_device_model(world: World) -> None:
    call = Call(world.xen, world.domain, 0, Identity())
    other = world.xen.create_domain(type(world.memory)(MEMORY), upcall=world.domain.upcall, config=world.domain.config)
    other.hvm = world.domain.hvm
    assert hypercall(call, Hypercall.DM_OP, (other.domid, 1, 0)) == -Errno.EPERM
    assert hypercall(call, Hypercall.DM_OP, (world.domid, 1, 0)) == -Errno.EPERM
    other.hvm = None
    world.xen.destroy(other)
    other.physmap.close()


@given(st.binary(min_size=40, max_size=40), st.integers(0, 21), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_rubbish_in_an_operation_is_an_error_number(body: bytes, op: int, count: int) -> None:
    with World() as world:
        room = world.control.domain.memory.view(0, PAGE)
        struct.pack_into("<QQQQ", room, 0, 256, 40, 512, 64)
        room[256:296] = body
        struct.pack_into("<I", room, 256, op)
        room.release()
        result = world.control.hypercall(Hypercall.DM_OP, world.domid, count, 0)
        assert result == 0 or -200 < result < 0


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=64))
@settings(max_examples=60, deadline=None)
def test_whatever_an_ioreq_says_the_device_model_answers_it(fields: bytes, ring: bytes) -> None:
    """The numbers are the guest's: any address, size, count and pointer."""
    with World() as world:
        board = world.plug_in_board()
        server = board.client
        page, buffer = server._page, server._buffer
        port = bytes(page[ioreq.PORT_AT : ioreq.PORT_AT + 4])
        page[: len(fields)] = fields
        page[ioreq.PORT_AT : ioreq.PORT_AT + 4] = port
        page[ioreq.FLAGS_AT] = fields[ioreq.FLAGS_AT] & ~ioreq.STATE_MASK | ioreq.STATE_IOREQ_READY
        buffer[: len(ring)] = ring
        world.domain.events.send_from_xen(int.from_bytes(port, "little"))
        world.loop.run_soon()
        assert page[ioreq.FLAGS_AT] & ioreq.STATE_MASK == ioreq.STATE_IORESP_READY


def test_a_string_instruction_is_one_ioreq_with_its_data_in_the_guests_memory(world: World) -> None:
    world.plug_in_board()
    world.memory.write(0x5000, b"hello")
    world.accesses.port(0x3F8, 1, 0, 5, 0x5000)
    assert world.board is not None
    world.board.com1.flush()
    assert world.serial == b"hello"
    world.accesses.port(0x12, 2, None, 8, 0x6000)
    assert world.memory.read(0x6000, 16) == b"\x01\0" * 8
    world.accesses.port(0x12, 2, None, 8, MEMORY)  # nowhere: nothing happens


def test_the_power_button_of_the_guest_ends_the_domain(world: World) -> None:
    world.plug_in_board()
    world.domain.unpause()
    world.accesses.port(0xB004, 2, 1 << 13)
    assert (world.domain.state, world.domain.shutdown_reason) == (State.SHUTDOWN, ShutdownReason.POWEROFF)


def test_a_reset_by_the_guest_is_a_reboot(world: World) -> None:
    world.plug_in_board()
    world.domain.unpause()
    world.accesses.port(0xCF9, 1, 6)
    assert (world.domain.state, world.domain.shutdown_reason) == (State.SHUTDOWN, ShutdownReason.REBOOT)


def test_modified_memory_is_told_extent_by_extent_and_only_where_there_is_memory(world: World) -> None:
    heard: list[tuple[int, int]] = []
    world.memory.listen(lambda gpa, length: heard.append((gpa, length)))
    room = world.control.domain.memory.view(0, PAGE)
    dm_op.BUF.pack_into(room, 0, 256, dm_op.SIZE)
    dm_op.BUF.pack_into(room, dm_op.BUF.size, 512, 2 * dm_op.MODIFIED_MEMORY_EXTENT.size)
    dm_op.HEADER.pack_into(room, 256, dm_op.DmOp.MODIFIED_MEMORY)
    dm_op.MODIFIED_MEMORY.pack_into(room, 256 + dm_op.HEADER.size, 2, 0)
    dm_op.MODIFIED_MEMORY_EXTENT.pack_into(room, 512, 3, 4)
    dm_op.MODIFIED_MEMORY_EXTENT.pack_into(room, 528, 1, MEMORY // PAGE)
    assert world.control.hypercall(Hypercall.DM_OP, world.domid, 2, 0) == -Errno.EINVAL
    assert heard == [(4 * PAGE, 3 * PAGE)]
    room.release()


def test_the_power_button_is_xens_and_only_an_hvm_domain_has_one(world: World) -> None:
    pressed: list[int] = []
    assert world.domain.hvm is not None
    world.domain.hvm.press_power_button = lambda: pressed.append(1)
    world.control.domains.trigger(world.domid, Trigger.POWER)
    assert pressed == [1]
    world.domain.hvm = None
    with refused(Errno.ENODEV):
        world.control.domains.trigger(world.domid, Trigger.POWER)
