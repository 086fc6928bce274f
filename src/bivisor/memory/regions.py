"""Host memory that guests see: one memfd, mapped once, cut into views without copies."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os

from bivisor.errors import GuestMemoryError, UsageError

PAGE = 4096
MAP_NORESERVE = 0x4000  # linux/mman.h on x86; module mmap has it from Python 3.13 on


def host_limit() -> int:
    """The bytes of memory that this host can back: RAM and swap, or the control group's limit if that is less."""
    fields: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) << 10
    limit = fields["MemTotal"] + fields.get("SwapTotal", 0)
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return limit
    return limit if text == "max" else min(limit, int(text))


class MemoryRegion:
    """`size` bytes of shared memory behind a memfd. `view` is all of it; `address` is where the host has it mapped.

    Pages are taken from the host when they are first touched. `close()` gives everything back and is called by `with`.
    """

    def __init__(self, size: int, name: str = "bivisor") -> None:
        if size <= 0 or size % PAGE:
            raise GuestMemoryError(f"a memory region of {size} bytes: it has to be a positive multiple of {PAGE}")
        limit = host_limit()
        if size > limit:
            raise UsageError(f"{size >> 20} MiB of guest memory: this host can back at most {limit >> 20} MiB")
        self.size = size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED | MAP_NORESERVE)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self.fd)
            raise GuestMemoryError(f"cannot map {size >> 20} MiB of guest memory: {error}") from error
        self.view = memoryview(self._map)
        probe = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(probe)
        del probe

    def close(self) -> None:
        """Unmap and close. Views that are still alive keep the mapping until they go: an error of their holder."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            gc.collect()  # a view in a reference cycle of an exception's traceback is the usual holder
            try:
                self._map.close()
            except BufferError as error:
                raise GuestMemoryError("guest memory is still in use: a view of it was not released") from error

    def __enter__(self) -> MemoryRegion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
