"""Disk images in QEMU's formats, read and written by qemu-nbd(8), a helper process for each image.

The helper gets a listening socket as systemd would hand it one (sd_listen_fds(3)), so nobody waits for it to appear,
and ends when the last connection does: also when this process is killed. What it complains about becomes the error.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bivisor.errors import HostError, ImageError, UsageError
from bivisor.host import filelock, nbd
from bivisor.host.how import QEMU_FORMATS

_CONNECTIONS = 2
_PATIENCE = 20.0
_CHAIN_MAX = 64
_START = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0'


def program(name: str, path: Path) -> str:
    """Where qemu-nbd or qemu-img is. HostError says which package has it."""
    found = shutil.which(name)
    if found is None:
        raise HostError(
            f"disk {path}: images that are not raw need {name}: apt install qemu-utils (elsewhere qemu-img)"
        )
    return found


def information(path: Path, format_: str, *, force_share: bool = False) -> dict[str, Any]:
    """What qemu-img(1) says of one image, and of nothing that it names. ImageError where it is not of that format."""
    share = ["-U"] if force_share else []
    command = [program("qemu-img", path), "info", *share, "--output=json", "-f", format_, os.fspath(path.absolute())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise _complaint(path, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_chain(path: Path, format_: str, *, force_share: bool = False) -> None:
    """UsageError where an image in the chain of backing files does not say of what format the next one is: QEMU would
    guess, and a guest that once wrote the next one as a raw disk may have written what is guessed from."""
    for _ in range(_CHAIN_MAX):
        found = information(path, format_, force_share=force_share)
        backing = found.get("full-backing-filename") or found.get("backing-filename")
        if backing is None:
            return
        format_ = found.get("backing-filename-format", "")
        if not format_:
            raise UsageError(
                f"disk {path}: it does not say of what format its backing file is: "
                f"qemu-img rebase -u -b {found['backing-filename']} -F raw|qcow2 {path} writes that down"
            )
        if format_ not in QEMU_FORMATS:
            return
        path, force_share = Path(backing), True  # who has an image below is told by whoever opens it
    raise ImageError(f"disk {path}: more than {_CHAIN_MAX} backing files")


class QemuImage:
    """The image `path` of format `format_`; `snapshot` is an internal snapshot of it, which can only be read.

    `size`, `read_only` and `physical_block` as of a raw disk. HostError where the helper is missing, another machine
    has the image or the helper does not start; ImageError where the image is bad.
    """

    def __init__(
        self, path: Path, format_: str, *, read_only: bool = False, snapshot: str = "", force_share: bool = False
    ) -> None:
        self.path = path
        self.read_only = read_only or bool(snapshot)
        self.physical_block = 4096
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bivisor-disk-"))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                listener.bind(f"{folder}/nbd")
            except OSError as error:  # a path that is too long, most likely
                raise HostError(f"disk {path}: no socket in {folder}: {error} (set TMPDIR)") from None
            listener.listen(_CONNECTIONS)
            errors = stack.enter_context(tempfile.TemporaryFile())
            self._process = self._start(listener, errors.fileno(), format_, snapshot, force_share)
            listener.close()
            self._connections: list[nbd.NbdConnection] = []
            try:
                for _ in range(_CONNECTIONS):
                    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    end.connect(f"{folder}/nbd")
                    self._connections.append(nbd.NbdConnection(end))
            except OSError as error:
                self.close()
                errors.seek(0)
                raise _complaint(path, errors.read().decode(errors="replace") or str(error)) from None
        # What takes long has a connection of its own, and reads and writes do not wait for it.
        self._data, self._slow = self._connections
        self.size = self._data.size & ~511

    def _start(
        self, listener: socket.socket, errors: int, format_: str, snapshot: str, force_share: bool
    ) -> subprocess.Popen[bytes]:
        path = os.fspath(self.path.absolute())
        options = ["--discard=unmap", "--detect-zeroes=unmap"]
        if self.read_only:
            options = ["--read-only"]
        if snapshot:
            options.append(f"--load-snapshot={snapshot}")
        if force_share:
            name = path.replace(",", ",,")
            image = ["--image-opts", f"driver={format_},file.driver=file,file.filename={name},force-share=on"]
        else:
            image = [f"--format={format_}", path]
        helper = [program("qemu-nbd", self.path), f"--shared={_CONNECTIONS}", *options, *image]
        try:
            return subprocess.Popen(
                ["/bin/sh", "-c", _START, "sh", *helper],
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C at the terminal is for this program to handle
            )
        except OSError as error:
            raise HostError(f"disk {self.path}: cannot start qemu-nbd: {error.strerror}") from None

    @property
    def pid(self) -> int:
        """The process id of the helper."""
        return self._process.pid

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` with the bytes from `offset` on; how many there were. OSError."""
        return self._data.readv(views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write `views` to `offset` on; how many bytes were written. OSError."""
        return self._data.writev(views, offset)

    def flush(self) -> None:
        """Wait until all that was written is stable. OSError."""
        if not self.read_only:
            self._slow.command(nbd.FLUSH)

    def discard(self, offset: int, length: int) -> None:
        """Give the space back where that is possible. OSError."""
        if self._slow.flags & nbd.SEND_TRIM:
            self._over(nbd.TRIM, offset, length, 0)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make `length` bytes at `offset` read as zero; with `unmap` their space may be given back. OSError."""
        self._over(nbd.WRITE_ZEROES, offset, length, 0 if unmap else nbd.NO_HOLE)

    def _over(self, kind: int, offset: int, length: int, flags: int) -> None:
        end = offset + length
        while offset < end:
            piece = min(end - offset, nbd.RANGE_MAX)
            self._slow.command(kind, offset, piece, flags)
            offset += piece

    def close(self) -> None:
        """Hang up; the helper writes what it has and ends, or is made to. Its process is reaped."""
        for connection in self._connections:
            connection.close()
        if not self._connections:
            self._process.terminate()
        self._connections = []
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> QemuImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _complaint(path: Path, text: str) -> HostError | ImageError:
    """The error for what qemu-nbd or qemu-img wrote."""
    if 'Failed to get "' in text or "Failed to get shared" in text:
        return filelock.in_use(path)
    words = next((line for line in text.splitlines() if line.strip()), "it says nothing")
    for prefix in ("qemu-nbd: ", "qemu-img: "):
        words = words.removeprefix(prefix)
    if words.startswith("Failed to blk_new_open "):
        words = words.partition("': ")[2] or words
    return ImageError(f"disk {path}: {words.strip()}")
