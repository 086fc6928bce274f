"""Unpacked kernels, kept between runs.

A directory holds `HASH-SIZE.payload` files, named by the BLAKE2b hash of the compressed bytes, and symbolic links named
by the identity of the file that these came from (device, inode, size, times). A kernel that has been seen before is
found by one `open` and is not hashed. Only an identity that has been stable for a while becomes a link: a file written
twice within the clock's granularity would otherwise be taken for the one before.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bivisor.boot.source import Source

Make = Callable[[], Iterable[bytes]]
"""Unpacks: gives the content in pieces."""

Cache = Callable[[Source, int, int, Make], Source]
"""`cache(source, offset, length, make)`: a `Source` of what `make()` gives for these bytes of `source`, perhaps from an
earlier call. The caller closes it."""

_SETTLED_NS = 2_000_000_000
_BLOCK = 4096
_ZERO = bytes(_BLOCK)


def uncached(source: Source, offset: int, length: int, make: Make) -> Source:
    """The `Cache` that keeps nothing."""
    return Source(source.name, data=b"".join(make()))


class PayloadCache:
    """A `Cache` in `directory`, which is made when it is first needed; at most `keep` payloads stay there.

    A directory that cannot be written is no error: the kernel is unpacked in memory then. Several processes may use it.
    """

    def __init__(self, directory: Path, keep: int = 8) -> None:
        self.directory = directory
        self.keep = keep

    def __call__(self, source: Source, offset: int, length: int, make: Make) -> Source:
        """See `Cache`."""
        if source.fd is None:
            return uncached(source, offset, length, make)
        link = self._link(source, offset)
        if found := self._open(link, source.name):
            return found
        stem = _hash(source.read(offset, length))
        try:
            with contextlib.suppress(StopIteration):
                path = next(self.directory.glob(f"{stem}-*.payload"))
                if found := self._open(path, source.name):
                    self._remember(link, path, source)
                    return found
            path = self._store(stem, make())
            self._remember(link, path, source)
            self._prune(path)
            return self._open(path, source.name) or uncached(source, offset, length, make)
        except OSError:
            return uncached(source, offset, length, make)

    def _link(self, source: Source, offset: int) -> Path:
        assert source.fd is not None
        s = os.fstat(source.fd)
        identity = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, offset)
        return self.directory / ("-".join(f"{number:x}" for number in identity) + ".link")

    def _open(self, path: Path, name: str) -> Source | None:
        """The payload at `path` if it is there and as long as its own name says (a crash can leave it shorter)."""
        try:
            target = path.readlink().name if path.suffix == ".link" else path.name
            fd = os.open(self.directory / target, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        size = os.fstat(fd).st_size
        if f"{size}.payload" != target.rpartition("-")[2]:
            os.close(fd)
            return None
        return Source(name, fd=fd, size=size)

    def _store(self, stem: str, pieces: Iterable[bytes]) -> Path:
        import tempfile  # not above: it costs 5 ms, which a kernel that is cached need not pay

        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=".", delete=False) as file:
            try:
                size = 0
                for start, block in _nonzero(pieces):
                    if block:
                        file.seek(start)
                        file.write(block)
                    size = start + len(block)
                file.truncate(size)
                path = self.directory / f"{stem}-{size}.payload"
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return path

    def _remember(self, link: Path, path: Path, source: Source) -> None:
        assert source.fd is not None
        status = os.fstat(source.fd)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS:
            return
        new = link.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(FileExistsError):
            new.symlink_to(path.name)
        new.replace(link)

    def _prune(self, newest: Path) -> None:
        payloads = sorted(self.directory.glob("*.payload"), key=lambda path: path.lstat().st_mtime_ns)
        for path in payloads[: max(0, len(payloads) - self.keep)]:
            if path != newest:
                path.unlink(missing_ok=True)
        for link in self.directory.glob("*.link"):
            if not link.exists():
                link.unlink(missing_ok=True)


def _hash(data: bytes) -> str:
    from hashlib import blake2b

    return blake2b(data, digest_size=20).hexdigest()


def _nonzero(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The runs of blocks that are not all zero, with their offsets; then the end, with no bytes."""
    base = 0
    for piece in pieces:
        start = 0
        for offset in range(0, len(piece), _BLOCK):
            if piece.startswith(_ZERO, offset):
                if start < offset:
                    yield base + start, piece[start:offset]
                start = offset + _BLOCK
        if start < len(piece):
            yield base + start, piece[start:]
        base += len(piece)
    yield base, b""
