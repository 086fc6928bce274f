"""Wires whose descriptor carries whole packets, each with a virtio_net_hdr of 12 bytes in front (virtio 1.2, 5.1.6).

`PacketFd` is the wire of a TAP device and of a socket that keeps message boundaries.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from bivisor.host.loop import Callback, Loop


class PacketFd:
    """A wire on `fd`, which must not block and is closed with it. `offloads` is a mask of virtio-net features."""

    has_header = True
    frame_max = 0

    def __init__(self, loop: Loop, fd: int, offloads: int) -> None:
        self.offloads = offloads
        self._loop = loop
        self._fd = fd
        self._watched: tuple[Callback | None, Callback | None] = (None, None)

    def set_offloads(self, features: int) -> None:
        """See `platform.virtio.net.NetBackend.set_offloads`. A socket's other end copes by itself."""

    def watch(self, readable: Callback | None, writable: Callback | None) -> None:
        """See `platform.virtio.net.NetBackend.watch`."""
        if (readable, writable) != self._watched:
            self._watched = (readable, writable)
            if self._fd >= 0:
                self._loop.watch(self._fd, readable, writable)

    def send(self, views: Sequence[memoryview]) -> bool:
        """See `platform.virtio.net.NetBackend.send`. What the host refuses is lost, as on any wire."""
        try:
            os.writev(self._fd, views)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def receive(self, views: Sequence[memoryview]) -> int:
        """See `platform.virtio.net.NetBackend.receive`."""
        try:
            return os.readv(self._fd, views) or -1
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return -1

    def close(self) -> None:
        """End the watch and close the descriptor."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
