"""A cache of files that can be made again, safe for processes that use it at the same time.

Three kinds of things live under its root: `files/` and `trees/`, by the hash of a key that names all inputs, and
`digests/`, content hashes of files elsewhere. A thing is made under a temporary name and renamed, while a lock is held,
so whoever sees it sees all of it. Beside each file stands a record of its identity (size, modification time, inode) and
of its SHA-256: while the identity is the recorded one the content is taken as read, which costs one stat; otherwise the
content is hashed, and a file that has changed is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bivisor.errors import HostError
from bivisor.image.place import default_root, identity, shape


class Cache:
    """A cache under `root`, which is made when the first thing goes in. HostError where it cannot be written."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root

    def file(self, key: str, make: Callable[[BinaryIO], object]) -> Path:
        """The file for `key`, written by `make` if it is not there or is not what `make` wrote. `key` has to name
        everything that the content depends on. What `make` raises goes through (an OSError, most likely of a full disk,
        as a HostError), and nothing is left behind."""
        path = self._place("files", key)
        if self._is_whole(path):
            return path
        with self._locked(path):
            if not self._is_whole(path):
                self._write(path, make)
                self._record(path, path, _sha256(path))
        return path

    def tree(self, key: str, make: Callable[[Path], None]) -> Path:
        """The directory for `key`, filled by `make` if it is not there or its files have not the sizes and modification
        times that they had then. What `make` raises goes through, and nothing is left behind."""
        path = self._place("trees", key)
        if self._is_whole_tree(path):
            return path
        with self._locked(path):
            if not self._is_whole_tree(path):
                shutil.rmtree(path, ignore_errors=True)
                temporary = self._directory(_temporary(path))
                try:
                    make(temporary)
                    manifest = json.dumps(_manifest(temporary)).encode()
                    self._write(_record_path(path), lambda out: out.write(manifest))
                    temporary.rename(path)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
        return path

    def digest(self, path: Path) -> str:
        """The SHA-256 of the contents of `path`, in hexadecimal; one stat when the file is the one seen before."""
        record = self._place("digests", str(path.resolve()))
        known = self._recorded(record, path)
        if known is None:
            known = _sha256(path)
            with suppress(HostError):
                self._record(record, path, known)
        return known

    def workspace(self, name: str) -> Path:
        """A directory of this name that stays, for a tool that keeps its own state."""
        return self._directory(self.root / name)

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _is_whole_tree(self, path: Path) -> bool:
        try:
            return path.is_dir() and json.loads(_record_path(path).read_bytes()) == _manifest(path)
        except (OSError, ValueError):
            return False

    def _is_whole(self, path: Path) -> bool:
        try:
            if self._recorded(path, path) is not None:
                return True
            wanted = str(json.loads(_record_path(path).read_bytes())["sha256"])
            whole = _sha256(path) == wanted
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if whole:
            with suppress(HostError):  # a cache that can only be read is one, too
                self._record(path, path, wanted)
        return whole

    def _recorded(self, record: Path, path: Path) -> str | None:
        """The SHA-256 of `path` by its record, or None where there is none or the file's identity is another."""
        try:
            found = json.loads(_record_path(record).read_bytes())
            return str(found["sha256"]) if found["identity"] == identity(path) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _record(self, record: Path, path: Path, sha256: str) -> None:
        text = json.dumps({"path": str(path), "identity": identity(path), "sha256": sha256}).encode()
        self._write(_record_path(record), lambda out: out.write(text))

    def _write(self, path: Path, make: Callable[[BinaryIO], object]) -> None:
        self._directory(path.parent)
        temporary = _temporary(path)
        try:
            try:
                with open(temporary, "xb") as out:
                    make(out)
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"cannot write to the cache: {error} (set BIVISOR_CACHE to another directory)") from error

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        self._directory(path.parent)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _directory(self, path: Path) -> Path:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"cannot make the cache {path}: {error.strerror} (set BIVISOR_CACHE to another directory)"
            ) from error
        return path


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _manifest(tree: Path) -> dict[str, list[int]]:
    """Size and modification time of each file under `tree`."""
    return {str(path.relative_to(tree)): shape(path) for path in sorted(tree.rglob("*")) if path.is_file()}


def _temporary(path: Path) -> Path:
    return path.with_name(f".new-{os.getpid()}-{threading.get_ident()}-{path.name}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
