"""The virtio console: a terminal on a device of its own, and named ports on a device with several."""

from __future__ import annotations

import struct

from virtio_driver import DriverQueue, RecordingTransport, bring_up

from bivisor.abi import virtio as abi
from bivisor.host.loop import ManualLoop
from bivisor.host.memstream import MemoryStream
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.console import Port, VirtioConsole

DATA = 0x180000
IN, OUT, CONTROL_IN, CONTROL_OUT = 0, 1, 2, 3


class Rig:
    """A console device and its driver in 4 MiB of memory."""

    def __init__(self, *names: str, limit: int = 1 << 20) -> None:
        self.memory = GuestMemory(4 << 20)
        self.loop = ManualLoop()
        self.streams = [MemoryStream(self.loop, limit=limit) for _ in names]
        self.opened: list[tuple[str, bool]] = []
        self.ports = [
            Port(stream, name, on_open=lambda is_open, name=name: self.opened.append((name, is_open)))  # type: ignore[misc]
            for stream, name in zip(self.streams, names, strict=True)
        ]
        self.device = VirtioConsole(self.ports, size=(100, 40))
        self.transport: RecordingTransport
        self.queues: list[DriverQueue]
        self.transport, self.queues = bring_up(self.device, self.memory)
        self.buffers: dict[int, int] = {}
        if len(names) > 1:
            self.controls()

    def guest_writes(self, data: bytes, queue: int = OUT) -> None:
        self.memory.write(DATA, data)
        self.queues[queue].add([(DATA, len(data))], [])
        self.device.notify(queue)

    def guest_offers(self, length: int, queue: int = IN, at: int = DATA + 0x1000) -> None:
        self.queues[queue].add([], [(at, length)])
        self.device.notify(queue)

    def guest_reads(self, queue: int = IN, at: int = DATA + 0x1000) -> list[bytes]:
        return [self.memory.read(at, written) for _, written in self.queues[queue].take()]

    def controls(self) -> list[tuple[int, int, int, bytes]]:
        """The control messages that are there now; buffers for eight at a time are always offered."""
        queue = self.queues[CONTROL_IN]
        found = []
        for head, written in queue.take():
            message = self.memory.read(self.buffers.pop(head), written)
            found.append((*struct.unpack_from("<IHH", message), message[8:]))
        while len(self.buffers) < 8:
            address = DATA + 0x2000 + 64 * queue.avail_idx
            offered = queue.add([], [(address, 64)])
            assert offered is not None
            self.buffers[offered] = address
        self.device.notify(CONTROL_IN)
        return found

    def control(self, port: int, event: int, value: int) -> None:
        self.guest_writes(struct.pack("<IHH", port, event, value), CONTROL_OUT)

    def close(self) -> None:
        self.device.close()
        self.memory.close()


def test_what_the_guest_writes_comes_out() -> None:
    rig = Rig("")
    rig.guest_writes(b"Debian GNU/Linux\n")
    assert rig.streams[0].take() == b"Debian GNU/Linux\n"
    assert len(rig.queues[OUT].take()) == 1
    rig.close()


def test_a_single_console_needs_no_control_queues() -> None:
    rig = Rig("")
    assert len(rig.queues) == 2
    assert not rig.device.offered >> abi.CONSOLE_F_MULTIPORT & 1
    rig.close()


def test_input_waits_until_the_guest_has_a_buffer_for_it() -> None:
    rig = Rig("")
    rig.streams[0].send(b"uname -r\n")
    rig.loop.run_soon()
    assert rig.guest_reads() == []
    rig.guest_offers(4)
    rig.loop.run_soon()
    assert rig.guest_reads() == [b"unam"]
    rig.guest_offers(64)
    rig.loop.run_soon()
    assert rig.guest_reads() == [b"e -r\n"]
    rig.close()


