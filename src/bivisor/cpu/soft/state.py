"""Moves a soft processor's registers between the library's memory and the contract's dataclasses."""

from __future__ import annotations

import ctypes as C
from dataclasses import replace
from typing import Any

from bivisor.abi.x86 import Cr0, Cr4, Efer, Rflags
from bivisor.cpu.registers import DescriptorTable, Fpu, Regs, Segment, Sregs
from bivisor.cpu.soft import private as p

# the order of the general registers in env->regs is the order of their encoding
_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_CC_FLAGS = 0x8D5
_DF = 0x400
_BUSY = 0x200  # in a TSS descriptor's type


def load_segment(cache: p.SegmentCache) -> Segment:
    """The contract's form of a segment cache."""
    flags = cache.flags
    present = flags >> 15 & 1
    return Segment(
        base=cache.base,
        limit=cache.limit,
        selector=cache.selector,
        type=flags >> 8 & 15,
        present=present,
        dpl=flags >> 13 & 3,
        db=flags >> 22 & 1,
        s=flags >> 12 & 1,
        l=flags >> 21 & 1,
        g=flags >> 23 & 1,
        avl=flags >> 20 & 1,
        unusable=present ^ 1,
    )


def store_segment(cache: p.SegmentCache, segment: Segment) -> None:
    """Set a segment cache. An unusable segment has no access at all."""
    cache.selector = segment.selector
    cache.base = segment.base
    cache.limit = segment.limit
    if segment.unusable:
        cache.flags = 0
        return
    cache.flags = (
        segment.type << 8
        | segment.s << 12
        | segment.dpl << 13
        | segment.present << 15
        | segment.avl << 20
        | segment.l << 21
        | segment.db << 22
        | segment.g << 23
    )


def get_regs(cpu: p.Cpu, *, inside: bool) -> Regs:
    """General registers. `inside`: a callback of the running guest asks, so the flags are still in TCG's lazy form."""
    flags = cpu.eflags.value
    if inside:
        cc_op = C.c_uint32.from_address(cpu.env + p.ENV_CC_OP).value
        direction = C.c_uint32.from_address(cpu.env + p.ENV_DF).value
        flags = flags & ~(_CC_FLAGS | _DF) | cpu.library.cc_compute_all(cpu.env, cc_op) | direction & _DF
    values: dict[str, int] = dict(zip(_GPRS, cpu.regs, strict=True))
    return Regs(**values, rip=cpu.eip.value, rflags=flags | Rflags.FIXED)


def set_regs(cpu: p.Cpu, regs: Regs) -> None:
    """Set the general registers, RIP and RFLAGS of a processor that does not run."""
    for i, name in enumerate(_GPRS):
        cpu.regs[i] = getattr(regs, name)
    cpu.eip.value = regs.rip
    cpu.eflags.value = regs.rflags & 0x3F_7FD7 | Rflags.FIXED
    update_hflags(cpu)


def get_sregs(cpu: p.Cpu) -> Sregs:
    """System registers, but for CR8 and the APIC base, which are the local APIC's."""
    task = load_segment(cpu.tr)
    segments: dict[str, Any] = {name: load_segment(cache) for name, cache in zip(_SEGMENTS, cpu.segs, strict=True)}
    return Sregs(
        **segments,
        tr=replace(task, type=task.type | _BUSY >> 8),
        ldt=load_segment(cpu.ldt),
        gdt=DescriptorTable(cpu.gdt.base, cpu.gdt.limit),
        idt=DescriptorTable(cpu.idt.base, cpu.idt.limit),
        cr0=cpu.cr[0],
        cr2=cpu.cr[2],
        cr3=cpu.cr[3],
        cr4=cpu.cr[4],
        efer=cpu.efer.value,
    )


