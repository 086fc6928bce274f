"""How a guest's hypercalls come out: the hypercall page, and kernels that bring their own VMCALL and VMMCALL.

Where the processor does not let VMCALL out (a KVM without Xen support answers it itself), a write to a port takes its
place. The instruction has the same three bytes: in the page it stands from the start; in a kernel that does without
the page, as Linux does since XSA-466, it replaces the two tiny functions that the kernel chooses from.
"""

from __future__ import annotations

from typing import Final

from bivisor.memory import PAGE, GuestMemory

VMCALL: Final = b"\x0f\x01\xc1"
VMMCALL: Final = b"\x0f\x01\xd9"

_CALLS: Final = PAGE // 32
_FUNCTION_ALIGNMENT: Final = 16
_ENDBR64: Final = b"\xf3\x0f\x1e\xfa"
_RETURNS: Final = (0xC3, 0xE9)  # ret, and the jump to a return thunk


def hypercall_page(instruction: bytes) -> bytes:
    """The page that a guest asks for through an MSR: 32 bytes for each number, `mov eax, NUMBER; INSTRUCTION; ret`."""
    return b"".join(
        (b"\xb8" + number.to_bytes(4, "little") + instruction + b"\xc3").ljust(32, b"\xcc") for number in range(_CALLS)
    )


def replace_hypercalls(memory: GuestMemory, gpa: int, size: int, instruction: bytes) -> int:
    """Put `instruction` where the kernel at `gpa` (a multiple of 16) makes hypercalls; how many there were.

    A hypercall is a function of its own: at an address that functions have, the instruction, and the return. Whatever
    else has these bytes (a KVM guest's calls, data) is left alone.
    """
    code = bytes(memory.view(gpa, size))
    found = 0
    for call in (VMCALL, VMMCALL):
        at = code.find(call)
        while at >= 0:
            if _is_function(code, at):
                memory.write(gpa + at, instruction)
                found += 1
            at = code.find(call, at + 1)
    return found


def _is_function(code: bytes, at: int) -> bool:
    start = at - len(_ENDBR64) if code[max(0, at - len(_ENDBR64)) : at] == _ENDBR64 else at
    after = at + len(VMCALL)
    return start % _FUNCTION_ALIGNMENT == 0 and after < len(code) and code[after] in _RETURNS
