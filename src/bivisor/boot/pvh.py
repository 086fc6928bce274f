"""PVH: an ELF kernel entered in 32-bit protected mode with an hvm_start_info in EBX.

Specification: Xen docs/misc/pvh.pandoc and the public header arch-x86/hvm/start_info.h. The entry point is the ELF note
XEN_ELFNOTE_PHYS32_ENTRY. The initramfs is the first module.
"""

from __future__ import annotations

from bivisor.abi import hvm_start_info as abi
from bivisor.abi.boot_params import COMMAND_LINE_SIZE
from bivisor.boot import elf, state
from bivisor.boot.request import Entry, Request, put_file, put_string, vmlinux
from bivisor.cpu.registers import Regs
from bivisor.memory import HOLE_START


def boot(request: Request) -> Entry:
    """Load the kernel, its modules and its start information."""
    bzimage = request.image.bzimage
    request.check_cmdline(bzimage.header.cmdline_size if bzimage else COMMAND_LINE_SIZE - 1)
    with vmlinux(request) as inner:
        if inner is None:
            raise request.refuse("cannot be unpacked here, which PVH needs")
        source, kernel = inner
        if kernel.phys32_entry is None:
            raise request.refuse(f"a kernel for {kernel.architecture} without PVH entry point (ELF note PHYS32_ENTRY)")
        entry = kernel.phys32_entry
        elf.put(source, kernel, request.place)
    sregs = state.protected_mode(request.place)
    return request.entry(Regs(rip=entry, rbx=_start_info(request)), sregs)


def _start_info(request: Request) -> int:
    place = request.place
    command_line = put_string(place, "command line", request.cmdline)
    entries = []
    if request.initrd:
        initrd = put_file(place, "initrd", request.initrd, HOLE_START, beyond=False)
        entries.append(abi.HVM_MODLIST_ENTRY.pack(initrd.gpa, initrd.size, 0, 0))
    for source, text in request.modules:
        module = put_file(place, "module", source, HOLE_START, beyond=False)
        string = put_string(place, "module command line", text) if text else 0
        entries.append(abi.HVM_MODLIST_ENTRY.pack(module.gpa, module.size, string, 0))
    modules = _put(request, "module list", entries)
    regions = [abi.HVM_MEMMAP_TABLE_ENTRY.pack(entry.base, entry.size, entry.type, 0) for entry in place.map]
    memory_map = _put(request, "memory map", regions)
    info = abi.HVM_START_INFO.pack(
        abi.XEN_HVM_START_MAGIC_VALUE,
        abi.VERSION,
        0,
        len(entries),
        modules,
        command_line,
        request.rsdp or 0,
        memory_map,
        len(regions),
        0,
    )
    return _put(request, "hvm_start_info", [info])


def _put(request: Request, name: str, parts: list[bytes]) -> int:
    """Put the parts one after the other into low memory; 0 if there are none."""
    data = b"".join(parts)
    if not data:
        return 0
    gpa = request.place.low(name, len(data))
    request.place.memory.write(gpa, data)
    return gpa
