"""The kernel's own counters of a VM or vCPU (KVM API 4.133 KVM_GET_STATS_FD, "binary statistics")."""

from __future__ import annotations

import os
import struct

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import Ioctl
from bivisor.cpu.kvm.calls import call


class Statistics:
    """Named 64-bit counters behind one descriptor. Histograms come as `name[bucket]`, empty buckets left out."""

    def __init__(self, owner: int) -> None:
        self._fd = call(owner, Ioctl.GET_STATS_FD)
        header = os.pread(self._fd, abi.STATS_HEADER.size, 0)
        _, name_size, count, _, self._descriptors, self._data = abi.STATS_HEADER.unpack(header)
        stride = abi.STATS_DESC.size + name_size
        table = os.pread(self._fd, stride * count, self._descriptors)
        self._layout: list[tuple[str, int, int]] = []
        self._length = 0
        for at in range(0, stride * count, stride):
            _, _, size, offset, _ = abi.STATS_DESC.unpack_from(table, at)
            name = table[at + abi.STATS_DESC.size : at + stride].split(b"\0", 1)[0].decode("ascii", "replace")
            self._layout.append((name, offset, size))
            self._length = max(self._length, offset + 8 * size)

    def read(self) -> dict[str, int]:
        """All counters as they are now."""
        data = os.pread(self._fd, self._length, self._data)
        found: dict[str, int] = {}
        for name, offset, size in self._layout:
            values = struct.unpack_from(f"<{size}Q", data, offset)
            if size == 1:
                found[name] = values[0]
            else:
                found.update({f"{name}[{bucket}]": value for bucket, value in enumerate(values) if value})
        return found

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
