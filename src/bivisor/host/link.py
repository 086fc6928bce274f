"""A cable between two guests: packets with all offloads through a socket that keeps message boundaries (unix(7)).

`cable()` joins two guests of one process. `SocketLink` joins two processes: the first that names a path listens there,
the second connects. `patch()` joins two devices of one loop, without the host's kernel.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import bit
from bivisor.errors import HostError
from bivisor.host.loop import Callback, Loop
from bivisor.host.packet import PacketFd

OFFLOADS = sum(
    bit(feature)
    for feature in (
        abi.NET_F_CSUM,
        abi.NET_F_HOST_TSO4,
        abi.NET_F_HOST_TSO6,
        abi.NET_F_HOST_ECN,
        abi.NET_F_GUEST_CSUM,
        abi.NET_F_GUEST_TSO4,
        abi.NET_F_GUEST_TSO6,
        abi.NET_F_GUEST_ECN,
    )
)
_BUFFER = 1 << 20
_PATCH_BYTES = 256 << 10


def cable(first: Loop, second: Loop) -> tuple[PacketFd, PacketFd]:
    """Two ends of a cable, one for a guest of each loop."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    for end in ends:
        _widen(end)
    left, right = ends
    return PacketFd(first, left.detach(), OFFLOADS), PacketFd(second, right.detach(), OFFLOADS)


def _widen(end: socket.socket) -> None:
    """Room for some packets of 64 KiB, as far as the host allows."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


class PatchEnd:
    """One end of a `patch`. What it sends is taken at the other end at once if that is `prompt`, else in the next turn
    of the loop, together with what else there is by then. Everything is called with the loop's lock held."""

    has_header = True
    frame_max = 0
    offloads = OFFLOADS

    def __init__(self, loop: Loop, *, prompt: bool) -> None:
        self._loop = loop
        self._prompt = prompt
        self._peer: PatchEnd | None = None
        self._here: deque[bytes] = deque()
        self._held = 0
        self._readable: Callback | None = None
        self._writable: Callback | None = None
        self._scheduled = self._serving = False

    def join(self, peer: PatchEnd) -> None:
        """What is sent here arrives at `peer`."""
        self._peer = peer

    def set_offloads(self, features: int) -> None:
        """See `platform.virtio.net.NetBackend.set_offloads`. The other end copes by itself."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `platform.virtio.net.NetBackend.watch`."""
        self._readable, self._writable = readable, writable
        self._look()

    def send(self, views: Sequence[memoryview]) -> bool:
        """See `platform.virtio.net.NetBackend.send`. Where there is no other end any more, packets are lost."""
        peer = self._peer
        if peer is None:
            return True
        if peer._held >= _PATCH_BYTES:
            return False
        packet = b"".join(views)
        peer._here.append(packet)
        peer._held += len(packet)
        if peer._prompt and not peer._serving:
            peer._serve()
        else:
            peer._look()
        return True

    def receive(self, views: Sequence[memoryview]) -> int:
        """See `platform.virtio.net.NetBackend.receive`."""
        if not self._here:
            return 0
        packet = memoryview(self._here.popleft())
        size = len(packet)
        self._held -= size
        if self._peer is not None:
            self._peer._look()
        for view in views:
            part = min(len(view), len(packet))
            view[:part] = packet[:part]
            packet = packet[part:]
        return size

    def _has_room(self) -> bool:
        return self._peer is None or self._peer._held < _PATCH_BYTES

    def _look(self) -> None:
        """Have the loop call whoever waits here, if there is what it waits for."""
        wanted = (self._here and self._readable) or (self._writable and self._has_room())
        if wanted and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._soon)

    def _soon(self) -> None:
        self._scheduled = False
        if self._writable is not None and self._has_room():
            self._writable()
        if self._here and not self._serving:
            self._serve()

    def _serve(self) -> None:
        self._serving = True
        try:
            if self._readable is not None:
                self._readable()
        finally:
            self._serving = False
        self._look()

    def close(self) -> None:
        """Hang up."""
        self._readable = self._writable = None
        self._here.clear()
        self._held = 0
        if self._peer is not None:
            self._peer._peer = None
            self._peer = None


def patch(loop: Loop) -> tuple[PatchEnd, PatchEnd]:
    """The two ends of a patch cord: the first takes packets at once, the second in the turns of the loop.

    A guest's device on the second end sends without a thread's having to wake, and is told of several packets together.
    """
    prompt, patient = PatchEnd(loop, prompt=True), PatchEnd(loop, prompt=False)
    prompt.join(patient)
    patient.join(prompt)
    return prompt, patient


class SocketLink:
    """A cable to another process through the Unix socket at `path`. While nobody is at the other end, frames are lost.

    HostError where the socket can be neither connected to nor made.
    """

    has_header = True
    frame_max = 0
    offloads = OFFLOADS

    def __init__(self, loop: Loop, path: str | Path) -> None:
        self._loop = loop
        self._path = Path(path)
        self._peer: PacketFd | None = None
        self._listener: socket.socket | None = None
        self._watched: tuple[Callback | None, Callback | None] = (None, None)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connect_or_listen(end)
        except OSError as error:
            end.close()
            raise HostError(f"network socket {path}: {error.strerror or error}") from None

    @property
    def connected(self) -> bool:
        """Whether there is somebody at the other end."""
        return self._peer is not None

    def _connect_or_listen(self, end: socket.socket) -> None:
        try:
            end.connect(os.fspath(self._path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise
            if error.errno == errno.ECONNREFUSED and self._path.is_socket():
                self._path.unlink()  # whoever listened there has gone without cleaning up
            end.bind(os.fspath(self._path))
            end.listen(1)
            end.setblocking(False)
            self._listener = end
            self._loop.watch(end.fileno(), self._accept)
        else:
            self._take(end)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            end, _ = self._listener.accept()
        except OSError:
            return
        if self._peer is not None:  # a cable has two ends
            end.close()
            return
        self._take(end)

    def _take(self, end: socket.socket) -> None:
        end.setblocking(False)
        _widen(end)
        self._peer = PacketFd(self._loop, end.detach(), self.offloads)
        self._peer.watch(*self._watched)

    def set_offloads(self, features: int) -> None:
        """See `platform.virtio.net.NetBackend.set_offloads`."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `platform.virtio.net.NetBackend.watch`."""
        self._watched = (readable, writable)
        if self._peer is not None:
            self._peer.watch(readable, writable)

    def send(self, views: Sequence[memoryview]) -> bool:
        """See `platform.virtio.net.NetBackend.send`."""
        return self._peer.send(views) if self._peer is not None else True

    def receive(self, views: Sequence[memoryview]) -> int:
        """See `platform.virtio.net.NetBackend.receive`. A peer that goes leaves its place to the next."""
        if self._peer is None:
            return 0
        size = self._peer.receive(views)
        if size >= 0:
            return size
        self._peer.close()
        self._peer = None
        return -1 if self._listener is None else 0

    def close(self) -> None:
        """Hang up, and take the socket's name away if it was made here."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
