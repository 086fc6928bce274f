"""What a shared folder is to the device that serves it: nodes and handles by number, names as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

Work = Callable[[], int]
"""What another thread does; it gives the number of bytes, where there are any."""
Entry = tuple[int, os.stat_result]
"""The number of a node, and what is known of its file."""


class Listing(Protocol):
    """A folder that is being read."""

    def since(self, place: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode number and d_type of the entries from `place` on."""


class Folder(Protocol):
    """What is shared. Every method may raise OSError; see `bivisor.host.shared_folder.SharedFolder`."""

    uid: int
    gid: int

    def lookup(self, parent: int, name: bytes) -> Entry:
        """What stands as `name` in the folder `parent`, counted once more."""

    def forget(self, node: int, count: int) -> None:
        """The guest takes back `count` lookups of a node; what makes no sense is ignored."""

    def hurry(self) -> None:
        """Nobody waits any more for what other threads do: it may end early, until `forget_all`."""

    def forget_all(self) -> None:
        """The guest has closed and forgotten everything."""

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link."""

    def mknod(self, parent: int, name: bytes, mode: int) -> Entry:
        """Make an empty regular file."""

    def mkdir(self, parent: int, name: bytes, mode: int) -> Entry:
        """Make a folder."""

    def link(self, node: int, parent: int, name: bytes) -> Entry:
        """Give a file another name."""

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is not a folder's."""

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty folder."""

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Move a name; `flags` are renameat2(2)'s."""

    def status(self, node: int, handle: int | None = None) -> os.stat_result:
        """What is known of a file, or of the one that is open as `handle`."""

    def readlink(self, node: int) -> bytes:
        """Where a symbolic link leads."""

    def set_mode(self, node: int, mode: int) -> None:
        """Change the permissions."""

    def set_size(self, node: int, size: int, handle: int | None = None) -> None:
        """Cut a file off, or make it longer."""

    def set_times(self, node: int, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set when a file was read and changed last; None leaves it."""

    def statfs(self, node: int) -> os.statvfs_result:
        """The file system that a file is in."""

    def open(self, node: int, flags: int) -> int:
        """Open a regular file, and give the handle."""

    def create(self, parent: int, name: bytes, flags: int, mode: int) -> tuple[Entry, int]:
        """Open the file `name`, made if need be, and give the handle."""

    def readv(self, handle: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill `views` from `offset` on; how many bytes there were."""

    def writev(self, handle: int, views: Sequence[memoryview], offset: int) -> int | Work:
        """Write `views`; how many bytes that were, or what will write them."""

    def sync(self, handle: int, data_only: bool) -> Work:
        """What waits until everything written is stable."""

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> Work:
        """What changes the space behind a part of a file."""

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """Where data or a hole begins."""

    def release(self, handle: int) -> None:
        """Close a file or folder."""

    def opendir(self, node: int) -> int:
        """Open a folder to list it, and give the handle."""

    def listing(self, handle: int) -> Listing:
        """An open folder."""

    def sync_folder(self, handle: int) -> Work:
        """What waits until the names of an open folder are stable."""
