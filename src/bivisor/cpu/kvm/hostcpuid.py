"""CPUID of the host's processor, executed in this process: what programs see where a KVM does not intercept it."""

from __future__ import annotations

import ctypes
import mmap
import struct

_LEAVES = struct.Struct("<4I")
_CODE = (
    b"\x53"  # push rbx
    b"\x89\xf8"  # mov eax, edi
    b"\x89\xf1"  # mov ecx, esi
    b"\x49\x89\xd0"  # mov r8, rdx
    b"\x0f\xa2"  # cpuid
    b"\x41\x89\x00"  # mov [r8], eax
    b"\x41\x89\x58\x04"  # mov [r8 + 4], ebx
    b"\x41\x89\x48\x08"  # mov [r8 + 8], ecx
    b"\x41\x89\x50\x0c"  # mov [r8 + 12], edx
    b"\x5b"  # pop rbx
    b"\xc3"  # ret
)
_Function = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)


def host_cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int] | None:
    """EAX, EBX, ECX, EDX; None where the host forbids executable memory."""
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    page[: len(_CODE)] = _CODE
    anchor = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(anchor)
    del anchor
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        if libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            return None
        found = ctypes.create_string_buffer(_LEAVES.size)
        _Function(address)(leaf, subleaf, ctypes.addressof(found))
        a, b, c, d = _LEAVES.unpack(found.raw)
        return a, b, c, d
    finally:
        page.close()
