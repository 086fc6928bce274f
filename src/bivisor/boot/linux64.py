"""The 64-bit Linux boot protocol: a zero page in RSI, long mode, a one-to-one map.

Specification: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst. The entry point is that
of the vmlinux itself, which starts faster than the bzImage's own decompressor; that one, 0x200 bytes into the
protected-mode code, is taken where the host cannot unpack the payload.
"""

from __future__ import annotations

from bivisor.abi import boot_params as abi
from bivisor.abi.elf import EM_X86_64
from bivisor.boot import elf, state
from bivisor.boot.placement import ONE_MIB
from bivisor.boot.request import Entry, Request, put_file, put_string, vmlinux
from bivisor.boot.source import copy
from bivisor.cpu.registers import Regs

_VGA_NORMAL = 0xFFFF
_ADDRESS_LIMIT = 1 << 32


def boot(request: Request) -> Entry:
    """Load the kernel, its zero page and its initrd."""
    if request.modules:
        raise request.refuse("the Linux boot protocol takes an initrd and no modules")
    bzimage = request.image.bzimage
    request.check_cmdline(bzimage.header.cmdline_size if bzimage else abi.COMMAND_LINE_SIZE - 1)
    entry = _kernel(request)
    sregs = state.long_mode(request.place)
    zero_page = _zero_page(request)
    return request.entry(Regs(rip=entry, rsi=zero_page), sregs)


def _kernel(request: Request) -> int:
    """Put the kernel where it was linked to run; gives the entry point."""
    with vmlinux(request) as inner:
        if inner is None:
            return _own_decompressor(request)
        source, kernel = inner
        if kernel.machine != EM_X86_64 or kernel.bits != 64:
            raise request.refuse(f"a kernel for {kernel.architecture}; the 64-bit Linux protocol needs x86-64")
        if not kernel.starts_at_physical_entry:
            raise request.refuse(f"the entry point {kernel.entry:#x} is not inside the kernel")
        elf.put(source, kernel, request.place)
        return kernel.entry


def _own_decompressor(request: Request) -> int:
    bzimage = request.image.bzimage
    if bzimage is None or not bzimage.entry64:
        packed = bzimage.compression if bzimage else None
        raise request.refuse(f"packed with {packed or 'an unknown format'}, and has no 64-bit entry point")
    header = bzimage.header
    length = header.syssize * 16
    base = header.pref_address or ONE_MIB
    request.place.at("kernel", [(base, max(header.init_size, length))])
    copy(request.source, bzimage.code_offset, length, request.place.memory, base)
    return base + abi.ENTRY64_OFFSET


def _zero_page(request: Request) -> int:
    place = request.place
    if len(place.map) > abi.E820_MAX_ENTRIES_ZEROPAGE:
        raise request.refuse(f"a memory map of {len(place.map)} entries; the zero page has room for 128")
    page = bytearray(abi.BOOT_PARAMS_SIZE)
    bzimage = request.image.bzimage
    if bzimage:
        page[abi.SETUP_HEADER_START : abi.SETUP_HEADER_START + len(bzimage.raw_header)] = bzimage.raw_header
        initrd_max, above = bzimage.header.initrd_addr_max, bzimage.above_4g
    else:
        page[abi.SETUP_HEADER_START : abi.SETUP_HEADER_START + abi.SETUP_HEADER.size] = _own_header()
        initrd_max, above = 0x7FFF_FFFF, True
    page[abi.TYPE_OF_LOADER] = abi.LOADER_UNDEFINED
    for index, entry in enumerate(place.map):
        at = abi.E820_TABLE + index * abi.E820_ENTRY.size
        abi.E820_ENTRY.pack_into(page, at, entry.base, entry.size, entry.type)
    page[abi.E820_ENTRIES] = len(place.map)
    _put(page, abi.ACPI_RSDP_ADDR, 8, request.rsdp or 0)
    _put(page, abi.CMD_LINE_PTR, 4, put_string(place, "command line", request.cmdline))
    if request.initrd:
        initrd = put_file(place, "initrd", request.initrd, initrd_max + 1, above)
        _put_split(page, abi.RAMDISK_IMAGE, abi.EXT_RAMDISK_IMAGE, initrd.gpa)
        _put_split(page, abi.RAMDISK_SIZE, abi.EXT_RAMDISK_SIZE, initrd.size)
    gpa = place.low("boot_params", len(page), align=4096)
    place.memory.write(gpa, page)
    return gpa


def _own_header() -> bytes:
    """The setup header for a vmlinux that came without one: only what the kernel looks at."""
    zero = abi.SetupHeader._make(abi.SETUP_HEADER.unpack(bytes(abi.SETUP_HEADER.size)))
    return abi.SETUP_HEADER.pack(
        *zero._replace(
            boot_flag=abi.BOOT_FLAG, header=abi.HEADER, version=0x020C, vid_mode=_VGA_NORMAL, loadflags=abi.LOADED_HIGH
        )
    )


def _put(page: bytearray, offset: int, size: int, value: int) -> None:
    page[offset : offset + size] = value.to_bytes(size, "little")


def _put_split(page: bytearray, low: int, high: int, value: int) -> None:
    _put(page, low, 4, value % _ADDRESS_LIMIT)
    _put(page, high, 4, value // _ADDRESS_LIMIT)
