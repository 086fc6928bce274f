"""The hypercall page, and kernels whose own VMCALL and VMMCALL are replaced."""

from __future__ import annotations

from bivisor.memory import PAGE, GuestMemory
from bivisor.xen.hypercall_entry import VMCALL, VMMCALL, hypercall_page, replace_hypercalls

OUT = b"\xe7\xe6\x90"
KERNEL = 0x100000


def test_the_page_has_32_bytes_for_each_hypercall() -> None:
    page = hypercall_page(OUT)
    assert len(page) == PAGE
    assert page[32 * 17 :].startswith(b"\xb8\x11\0\0\0" + OUT + b"\xc3\xcc")


def test_functions_that_make_hypercalls_are_found_and_other_bytes_are_left_alone() -> None:
    with GuestMemory(4 << 20) as memory:
        functions = {
            0x40: VMMCALL + b"\xe9\xa8\xe0\x3b\x00",
            0x50: VMCALL + b"\xc3",
            0x80: b"\xf3\x0f\x1e\xfa" + VMCALL + b"\xc3",
        }
        others = {0xA3: VMCALL + b"\xc3", 0xC0: VMCALL + b"\x48\x85\xc0", 0xE0: b"\xf3" + VMMCALL + b"\xc3"}
        for at, code in (functions | others).items():
            memory.write(KERNEL + at, code)
        before = memory.read(KERNEL, PAGE)
        assert replace_hypercalls(memory, KERNEL, PAGE, OUT) == 3
        after = memory.read(KERNEL, PAGE)
        changed = {at for at in range(PAGE) if before[at] != after[at]}
        assert changed == {at + i for at in (0x40, 0x50, 0x84) for i in range(3)}
        assert after[0x40:0x43] == after[0x50:0x53] == after[0x84:0x87] == OUT


def test_an_instruction_at_the_very_end_of_the_code_is_no_function() -> None:
    with GuestMemory(1 << 20) as memory:
        memory.write(PAGE - 16, bytes(13) + VMCALL)
        assert replace_hypercalls(memory, 0, PAGE, OUT) == 0
