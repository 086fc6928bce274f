"""The processor states in which boot protocols enter a kernel (Intel SDM volume 3, chapters 2.5, 3.4.5, 9.9 and 20).

All three have interrupts off and an IDT that is not to be used: an exception before the kernel has its own ends in a
shutdown exit.
"""

from __future__ import annotations

from struct import pack

from bivisor.boot.placement import Placement
from bivisor.cpu.registers import DescriptorTable, Segment, Sregs

CODE = 0x10
DATA = 0x18
TASK = 0x20

_CR0_PE = 1 << 0
_CR0_ET = 1 << 4
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10

_PRESENT_WRITABLE = 0x3
_LARGE = 0x80
_GIBS = 4
_TASK_DESCRIPTOR = 0x0000_8B00_0000_0067
_DATA_DESCRIPTOR = 0x00CF_9300_0000_FFFF
_CODE32_DESCRIPTOR = 0x00CF_9B00_0000_FFFF
_CODE64_DESCRIPTOR = 0x00AF_9B00_0000_FFFF


def long_mode(place: Placement) -> Sregs:
    """64-bit mode, the first 4 GiB mapped one to one with pages of 2 MiB; descriptors as `boot.rst` numbers them."""
    sregs = _flat(place, long=True)
    sregs.cr3 = _identity(place)
    sregs.cr4 = _CR4_PAE
    sregs.cr0 = _CR0_PG | _CR0_ET | _CR0_PE
    sregs.efer = _EFER_LMA | _EFER_LME
    return sregs


def protected_mode(place: Placement) -> Sregs:
    """32-bit protected mode without paging, all segments flat, a busy 32-bit TSS in TR."""
    sregs = _flat(place, long=False)
    sregs.cr0 = _CR0_ET | _CR0_PE
    return sregs


def real_mode() -> Sregs:
    """Real mode with every segment at 0, and the IDTR where the interrupt vector table is."""
    return Sregs(gdt=DescriptorTable(0, 0), idt=DescriptorTable(0, 0x3FF), cr0=_CR0_ET)


def _flat(place: Placement, *, long: bool) -> Sregs:
    code = _CODE64_DESCRIPTOR if long else _CODE32_DESCRIPTOR
    # The task descriptor of 64-bit mode has 16 bytes; the second half is zero for a base below 4 GiB.
    table = pack("<6Q", 0, 0, code, _DATA_DESCRIPTOR, _TASK_DESCRIPTOR, 0)
    gdt = place.low("GDT", len(table))
    place.memory.write(gdt, table)
    return Sregs(
        cs=Segment.flat(CODE, code=True, long=long),
        ds=_data(),
        es=_data(),
        fs=_data(),
        gs=_data(),
        ss=_data(),
        tr=Segment(base=0, limit=0x67, selector=TASK, type=11, s=0),
        gdt=DescriptorTable(gdt, len(table) - 1),
        idt=DescriptorTable(0, 0),
    )


def _data() -> Segment:
    return Segment.flat(DATA, code=False)


def _identity(place: Placement) -> int:
    """A PML4, one page-directory-pointer table and a page directory for each GiB; gives the PML4's address."""
    root = place.low("page tables", (2 + _GIBS) * 4096, align=4096)
    directories = root + 0x2000
    tables = [pack("<Q4088x", root + 0x1000 | _PRESENT_WRITABLE)]
    tables.append(pack("<4Q4064x", *(directories + 0x1000 * i | _PRESENT_WRITABLE for i in range(_GIBS))))
    flags = _LARGE | _PRESENT_WRITABLE
    tables.append(pack(f"<{512 * _GIBS}Q", *range(flags, (_GIBS << 30) + flags, 2 << 20)))
    place.memory.write(root, b"".join(tables))
    return root
