"""The registers of an x86-64 processor in gdb's order, and the description of them that gdb asks for.

GDB manual, appendix G.5.x "i386 Features": org.gnu.gdb.i386.core, .sse and .segments; the control registers are a
feature of our own. Numbers are little-endian bytes, as gdb wants them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bivisor.cpu.contract import Vcpu
from bivisor.cpu.registers import Fpu, Regs, Sregs


@dataclass(slots=True)
class State:
    """A processor's registers, read once and written back where something was changed."""

    regs: Regs
    sregs: Sregs
    fpu: Fpu

    @classmethod
    def of(cls, vcpu: Vcpu) -> State:
        """Those of `vcpu`, which must not run."""
        return cls(vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_fpu())


@dataclass(frozen=True, slots=True)
class Register:
    """One register: `size` in bytes, `kind` as gdb names types, the part of the state that it is in."""

    name: str
    size: int
    kind: str
    feature: str
    part: str
    get: Callable[[State], int]
    set: Callable[[State, int], None] | None


_CORE, _SSE, _SEGMENTS, _SYSTEM = (
    "org.gnu.gdb.i386.core",
    "org.gnu.gdb.i386.sse",
    "org.gnu.gdb.i386.segments",
    "org.bivisor.system",
)
_GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()


def _general(name: str, kind: str = "int64", size: int = 8) -> Register:
    return Register(
        name if name != "rflags" else "eflags",
        size,
        kind,
        _CORE,
        "regs",
        lambda state: getattr(state.regs, name),
        lambda state, value: setattr(state.regs, name, value),
    )


def _selector(name: str) -> Register:
    return Register(name, 4, "int32", _CORE, "sregs", lambda state: getattr(state.sregs, name).selector, None)


def _stack(index: int) -> Register:
    def change(state: State, value: int) -> None:
        state.fpu.fpr[index] = value.to_bytes(10, "little") + bytes(6)

    return Register(
        f"st{index}",
        10,
        "i387_ext",
        _CORE,
        "fpu",
        lambda state: int.from_bytes(state.fpu.fpr[index][:10], "little"),
        change,
    )


def _full_tags(state: State) -> int:
    return sum((0 if state.fpu.ftwx >> index & 1 else 3) << 2 * index for index in range(8))


def _set_tags(state: State, value: int) -> None:
    state.fpu.ftwx = sum((value >> 2 * index & 3 != 3) << index for index in range(8))


def _fpu(name: str, field: str, feature: str = _CORE, kind: str = "int") -> Register:
    return Register(
        name,
        4,
        kind,
        feature,
        "fpu",
        lambda state: getattr(state.fpu, field) & 0xFFFF_FFFF,
        lambda state, value: setattr(state.fpu, field, value),
    )


def _zero(name: str) -> Register:
    return Register(name, 4, "int", _CORE, "fpu", lambda _: 0, lambda _, __: None)


def _xmm(index: int) -> Register:
    def change(state: State, value: int) -> None:
        state.fpu.xmm[index] = value.to_bytes(16, "little")

    return Register(
        f"xmm{index}",
        16,
        "vec128",
        _SSE,
        "fpu",
        lambda state: int.from_bytes(state.fpu.xmm[index], "little"),
        change,
    )


def _base(segment: str) -> Register:
    return Register(
        f"{segment}_base",
        8,
        "int64",
        _SEGMENTS,
        "sregs",
        lambda state: getattr(state.sregs, segment).base,
        lambda state, value: setattr(getattr(state.sregs, segment), "base", value),
    )


def _system(name: str) -> Register:
    return Register(
        name,
        8,
        "int64",
        _SYSTEM,
        "sregs",
        lambda state: getattr(state.sregs, name),
        lambda state, value: setattr(state.sregs, name, value),
    )


REGISTERS: tuple[Register, ...] = (
    *map(_general, _GENERAL),
    _general("rip", "code_ptr"),
    _general("rflags", "i386_eflags", 4),
    *map(_selector, ("cs", "ss", "ds", "es", "fs", "gs")),
    *map(_stack, range(8)),
    _fpu("fctrl", "fcw"),
    _fpu("fstat", "fsw"),
    Register("ftag", 4, "int", _CORE, "fpu", _full_tags, _set_tags),
    _zero("fiseg"),
    _fpu("fioff", "last_ip"),
    _zero("foseg"),
    _fpu("fooff", "last_dp"),
    _fpu("fop", "last_opcode"),
    *map(_xmm, range(16)),
    _fpu("mxcsr", "mxcsr", _SSE, "i386_mxcsr"),
    _base("fs"),
    _base("gs"),
    *map(_system, ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")),
)
"""In the order of gdb's numbers."""

_FLAGS = (
    "CF@0 PF@2 AF@4 ZF@6 SF@7 TF@8 IF@9 DF@10 OF@11 NT@14 RF@16 VM@17 AC@18 VIF@19 VIP@20 ID@21".split(),
    "IE@0 DE@1 ZE@2 OE@3 UE@4 PE@5 DAZ@6 IM@7 DM@8 ZM@9 OM@10 UM@11 PM@12 FZ@15".split(),
)
_VECTOR = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>'
    '<field name="uint128" type="uint128"/></union>'
)


def _flags_type(name: str, bits: list[str]) -> str:
    fields = (bit.split("@") for bit in bits)
    inside = "".join(f'<field name="{field}" start="{at}" end="{at}"/>' for field, at in fields)
    return f'<flags id="{name}" size="4">{inside}</flags>'


def target_xml() -> bytes:
    """The description of `REGISTERS` (GDB manual, appendix G "Target Descriptions")."""
    types = {
        _CORE: _flags_type("i386_eflags", _FLAGS[0]),
        _SSE: _VECTOR + _flags_type("i386_mxcsr", _FLAGS[1]),
    }
    features = dict.fromkeys(register.feature for register in REGISTERS)
    parts = ['<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    parts.append("<architecture>i386:x86-64</architecture>")
    for feature in features:
        parts.append(f'<feature name="{feature}">{types.get(feature, "")}')
        for register in REGISTERS:
            if register.feature == feature:
                name, bits = register.name, 8 * register.size
                kind = "data_ptr" if name in ("rsp", "rbp") else register.kind
                parts.append(f'<reg name="{name}" bitsize="{bits}" type="{kind}"/>')
        parts.append("</feature>")
    parts.append("</target>")
    return "".join(parts).encode()