def set_sregs(cpu: p.Cpu, sregs: Sregs) -> None:
    """Set them, with everything that the library derives from them."""
    for name, cache in zip(_SEGMENTS, cpu.segs, strict=True):
        store_segment(cache, getattr(sregs, name))
    store_segment(cpu.tr, sregs.tr)
    cpu.tr.flags &= ~_BUSY  # the library has the bit in the descriptor only, and refuses to use a TSS that has it here
    store_segment(cpu.ldt, sregs.ldt)
    cpu.gdt.base, cpu.gdt.limit = sregs.gdt.base, sregs.gdt.limit
    cpu.idt.base, cpu.idt.limit = sregs.idt.base, sregs.idt.limit
    cpu.cr[0] = sregs.cr0 | Cr0.ET
    cpu.cr[2] = sregs.cr2
    cpu.cr[3] = sregs.cr3
    cpu.cr[4] = sregs.cr4
    efer = sregs.efer & ~Efer.LMA
    if efer & Efer.LME and sregs.cr0 & Cr0.PG:
        efer |= Efer.LMA
    cpu.efer.value = efer
    update_hflags(cpu)
    cpu.library.tlb_flush(cpu.cpu)


def update_hflags(cpu: p.Cpu) -> None:
    """Derive env->hflags, by which TCG keys its translations, from the registers."""
    cr0, cr4, efer = cpu.cr[0], cpu.cr[4], cpu.efer.value
    cs, ss = cpu.segs[1].flags, cpu.segs[2].flags
    flags = cpu.hflags.value & p.HF_INHIBIT_IRQ
    protected = bool(cr0 & Cr0.PE)
    if protected:
        flags |= p.HF_PE | ss >> 13 & 3
    flags |= (cr0 >> 1 & 7) << p.HF_MP_SHIFT
    if cr4 & Cr4.OSFXSR:
        flags |= p.HF_OSFXSR
    if cr4 & Cr4.SMAP:
        flags |= p.HF_SMAP
    if efer & Efer.LMA:
        flags |= p.HF_LMA
    if efer & Efer.LMA and cs >> 21 & 1:
        flags |= p.HF_CS32 | p.HF_SS32 | p.HF_CS64
    else:
        if cs >> 22 & 1:
            flags |= p.HF_CS32
        if ss >> 22 & 1:
            flags |= p.HF_SS32
        bases = cpu.segs[3].base | cpu.segs[0].base | cpu.segs[2].base
        if not protected or cpu.eflags.value & Rflags.VM or not flags & p.HF_CS32 or bases:
            flags |= p.HF_ADDSEG
    cpu.hflags.value = flags


def get_fpu(uc: Any, constants: Any) -> Fpu:
    """x87 and SSE state, through the library's public registers."""
    k = constants
    tags = uc.reg_read(k.UC_X86_REG_FPTAG)
    in_use = sum((tags >> 2 * i & 3 != 3) << i for i in range(8))
    stack = []
    for i in range(8):
        mantissa, exponent = uc.reg_read(k.UC_X86_REG_FP0 + i)
        stack.append(mantissa.to_bytes(8, "little") + exponent.to_bytes(2, "little") + bytes(6))
    xmm = [uc.reg_read(k.UC_X86_REG_XMM0 + i).to_bytes(16, "little") for i in range(16)]
    return Fpu(
        fpr=stack,
        fcw=uc.reg_read(k.UC_X86_REG_FPCW),
        fsw=uc.reg_read(k.UC_X86_REG_FPSW),
        ftwx=in_use,
        xmm=xmm,
        mxcsr=uc.reg_read(k.UC_X86_REG_MXCSR),
    )


def set_fpu(uc: Any, constants: Any, fpu: Fpu) -> None:
    """Set it."""
    k = constants
    uc.reg_write(k.UC_X86_REG_FPCW, fpu.fcw)
    uc.reg_write(k.UC_X86_REG_FPSW, fpu.fsw)
    uc.reg_write(k.UC_X86_REG_FPTAG, sum((0 if fpu.ftwx >> i & 1 else 3) << 2 * i for i in range(8)))
    for i, value in enumerate(fpu.fpr):
        pair = (int.from_bytes(value[:8], "little"), int.from_bytes(value[8:10], "little"))
        uc.reg_write(k.UC_X86_REG_FP0 + i, pair)
    for i, value in enumerate(fpu.xmm):
        uc.reg_write(k.UC_X86_REG_XMM0 + i, int.from_bytes(value, "little"))
    uc.reg_write(k.UC_X86_REG_MXCSR, fpu.mxcsr)