def test_a_reader_who_is_slow_makes_the_guest_wait_and_loses_nothing() -> None:
    rig = Rig("", limit=10)
    rig.guest_writes(b"0123456789abcdef")
    rig.memory.write(DATA + 0x100, b"ghi")
    rig.queues[OUT].add([(DATA + 0x100, 3)], [])
    rig.device.notify(OUT)
    assert rig.queues[OUT].take() == []
    assert rig.streams[0].take() == b"0123456789"
    rig.loop.run_soon()
    assert rig.streams[0].take() == b"abcdefghi"
    assert len(rig.queues[OUT].take()) == 2
    rig.close()


def test_a_new_size_is_in_the_configuration() -> None:
    rig = Rig("")
    assert struct.unpack_from("<HH", rig.device.config) == (100, 40)
    rig.device.resize(132, 50)
    assert struct.unpack_from("<HH", rig.device.config) == (132, 50)
    assert rig.transport.config_changes == 1
    rig.close()


def test_ports_are_announced_named_and_opened() -> None:
    rig = Rig("", "bivisor.exec")
    rig.control(0xFFFFFFFF, abi.CONSOLE_DEVICE_READY, 1)
    assert rig.controls() == [(0, abi.CONSOLE_DEVICE_ADD, 1, b""), (1, abi.CONSOLE_DEVICE_ADD, 1, b"")]
    rig.control(0, abi.CONSOLE_PORT_READY, 1)
    assert rig.controls() == [
        (0, abi.CONSOLE_CONSOLE_PORT, 1, b""),
        (0, abi.CONSOLE_RESIZE, 0, struct.pack("<HH", 100, 40)),
        (0, abi.CONSOLE_PORT_OPEN, 1, b""),
    ]
    rig.control(1, abi.CONSOLE_PORT_READY, 1)
    assert rig.controls() == [(1, abi.CONSOLE_PORT_NAME, 1, b"bivisor.exec"), (1, abi.CONSOLE_PORT_OPEN, 1, b"")]
    rig.close()


def test_a_named_port_gets_input_once_the_guest_has_opened_it() -> None:
    rig = Rig("", "agent")
    rig.control(1, abi.CONSOLE_PORT_READY, 1)
    rig.streams[1].send(b"exit 7")
    rig.guest_offers(64, 4)
    rig.loop.run_soon()
    assert rig.guest_reads(4) == []
    rig.control(1, abi.CONSOLE_PORT_OPEN, 1)
    rig.loop.run_soon()
    assert rig.guest_reads(4) == [b"exit 7"]
    assert rig.opened == [("agent", True)]
    rig.guest_writes(b"7\n", 5)
    assert rig.streams[1].take() == b"7\n"
    rig.control(1, abi.CONSOLE_PORT_OPEN, 0)
    assert rig.opened == [("agent", True), ("agent", False)]
    rig.close()


def test_the_end_of_input_closes_the_hosts_side_of_a_port() -> None:
    rig = Rig("", "agent")
    rig.control(1, abi.CONSOLE_PORT_READY, 1)
    rig.control(1, abi.CONSOLE_PORT_OPEN, 1)
    rig.controls()
    rig.guest_offers(64, 4)
    rig.streams[1].end()
    rig.loop.run_soon()
    assert rig.controls() == [(1, abi.CONSOLE_PORT_OPEN, 0, b"")]
    rig.close()


def test_a_flood_of_control_messages_does_not_grow_the_host() -> None:
    rig = Rig("", "agent")
    for _ in range(300):  # eight of the answers have a buffer, the others have to be remembered
        rig.control(0, abi.CONSOLE_DEVICE_READY, 1)
        rig.control(1, abi.CONSOLE_PORT_READY, 1)
        rig.control(77, abi.CONSOLE_PORT_OPEN, 1)
        rig.control(0, 99, 1)
        rig.guest_writes(b"short", CONTROL_OUT)
        rig.queues[CONTROL_OUT].take()
    assert len(rig.device._control) <= 4
    assert not rig.transport.reasons
    rig.close()


def test_after_a_reset_the_stream_is_left_alone() -> None:
    rig = Rig("")
    rig.device.reset()
    rig.streams[0].send(b"later")
    rig.loop.run_soon()
    rig.memory.close()
