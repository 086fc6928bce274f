"""The hypervisor's console ring: what `xl dmesg` shows. The last `SIZE` bytes are kept, counted from the first on."""

from __future__ import annotations

SIZE = 16 << 10
_U32 = 0xFFFF_FFFF


class ConsoleRing:
    """`produced` bytes were written so far; those before `consumed` are not shown any more."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.produced = 0
        self.consumed = 0
        self._bytes = bytearray()

    def write(self, data: bytes) -> None:
        """Append `data`; what was written first goes first."""
        self._bytes += data
        del self._bytes[: -self.size]
        self.produced += len(data)
        self.consumed = max(self.consumed, self.produced - self.size)

    def read(self, count: int, index: int | None = None) -> tuple[bytes, int]:
        """At most `count` bytes, from `index` on if that is still there; and the index after them (32 bits).

        XEN_SYSCTL_readconsole.
        """
        start = self.consumed
        if index is not None:
            ahead = index - start & _U32
            start += ahead if ahead <= self.produced - start else 0
        first = start - (self.produced - len(self._bytes))
        data = bytes(self._bytes[first : first + count])
        return data, start + len(data) & _U32

    def clear(self, count: int) -> None:
        """Show the first `count` of the bytes no more."""
        self.consumed = min(self.produced, self.consumed + count)

    def __bytes__(self) -> bytes:
        return self.read(self.size)[0]
