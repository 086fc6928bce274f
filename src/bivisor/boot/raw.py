"""Raw images: the file at 0x7c00, entered in real mode, as a PC's firmware enters a boot sector.

There is no firmware: the interrupt vector table and the BIOS data area are zero. CS:IP is 0:0x7c00, SS:SP is the same,
so that the stack grows down from the image; DL is 0x80, the first disk's number; interrupts are off. The whole file is
loaded, up to 0x90000. An image without the boot signature has to be asked for as protocol "raw".
"""

from __future__ import annotations

from bivisor.boot import state
from bivisor.boot.image import RAW_BASE, RAW_END
from bivisor.boot.request import Entry, Request
from bivisor.boot.source import copy
from bivisor.cpu.registers import Regs

_FIRST_DISK = 0x80


def boot(request: Request) -> Entry:
    """Load the image."""
    if request.initrd or request.modules or request.cmdline:
        raise request.refuse("a raw image takes no command line, initrd or modules")
    source, room = request.source, RAW_END - RAW_BASE
    if source.size > room:
        raise request.refuse(f"a raw image of {source.size} bytes; at most {room} fit from {RAW_BASE:#x} on")
    request.place.at("raw image", [(RAW_BASE, source.size)])
    copy(source, 0, source.size, request.place.memory, RAW_BASE)
    return request.entry(Regs(rip=RAW_BASE, rsp=RAW_BASE, rdx=_FIRST_DISK), state.real_mode())
