"""Sockets, framed streams, TAP devices and passt as wires."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bivisor.errors import HostError, UsageError
from bivisor.host.framed import FramedStream
from bivisor.host.link import SocketLink, patch
from bivisor.host.loop import EventLoop, ManualLoop
from bivisor.host.passt import Passt, without_padding
from bivisor.host.tap import Tap


def view(data: bytes) -> list[memoryview]:
    return [memoryview(data)]


def test_the_first_listens_and_the_second_connects(tmp_path: Path) -> None:
    loop, path = ManualLoop(), tmp_path / "net"
    first = SocketLink(loop, path)
    assert first.send(view(b"into the void"))
    second = SocketLink(loop, path)
    loop.poll(next(iter(loop.watches)))
    assert first.connected and second.connected
    assert second.send(view(b"frame"))
    room = bytearray(100)
    assert first.receive([memoryview(room)]) == 5
    assert room[:5] == b"frame"
    second.close()
    assert first.receive([memoryview(room)]) == 0
    assert not first.connected
    third = SocketLink(loop, path)
    loop.poll(next(iter(loop.watches)))
    assert first.send(view(b"again"))
    assert third.receive([memoryview(room)]) == 5
    first.close()
    assert third.receive([memoryview(room)]) == -1
    third.close()
    assert not path.exists()
    assert not loop.watches


def test_a_socket_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "net"
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stale.bind(str(path))
    stale.close()
    SocketLink(ManualLoop(), path).close()


@pytest.mark.parametrize("name", ["missing/net", "x" * 200])
def test_a_socket_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostError, match="network socket"):
        SocketLink(ManualLoop(), tmp_path / name)


def framed() -> tuple[ManualLoop, FramedStream, socket.socket]:
    loop = ManualLoop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return loop, FramedStream(loop, ours.detach()), theirs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=10), st.lists(st.integers(1, 200), min_size=1))
def test_frames_come_out_whole_however_the_stream_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    _, wire, peer = framed()
    stream = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    got, room, turn = [], bytearray(400), 0
    while stream:
        cut = cuts[turn % len(cuts)]
        turn += 1
        peer.sendall(stream[:cut])
        stream = stream[cut:]
        while (size := wire.receive([memoryview(room)[:7], memoryview(room)[7:]])) > 0:
            got.append(bytes(room[:size]))
        assert size == 0
    assert got == frames
    peer.close()
    assert wire.receive([memoryview(room)]) == -1
    wire.close()


def test_a_frame_goes_out_behind_its_length() -> None:
    _, wire, peer = framed()
    assert wire.send([memoryview(b"ab"), memoryview(b"cde")])
    assert peer.recv(100) == b"\0\0\0\5abcde"
    wire.close()
    peer.close()


def test_a_slow_peer_stops_the_sender_and_gets_every_byte() -> None:
    loop, wire, peer = framed()
    sent = 0
    while wire.send(view(bytes([sent % 256]) * 60000)):
        sent += 1
    data = b""
    while len(data) < sent * 60004:
        data += peer.recv(1 << 20)
        _, writable = loop.watches.get(wire._fd, (None, None))
        if writable:
            writable()
    for i in range(sent):
        assert data[i * 60004 : i * 60004 + 5] == struct.pack(">IB", 60000, i % 256)
    wire.close()
    peer.close()


@pytest.mark.parametrize("length", [0, 65551, 0xFFFFFFFF])
def test_a_stream_that_makes_no_sense_is_at_its_end(length: int) -> None:
    _, wire, peer = framed()
    peer.sendall(struct.pack(">I", length) + b"x" * 10)
    assert wire.receive([memoryview(bytearray(100))]) == -1
    wire.close()
    peer.close()


def test_frames_in_the_buffer_are_offered_again_without_the_socket() -> None:
    loop, wire, peer = framed()
    peer.sendall(b"\0\0\0\1a\0\0\0\1b")
    got: list[bytes] = []
    room = bytearray(10)

    def readable() -> None:
        if (size := wire.receive([memoryview(room)])) > 0:
            got.append(bytes(room[:size]))

    readable()
    wire.watch(readable, None)
    loop.run_soon()
    assert got == [b"a", b"b"]
    wire.close()
    peer.close()


@pytest.mark.parametrize("name", ["", "a b", "x" * 16, "a/b"])
def test_a_name_that_no_device_can_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        Tap(ManualLoop(), name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may attach to every device")
def test_no_permission_for_a_tap_says_what_to_do() -> None:
    with pytest.raises(HostError, match="tun"):
        Tap(ManualLoop(), "bivisor-none")


@pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK), reason="needs root and /dev/net/tun")
def test_a_tap_is_made_opened_and_given_back() -> None:
    loop = ManualLoop()
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        tap = Tap(loop, "bvtest0")
    except HostError as error:
        pytest.skip(str(error))
    with pytest.raises(HostError, match=r"another program|Device"):
        Tap(loop, "bvtest0")
    with pytest.raises(HostError, match="not a TAP"):
        Tap(loop, "lo")
    tap.set_offloads(tap.offloads)
    tap.set_offloads(0)
    assert tap.receive([memoryview(bytearray(2000))]) == 0
    assert tap.send(view(bytes(12) + b"\xff" * 60))
    tap.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_host_without_passt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="apt install passt"):
        Passt(ManualLoop())


@given(st.binary(min_size=60, max_size=60), st.integers(0, 65535))
def test_passt_is_sent_ipv4_packets_without_the_padding_of_short_frames(frame: bytes, length: int) -> None:
    frame = frame[:12] + b"\x08\0" + frame[14:16] + struct.pack(">H", length) + frame[18:]
    assert without_padding(frame) == (frame[: 14 + length] if 20 <= length < 46 else frame)
    other = frame[:12] + b"\x86\xdd" + frame[14:]
    assert without_padding(other) == other


@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
def test_passt_answers_and_ends_with_its_wire() -> None:
    arp = b"\xff" * 6 + b"\x52\x54\0\0\0\1" + struct.pack(">HHHBBH", 0x806, 1, 0x800, 6, 4, 1)
    arp += b"\x52\x54\0\0\0\1" + bytes(4) + bytes(6) + bytes([192, 0, 2, 99])
    loop = EventLoop()
    wire = Passt(loop)
    answered, room = threading.Event(), bytearray(2000)

    def readable() -> None:
        while (size := wire.receive([memoryview(room)])) > 0:
            if room[12:14] == b"\x08\x06" and room[20:22] == b"\0\2" and size >= 42:
                answered.set()
        if size < 0:
            wire.watch(None, None)

    with loop.lock:
        wire.watch(readable, None)
        assert wire.send(view(arp))
    loop.start()
    assert answered.wait(20)
    wire.close()
    loop.close()
    with pytest.raises(ProcessLookupError):
        os.kill(wire.pid, 0)


def test_a_patch_cord_carries_packets_at_once_one_way_and_in_the_loops_turn_the_other() -> None:
    loop, room = ManualLoop(), memoryview(bytearray(100))
    prompt, patient = patch(loop)
    heard: list[bytes] = []

    def hear() -> None:
        while size := prompt.receive([room[:2], room[2:]]):
            heard.append(bytes(room[:size]))

    prompt.watch(hear, None)
    assert patient.send([memoryview(b"one"), memoryview(b" piece")])
    assert heard == [b"one piece"]
    calls: list[int] = []
    patient.watch(lambda: calls.append(patient.receive([room])), None)
    assert prompt.send([memoryview(b"back")])
    assert calls == []
    loop.run_soon()
    assert calls[0] == 4


def test_a_full_patch_cord_tells_when_there_is_room_again_and_outlives_its_other_end() -> None:
    loop, room = ManualLoop(), memoryview(bytearray(1 << 16))
    prompt, patient = patch(loop)
    data = memoryview(bytes(1 << 16))
    sent = 0
    while patient.send([data]):
        sent += 1
    told: list[int] = []

    def has_room() -> None:
        told.append(1)
        patient.watch(None, None)

    patient.watch(None, has_room)
    loop.run_soon()
    assert told == []
    assert [prompt.receive([room]) for _ in range(sent + 1)] == [1 << 16] * sent + [0]
    loop.run_soon()
    assert told == [1]
    prompt.close()
    assert patient.send([data])
    assert patient.receive([room]) == 0
    patient.close()
