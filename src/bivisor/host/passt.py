"""User-mode networking by passt(1): the guest reaches what the host reaches, with no privileges.

passt is started on one end of a socket pair and ends when that is closed. The release in Debian 12 repeats data of a
TCP connection whose guest has shut down its own direction before it has received all, and resets one on which the guest
has sent for 24 s without receiving a byte; later ones were not tried. It also takes the padding of a frame of the
shortest length (60 bytes, IEEE 802.3) for data of the connection, and resets that later, so padding is cut off here:
drivers of real cards pad what they send. And it sends a whole window again for every repeated acknowledgement, see
acks.py.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence

from bivisor.errors import HostError
from bivisor.host.acks import LONGEST, Thinner
from bivisor.host.framed import FramedStream
from bivisor.host.loop import Loop

_PATIENCE = 2.0
_BUFFER = 16 << 20
_SHORTEST = 60
_IPV4, _IPV4_AT = 0x0800, 14


class Passt(FramedStream):
    """A wire to a passt process of its own. `options` are further options of passt, such as ("-t", "2222:22").

    HostError where passt is not installed or cannot be started.
    """

    frame_max = 60 << 10  # it takes 65,535 bytes, and puts what is in a frame into a stream

    def __init__(self, loop: Loop, options: Sequence[str] = ()) -> None:
        program = shutil.which("passt")
        if program is None:
            raise HostError("user-mode networking needs passt: apt install passt")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # passt drops what does not fit into its socket, and the guest has to wait for it to be sent again.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        with theirs:
            command = [program, "--foreground", "--quiet", "--fd", str(theirs.fileno()), *options]
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C at the terminal is for this program to handle
                )
            except OSError as error:
                ours.close()
                raise HostError(f"cannot start {program}: {error.strerror}") from None
        ours.setblocking(False)
        super().__init__(loop, ours.detach())
        self._thinner = Thinner(loop)
        self._refused = b""

    @property
    def pid(self) -> int:
        """The process id of passt."""
        return self._process.pid

    def send(self, views: Sequence[memoryview]) -> bool:
        """See `platform.virtio.net.NetBackend.send`."""
        size = sum(map(len, views))
        if size > LONGEST:
            return super().send(views)
        frame = b"".join(views)
        if size == _SHORTEST:
            frame = without_padding(frame)
        if frame != self._refused and not self._thinner.passes(frame):
            return True
        sent = super().send((memoryview(frame),))
        self._refused = b"" if sent else frame  # it will come again, which the guest does not know
        return sent

    def receive(self, views: Sequence[memoryview]) -> int:
        """See `platform.virtio.net.NetBackend.receive`."""
        size = super().receive(views)
        if size > 0:
            self._thinner.arrives(self._view[self._start - size : self._start])
        return size

    def close(self) -> None:
        """Hang up; passt ends by itself, or is made to. Its process is reaped."""
        super().close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def without_padding(frame: bytes) -> bytes:
    """An Ethernet frame as long as the IPv4 packet in it says, if that is shorter; any other as it is."""
    kind, _, _, length = struct.unpack_from(">HBBH", frame, 12)
    return frame[: _IPV4_AT + length] if kind == _IPV4 and length >= 20 else frame
