"""Multiboot 1: a 32-bit kernel with a header in its first 8 KiB, entered with its information structure in EBX.

Specification: Multiboot Specification version 0.6.96. The kernel is ELF32, or any format whose header tells where it
goes (the a.out kludge). The initramfs is the first module.
"""

from __future__ import annotations

from bivisor.abi import multiboot as abi
from bivisor.abi.boot_params import E820_TYPE_RAM
from bivisor.boot import elf, state
from bivisor.boot.image import MultibootHeader
from bivisor.boot.placement import EBDA, ONE_MIB
from bivisor.boot.request import Entry, Request, put_file, put_string
from bivisor.boot.source import clear, copy
from bivisor.cpu.registers import Regs
from bivisor.memory import HOLE_START

_KNOWN = abi.PAGE_ALIGN | abi.MEMORY_INFO | abi.VIDEO_MODE
_MAX_CMDLINE = 4095
_LOADER = b"Bivisor"


def boot(request: Request) -> Entry:
    """Load the kernel, its modules and its information structure."""
    request.check_cmdline(_MAX_CMDLINE)
    header = request.image.multiboot
    assert header is not None
    unknown = header.flags & abi.REQUIRED & ~_KNOWN
    if unknown:
        raise request.refuse(f"the multiboot header asks for features {unknown:#x}, which are not known")
    if header.flags & abi.VIDEO_MODE:
        raise request.refuse("the multiboot header asks for a video mode, and there is no display")
    entry = _kludge(request, header) if header.flags & abi.AOUT_KLUDGE else _elf(request)
    sregs = state.protected_mode(request.place)
    regs = Regs(rip=entry, rax=abi.BOOTLOADER_MAGIC, rbx=_information(request))
    return request.entry(regs, sregs)


def _elf(request: Request) -> int:
    kernel = request.image.elf
    assert kernel is not None
    elf.put(request.source, kernel, request.place)
    return kernel.entry


def _kludge(request: Request, header: MultibootHeader) -> int:
    """Load by the addresses in the header (section 3.1.3), each of which may contradict the others."""
    source = request.source
    start = header.offset - (header.header_addr - header.load_addr)
    length = header.load_end_addr - header.load_addr if header.load_end_addr else source.size - start
    end = header.load_addr + length
    memsz = max(length, header.bss_end_addr - header.load_addr)
    if not 0 <= start <= header.offset or length <= 0 or (header.bss_end_addr and header.bss_end_addr < end):
        raise request.refuse("damaged: the load addresses in the multiboot header contradict each other")
    if start + length > source.size:
        raise request.refuse(f"truncated: {start + length - source.size} bytes of the multiboot kernel are missing")
    request.place.at("kernel", [(header.load_addr, memsz)])
    copy(source, start, length, request.place.memory, header.load_addr)
    clear(request.place.memory, end, memsz - length)
    return header.entry_addr


def _information(request: Request) -> int:
    place = request.place
    modules = []
    files = [(request.initrd, b"")] if request.initrd else []
    for source, text in [*files, *request.modules]:
        module = put_file(place, "module", source, HOLE_START, beyond=False)
        string = put_string(place, "module command line", text)
        modules.append(abi.MODULE.pack(module.gpa, module.end, string, 0))
    list_ = _put(request, "module list", b"".join(modules))
    entry_size = abi.MEMORY_MAP_ENTRY.size - 4
    regions = b"".join(abi.MEMORY_MAP_ENTRY.pack(entry_size, entry.base, entry.size, entry.type) for entry in place.map)
    memory_map = _put(request, "memory map", regions)
    name = put_string(place, "boot loader name", _LOADER)
    lower, upper = _sizes(request)
    flags = abi.INFO_MEMORY | abi.INFO_CMDLINE | abi.INFO_MODS | abi.INFO_MEM_MAP | abi.INFO_BOOT_LOADER_NAME
    command_line = put_string(place, "command line", request.cmdline)
    info = abi.INFO.pack(
        flags, lower, upper, 0, command_line, len(modules), list_, 0, 0, 0, 0, len(regions), memory_map, 0, 0, 0, name
    )
    return _put(request, "multiboot information", info.ljust(abi.INFO_SIZE, b"\0"))


def _sizes(request: Request) -> tuple[int, int]:
    """mem_lower and mem_upper: KiB of RAM from 0 and from 1 MiB up to the first gap."""
    ram = {entry.base: entry.size for entry in request.place.map if entry.type == E820_TYPE_RAM}
    return min(ram.get(0, 0), EBDA) >> 10, ram.get(ONE_MIB, 0) >> 10


def _put(request: Request, name: str, data: bytes) -> int:
    if not data:
        return 0
    gpa = request.place.low(name, len(data))
    request.place.memory.write(gpa, data)
    return gpa
