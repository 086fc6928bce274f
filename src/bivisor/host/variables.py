"""Where the content of a machine's flash is kept: in a file, or in memory until the machine's owner lets go of it.

A file is locked as the image of a disk is, and what is saved is in it at once: whoever ends the process loses nothing.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from bivisor.errors import HostError
from bivisor.host.disk import Disk

_SIZE_MAX = 8 << 20


class Variables:
    """Content that is lost with this object."""

    def __init__(self, content: bytes) -> None:
        self._content = bytearray(content)

    def load(self) -> bytes:
        """All of it."""
        return bytes(self._content)

    def save(self, offset: int, data: bytes) -> None:
        """The content at `offset` is `data` from now on."""
        self._content[offset : offset + len(data)] = data

    def close(self) -> None:
        """Nothing is held."""


class VariablesFile(Variables):
    """Content in the file `path`. What `check` raises about what the file has goes through. UsageError and HostError
    where it cannot be opened or somebody else uses it."""

    def __init__(self, path: Path, check: Callable[[bytes], bytes]) -> None:
        self._file = Disk(path, any_size=True)
        try:
            content = bytearray(min(self._file.size, _SIZE_MAX + 1))
            self._file.readv([memoryview(content)], 0)
            super().__init__(check(bytes(content)))
        except BaseException:
            self._file.close()
            raise

    def save(self, offset: int, data: bytes) -> None:
        """See `Variables.save`. OSError where the host does not take it; then the content is as it was, or some of it
        is new, as after a power failure."""
        if self._file.writev([memoryview(data)], offset) != len(data):  # the disk was full in the middle of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().save(offset, data)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def make_file(path: Path, content: bytes) -> None:
    """Make the file `path`; one that is there stays. HostError."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as temporary:
            temporary.write(content)
            temporary.flush()
            os.link(temporary.name, path)
    except FileExistsError:
        return
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
