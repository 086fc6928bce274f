"""The Xen notes of an ELF kernel (elfnote.h): whether it can be a PV domain, and what it wants."""

from __future__ import annotations

from dataclasses import dataclass

from bivisor.abi import elf as elf_abi
from bivisor.abi.xen.pv import FEATURE_NAMES, HYPERVISOR_VIRT_START, ElfNote
from bivisor.boot.elf import Elf
from bivisor.boot.source import Source
from bivisor.errors import ImageError

_MAX_NOTES = 1 << 20
_OFFERED = frozenset({"pae_pgdir_above_4gb", "mmu_pt_update_preserve_ad", "highmem_assist", "gnttab_map_avail_bits"})


@dataclass(frozen=True, slots=True)
class XenNotes:
    """What the notes say; addresses are the guest's virtual ones. `init_p2m` is None where the list is with the kernel.

    `suspend_cancel` and the like, which a builder has no use for, are left out.
    """

    guest_os: str
    entry: int
    hypercall_page: int | None
    virt_base: int
    paddr_offset: int
    init_p2m: int | None
    mod_start_pfn: bool

    def virtual(self, paddr: int) -> int:
        """Where the kernel expects what the ELF file puts at `paddr`."""
        return self.virt_base + paddr - self.paddr_offset


def xen_notes(source: Source, elf: Elf) -> XenNotes:
    """The notes of the kernel in `source`. ImageError where it is no 64-bit PV kernel, or wants what is not there."""
    found = _read(source, elf)

    def refuse(why: str) -> ImageError:
        return ImageError(f"{source.name}: no kernel for a PV domain: {why}")

    def text(note: ElfNote) -> str:
        return found.get(note, b"").partition(b"\0")[0].decode("ascii", "replace")

    def number(note: ElfNote) -> int | None:
        data = found.get(note)
        if data is None:
            return None
        if len(data) not in (4, 8):
            raise refuse(f"the Xen note {note.name} has {len(data)} bytes instead of 8")
        return int.from_bytes(data, "little")

    if not found:
        raise refuse("it has no Xen notes")
    if elf.bits != 64 or elf.machine != elf_abi.EM_X86_64:
        raise refuse(f"it is for {elf.architecture}; only 64-bit x86 kernels run here")
    if (loader := text(ElfNote.LOADER)) not in ("", "generic"):
        raise refuse(f"it wants the loader {loader!r} instead of 'generic'")
    if (version := text(ElfNote.XEN_VERSION)) not in ("", "xen-3.0"):
        raise refuse(f"it is for {version!r} instead of 'xen-3.0'")
    entry, virt_base = number(ElfNote.ENTRY), number(ElfNote.VIRT_BASE)
    if entry is None or virt_base is None:
        raise refuse("the Xen note ENTRY or VIRT_BASE is missing")
    for feature in text(ElfNote.FEATURES).split("|"):
        if feature.startswith("!"):
            name = feature[1:]
            if name not in FEATURE_NAMES:
                continue
            if name not in _OFFERED and name != "writable_page_tables":
                raise refuse(f"it needs the feature {name}, which a PV domain does not get")
    for at, size in ((virt_base, 1), *((virt_base + s.paddr, s.memsz) for s in elf.segments)):
        if not HYPERVISOR_VIRT_START + (1 << 43) <= at <= at + size < 1 << 64:
            raise refuse(f"it wants to lie at {at:#x}, which is not in the kernel's half above the hypervisor")
    return XenNotes(
        guest_os=text(ElfNote.GUEST_OS),
        entry=entry,
        hypercall_page=number(ElfNote.HYPERCALL_PAGE),
        virt_base=virt_base,
        paddr_offset=number(ElfNote.PADDR_OFFSET) or 0,
        init_p2m=number(ElfNote.INIT_P2M),
        mod_start_pfn=bool(number(ElfNote.MOD_START_PFN)),
    )


def _read(source: Source, elf: Elf) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for header in elf.headers:
        if header.type != elf_abi.PT_NOTE or header.filesz > _MAX_NOTES:
            continue
        notes = source.read(header.offset, header.filesz)
        offset = 0
        while offset + elf_abi.NHDR.size <= len(notes):
            namesz, descsz, kind = elf_abi.NHDR.unpack_from(notes, offset)
            name = offset + elf_abi.NHDR.size
            desc = name + (namesz + 3 & ~3)
            offset = desc + (descsz + 3 & ~3)
            if notes[name : name + namesz] == elf_abi.XEN_NOTE_NAME:
                found[kind] = notes[desc : desc + descsz]
    return found
