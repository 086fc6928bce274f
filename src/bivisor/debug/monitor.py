"""gdb's `monitor` commands: what a debugger has no packets for."""

from __future__ import annotations

from collections.abc import Callable

from bivisor.debug.target import Target
from bivisor.errors import EngineError


def monitor(target: Target, index: int, text: str) -> str:
    """What the command `text` prints, for processor `index`."""
    name, *words = text.split() or ["help"]
    command = _COMMANDS.get(name)
    if command is None:
        return f"there is no command {name!r}; help lists those that are\n"
    try:
        return command(target, index, words)
    except (ValueError, IndexError):
        return f"{_USES[name]}\n"
    except EngineError as error:
        return f"{error}\n"


def _help(_: Target, __: int, ___: list[str]) -> str:
    return "".join(f"{use}\n" for use in _USES.values())


def _msr(target: Target, index: int, words: list[str]) -> str:
    number = int(words[0], 0)
    vcpu = target.vcpus[index]
    if len(words) > 1:
        vcpu.set_msrs({number: int(words[1], 0)})
    return f"MSR {number:#x} = {vcpu.get_msrs([number])[number]:#x}\n"


def _translate(target: Target, index: int, words: list[str]) -> str:
    linear = int(words[0], 0)
    gpa = target.vcpus[index].translate(linear)
    return f"{linear:#x} is not mapped\n" if gpa is None else f"{linear:#x} is at {gpa:#x}\n"


def _segments(target: Target, index: int, _: list[str]) -> str:
    sregs = target.vcpus[index].get_sregs()
    lines = []
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        seg = getattr(sregs, name)
        where = f"base {seg.base:#x} limit {seg.limit:#x}"
        lines.append(f"{name:3} {seg.selector:04x} {where} type {seg.type} dpl {seg.dpl}\n")
    lines.append(f"gdt base {sregs.gdt.base:#x} limit {sregs.gdt.limit:#x}\n")
    lines.append(f"idt base {sregs.idt.base:#x} limit {sregs.idt.limit:#x}\n")
    return "".join(lines)


def _counters(target: Target, index: int, _: list[str]) -> str:
    counts = target.vcpus[index].counters
    return "".join(f"{name:24} {count}\n" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


_COMMANDS: dict[str, Callable[[Target, int, list[str]], str]] = {
    "help": _help,
    "msr": _msr,
    "translate": _translate,
    "segments": _segments,
    "exits": _counters,
}
_USES = {
    "help": "help                    this list",
    "msr": "msr NUMBER [VALUE]      read or write a model-specific register",
    "translate": "translate ADDRESS       the guest-physical address of a linear one",
    "segments": "segments                segment and table registers with their hidden parts",
    "exits": "exits                   VM exits so far, by reason",
}
