"""Entering the guest: KVM_RUN with as little between Python and the kernel as there can be.

A call of `ioctl` through ctypes or fcntl converts three arguments and saves errno each time, which costs a quarter of a
cheap exit. So each processor gets a page with 20 bytes of code that make this one system call, arguments included
(System V ABI: result in RAX, which is -errno after a failure). Where the host forbids executable memory, ctypes calls
`ioctl` as usual.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable

from bivisor.abi.linux_kvm import Ioctl

Enter = Callable[[], int]
"""KVM_RUN: 0, or -errno. Releases the interpreter lock while the guest runs."""

_SYS_IOCTL = 16
_Function = ctypes.CFUNCTYPE(ctypes.c_long)


class EnterThunk:
    """`enter` runs the processor behind `fd`. `native` tells whether it is the short way."""

    def __init__(self, fd: int) -> None:
        self._page: mmap.mmap | None = None
        self.enter: Enter = self._in_machine_code(fd) or _through_libc(fd)

    @property
    def native(self) -> bool:
        """Whether `enter` is machine code."""
        return self._page is not None

    def _in_machine_code(self, fd: int) -> Enter | None:
        code = (
            b"\xb8" + struct.pack("<I", _SYS_IOCTL)  # mov eax, SYS_ioctl
            + b"\xbf" + struct.pack("<I", fd)  # mov edi, fd
            + b"\xbe" + struct.pack("<I", Ioctl.RUN)  # mov esi, KVM_RUN
            + b"\x31\xd2"  # xor edx, edx
            + b"\x0f\x05"  # syscall
            + b"\xc3"  # ret
        )  # fmt: skip
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
        page[: len(code)] = code
        anchor = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(anchor)
        del anchor
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            page.close()
            return None
        self._page = page
        return _Function(address)

    def close(self) -> None:
        """Give the page back. `enter` must not be called any more."""
        self.enter = _closed
        if self._page is not None:
            self._page.close()
            self._page = None


def _through_libc(fd: int) -> Enter:
    ioctl = ctypes.CDLL(None, use_errno=True).ioctl
    descriptor, request, nothing = ctypes.c_int(fd), ctypes.c_ulong(Ioctl.RUN), ctypes.c_long(0)

    def enter() -> int:
        return -ctypes.get_errno() if ioctl(descriptor, request, nothing) < 0 else 0

    return enter


def _closed() -> int:
    raise ValueError("the processor is closed")
