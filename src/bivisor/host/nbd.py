"""The client's side of the network block device protocol, as far as one export of one's own helper needs it.

Specification: NetworkBlockDevice/nbd, doc/proto.md, "Newstyle negotiation", "Transmission phase", simple replies.
Data goes between the socket and the caller's views; nothing is kept here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence

SIZE_MAX = 32 << 20
"""Bytes that one read or write may move."""
RANGE_MAX = 1 << 30
"""Bytes that one request without data is asked to cover."""
_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_EXPORT_NAME = 1
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x2560_9513, 0x6744_6698
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
NO_HOLE = 1 << 1
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_TRIM, SEND_WRITE_ZEROES = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6
_VIEWS_MAX = 1024  # IOV_MAX


class NbdConnection:
    """One connection, on a blocking stream socket that it closes; one request at a time, whichever thread asks.

    `size` is the export's, `flags` say what it can do. OSError where the other end is no such server or has gone.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._header = bytearray(_REPLY.size)
        try:
            greeting = self._exactly(18)
            if greeting[:16] != _GREETING or not greeting[17] & _FIXED_NEWSTYLE:
                raise OSError(errno.EPROTO, "this is no server of network block devices")
            option = struct.pack(">I8sII", _FIXED_NEWSTYLE | _NO_ZEROES, _GREETING[8:], _OPT_EXPORT_NAME, 0)
            self._end.sendall(option)
            self.size, self.flags = struct.unpack(">QH", self._exactly(10 if greeting[17] & _NO_ZEROES else 134)[:10])
        except BaseException:
            end.close()
            raise

    def _exactly(self, size: int) -> bytes:
        found = self._end.recv(size, socket.MSG_WAITALL)
        if len(found) != size:
            raise OSError(errno.EPIPE, "the server has hung up")
        return found

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on; their size. OSError with the server's error."""
        size = sum(map(len, views))
        if not 0 < size <= SIZE_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._lock:
            self._send(READ, 0, offset, size)
            self._wait()
            self._receive(views)
        return size

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` at `offset`; their size. OSError with the server's error."""
        size = sum(map(len, views))
        if not 0 < size <= SIZE_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._lock:
            self._send(WRITE, 0, offset, size, views)
            self._wait()
        return size

    def command(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        """Carry out a request that has no data, and wait for its end. OSError with the server's error."""
        with self._lock:
            self._send(kind, flags, offset, length)
            self._wait()

    def _send(self, kind: int, flags: int, offset: int, size: int, views: Sequence[memoryview] = ()) -> None:
        header = _REQUEST.pack(_REQUEST_MAGIC, flags, kind, 0, offset, size)
        pieces = [memoryview(header), *views]
        while pieces:
            sent = self._end.sendmsg(pieces[:_VIEWS_MAX])
            pieces = _after(pieces, sent)

    def _receive(self, views: Sequence[memoryview]) -> None:
        pieces = list(views)
        while pieces:
            got = self._end.recvmsg_into(pieces[:_VIEWS_MAX], 0, socket.MSG_WAITALL)[0]
            if not got:
                raise OSError(errno.EPIPE, "the server has hung up")
            pieces = _after(pieces, got)

    def _wait(self) -> None:
        if self._end.recv_into(self._header, _REPLY.size, socket.MSG_WAITALL) != _REPLY.size:
            raise OSError(errno.EPIPE, "the server has hung up")
        magic, error, _ = _REPLY.unpack(self._header)
        if magic != _REPLY_MAGIC:
            raise OSError(errno.EPROTO, "an answer that is none")
        if error:
            raise OSError(error, os.strerror(error))

    def close(self) -> None:
        """Say good-bye and hang up."""
        with self._lock:
            try:
                self._send(DISCONNECT, 0, 0, 0)
            except OSError:
                pass  # it has gone already
            self._end.close()


def _after(pieces: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `pieces` behind the first `count` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []
