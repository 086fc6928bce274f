"""Seeing what a guest does: each exit in words (`--trace`), and where the time goes (`--stats`).

Both stand around the handler of a processor's exits, so they cost nothing when nobody asks for them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from bivisor.abi.x86 import Msr
from bivisor.cpu.contract import ExitHandler, Vcpu
from bivisor.cpu.exits import Cpuid, Direction, Exit, Hypercall, Mmio, PortIo, RdMsr, WrMsr
from bivisor.cpu.vmx import reason_of
from bivisor.errors import UsageError
from bivisor.kvm import VirtualMachine
from bivisor.platform.bus import Bus
from bivisor.toolstack.tracing.recorder import Recorder


@contextmanager
def open_trace(name: str) -> Iterator[TextIO]:
    """The file `name` to write to, or standard error for "-". UsageError where it cannot be opened."""
    if name == "-":
        yield sys.stderr
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(name, "w", encoding="utf-8", buffering=1 << 16))
        except OSError as error:
            raise UsageError(f"--trace {name}: {error.strerror}") from None
        yield file


@dataclass(slots=True)
class _Tally:
    """Exits of one kind to one place, and the ns that it took to handle them."""

    count: int = 0
    time: int = 0


@dataclass(slots=True)
class _Processor:
    """One processor's life: when it began (ns), and its exits by (class, device)."""

    began: int
    tallies: dict[tuple[type[Any], str], _Tally] = field(default_factory=dict)


class Watcher:
    """Puts a trace (written to `trace`) and, if `timed`, a stopwatch around the exits of one machine; `recorder` gets
    all that happens in it."""

    def __init__(self, trace: TextIO | None = None, *, timed: bool = True, recorder: Recorder | None = None) -> None:
        self._trace = trace
        self._recorder = recorder
        self.timed = timed
        self._processors: dict[int, _Processor] = {}
        self._began = time.perf_counter_ns()
        self._ports: Bus | None = None
        self._mmio: Bus | None = None

    def watch(self, vm: VirtualMachine) -> None:
        """Watch `vm`, whose `wrap` is this object's, before it starts."""
        self._vm = vm
        self._ports, self._mmio = vm.ports, vm.mmio
        if self._recorder is not None:
            self._recorder.begin(vm.events)

    def wrap(self, handler: ExitHandler, vcpu: Vcpu) -> ExitHandler:
        """See `VirtualMachine`."""
        if self._trace is not None:
            handler = self._traced(handler, vcpu.index, self._trace.write)
        if self.timed:
            handler = self._measured(handler, vcpu.index)
        return handler

    def _place(self, exit_: Exit) -> str:
        """The device that `exit_` goes to, "" for none."""
        match exit_:
            case PortIo(port=address):
                bus = self._ports
            case Mmio(address=address):
                bus = self._mmio
            case _:
                return ""
        claim = bus.find(address) if bus is not None else None
        return claim.name if claim is not None else "nobody"

    def _measured(self, handler: ExitHandler, index: int) -> ExitHandler:
        clock = time.perf_counter_ns
        tallies = self._processors.setdefault(index, _Processor(clock())).tallies

        def measured(exit_: Exit) -> bool:
            key = type(exit_), self._place(exit_)
            started = clock()
            try:
                return handler(exit_)
            finally:
                tally = tallies.get(key) or tallies.setdefault(key, _Tally())
                tally.count += 1
                tally.time += clock() - started

        return measured

    def _traced(self, handler: ExitHandler, index: int, write: Callable[[str], object]) -> ExitHandler:
        def traced(exit_: Exit) -> bool:
            at = (time.perf_counter_ns() - self._began) / 1e9
            goes_on = handler(exit_)  # what was read is known afterwards
            reason, qualification, _ = reason_of(exit_)
            words = describe(exit_)
            place = self._place(exit_)
            write(f"{at:12.6f} cpu{index} {reason.name.lower()} {qualification:#x} {words}{place and '  ' + place}\n")
            return goes_on

        return traced

    def report(self, *, as_json: bool = False, out: TextIO | None = None) -> None:
        """Write what was counted, once the guest has ended."""
        out = out or sys.stderr
        figures = self.figures()
        if as_json:
            import json

            print(json.dumps(figures), file=out)
            return
        inside, outside = figures["inside_seconds"], figures["outside_seconds"]
        share = 100 * inside / (inside + outside) if inside + outside else 0.0
        print(f"{'exit':<16} {'device':<22} {'count':>9} {'ms':>10} {'µs each':>9}", file=out)
        for row in figures["exits"]:
            each = row["seconds"] * 1e6 / row["count"]
            print(
                f"{row['exit']:<16} {row['device']:<22} {row['count']:>9,} {row['seconds'] * 1e3:>10.1f} {each:>9.1f}",
                file=out,
            )
        counted = ", ".join(f"{name} {count:,}" for name, count in figures["counters"].items())
        print(f"counters of the engine {figures['engine']}: {counted}", file=out)
        print(f"inside the guest {inside:.3f} s ({share:.0f} %), outside {outside:.3f} s", file=out)

    def figures(self) -> dict[str, Any]:
        """Exits by reason and device, the engine's own counters, and the seconds inside and outside of the guest.

        Inside is all that is not spent on handling exits; the time that the guest sleeps is part of it.
        """
        now = time.perf_counter_ns()
        total: dict[tuple[type[Any], str], _Tally] = {}
        for processor in self._processors.values():
            for key, tally in processor.tallies.items():
                sum_ = total.setdefault(key, _Tally())
                sum_.count += tally.count
                sum_.time += tally.time
        outside = sum(tally.time for tally in total.values())
        life = sum(now - processor.began for processor in self._processors.values())
        rows = sorted(total.items(), key=lambda item: item[1].time, reverse=True)
        return {
            "engine": self._vm.engine.name,
            "inside_seconds": (life - outside) / 1e9,
            "outside_seconds": outside / 1e9,
            "exits": [
                {"exit": kind.__name__, "device": place, "count": tally.count, "seconds": tally.time / 1e9}
                for (kind, place), tally in rows
            ],
            "counters": {name: count for name, count in self._vm.counters.items() if count},
        }


def describe(exit_: Exit) -> str:
    """`exit_` in words, without its reason; after it was handled, so that what was read is there."""
    match exit_:
        case PortIo(direction=direction, port=port, size=size, count=count, data=data):
            arrow = "->" if direction is Direction.IN else "<-"
            times = f" x{count}" if count > 1 else ""
            return f"{direction.value} {port:#06x}/{size}{times} {arrow} {_number(data[:size])}"
        case Mmio(address=address, length=length, is_write=is_write, data=data):
            word, arrow = ("write", "<-") if is_write else ("read", "->")
            return f"{word} {address:#x}/{length} {arrow} {_number(data[:length])}"
        case RdMsr(index=index, data=data, error=error):
            return f"{_msr(index)} -> {'#GP' if error[0] else _number(data)}"
        case WrMsr(index=index, value=value, error=error):
            return f"{_msr(index)} <- {value:#x}{' #GP' if error[0] else ''}"
        case Cpuid(leaf=leaf, subleaf=subleaf):
            return f"leaf {leaf:#x}.{subleaf:#x}"
        case Hypercall(abi=abi, nr=nr, args=args, result=result):
            return f"{abi} {nr} ({', '.join(f'{arg:#x}' for arg in args)}) -> {_number(result)}"
        case _:
            return str(exit_)


def _number(data: memoryview) -> str:
    return f"{int.from_bytes(data, 'little'):#x}"


def _msr(index: int) -> str:
    try:
        return Msr(index).name
    except ValueError:
        return f"MSR {index:#x}"
