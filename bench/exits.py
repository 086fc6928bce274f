"""What a VM exit costs when Python handles it, beside the same loop in C.

Both run the same guest, which writes one byte to a port for ever, and both look the port up in a table and call what
stands there. Rounds alternate, so that both see the same machine; the ratio is that of the medians.

The stream of events (src/bivisor/events) has to cost nothing while nobody listens. So the same exits also go through a
processor's table as a machine has it, known to an `Events`, and through the same look-up without any of that, in pairs
that change their order; the figure is the median of the pairs' ratios. Usage:

    python bench/exits.py [--rounds 7] [--exits 50000] [--pairs 41] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bivisor.cpu.contract import Engine, ExitHandler, Vcpu
from bivisor.cpu.exits import Exit, Mmio, PortIo
from bivisor.cpu.exittable import ExitTable
from bivisor.cpu.select import open_engine
from bivisor.errors import BivisorError
from bivisor.events import Events, Kind
from bivisor.memory import GuestMemory
from bivisor.platform.bus import mmio_bus, port_bus

CODE_AT = 0x1000
PORT = 0x3F8
HOLE = 0x9000
TARGET = 1.4
EVENTS_TARGET = 1.02

# mov dx, 0x3f8; mov al, 'A'; 1: out dx, al; jmp 1b
PIO_GUEST = bytes.fromhex("baf803 b041 ee ebfd")
# mov al, 'A'; 1: mov [0x9000], al; jmp 1b
MMIO_GUEST = bytes.fromhex("b041 a20090 ebfb")


class Sink:
    """A device that keeps the last byte written to it."""

    def __init__(self) -> None:
        self.last = 0

    def read(self, offset: int, size: int) -> int:
        return self.last

    def write(self, offset: int, size: int, value: int) -> None:
        self.last = value


class Counted:
    """Dispatches exits to a bus as a machine does, and ends the run after `limit` of them."""

    def __init__(self) -> None:
        self.ports = port_bus()
        self.ports.attach(PORT, 8, Sink(), "sink")
        self.mmio = mmio_bus()
        self.mmio.attach(HOLE, 0x1000, Sink(), "sink")
        self.left = 0

    def table(self) -> dict[type, Callable[..., bool]]:
        """Indexed by the class of the exit."""
        ports, mmio = self.ports, self.mmio

        def port_io(exit_: PortIo) -> bool:
            ports.write(exit_.port, exit_.size, int.from_bytes(exit_.data, "little"))
            self.left -= 1
            return self.left > 0

        def memory_io(exit_: Mmio) -> bool:
            mmio.write(exit_.address, exit_.length, int.from_bytes(exit_.data, "little"))
            self.left -= 1
            return self.left > 0

        return {PortIo: port_io, Mmio: memory_io}

    def without_events(self) -> ExitHandler:
        """The look-up, and nothing else."""
        return Plain(self.table()).handle

    def with_events(self, events: Events) -> ExitHandler:
        """The look-up as a machine does it, whose exits `events` can be asked for."""
        exits = ExitTable(self.table())
        exits.watch(events, 0, 0)
        return exits.handle


class Plain:
    """What `ExitTable` would be if nobody could listen."""

    def __init__(self, handlers: dict[type, Callable[..., bool]]) -> None:
        self._find = handlers.get

    def handle(self, exit_: Exit) -> bool:
        """See `ExitTable.handle`."""
        handler = self._find(type(exit_))
        return handler is not None and handler(exit_)


@dataclass
class Result:
    """Microseconds an exit, a round each."""

    rounds: dict[str, list[float]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Without and with the code for events, by engine and guest."""
    listened: dict[str, float] = field(default_factory=dict)
    """With somebody who listens."""
    notes: list[str] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    @property
    def ratio(self) -> float | None:
        """Python's cost over C's."""
        if "c" in self.rounds and "kvm pio" in self.rounds:
            return self.median("kvm pio") / self.median("c")
        return None

    def events_ratio(self, name: str) -> float:
        """The cost of an exit with the code for events over that without it, nobody listening."""
        return statistics.median(with_ / without for without, with_ in self.pairs[name])

    @property
    def is_good(self) -> bool:
        """Whether all targets are met."""
        ratio = self.ratio
        return (ratio is None or ratio <= TARGET) and all(
            self.events_ratio(name) <= EVENTS_TARGET for name in self.pairs
        )

    def to_dict(self) -> dict[str, object]:
        medians = {name: round(self.median(name), 3) for name in self.rounds}
        ratio = self.ratio
        return {
            "median_us": medians,
            "rounds_us": {name: [round(t, 3) for t in times] for name, times in self.rounds.items()},
            "ratio_kvm_pio_to_c": None if ratio is None else round(ratio, 3),
            "target": TARGET,
            "ratio_with_events": {name: round(self.events_ratio(name), 4) for name in self.pairs},
            "events_target": EVENTS_TARGET,
            "listened_us": {name: round(each, 3) for name, each in self.listened.items()},
            "notes": self.notes,
        }


def guest(engine: Engine, code: bytes, stack: ExitStack) -> Vcpu:
    """A processor in real mode that is about to run `code`."""
    memory = stack.enter_context(GuestMemory(HOLE // 0x1000 * 0x1000))
    machine = stack.enter_context(engine.create_machine())
    machine.map(memory.slots[0])
    memory.write(CODE_AT, code)
    vcpu = machine.create_vcpu()
    sregs = vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = 0, 0
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rflags = CODE_AT, 2
    vcpu.set_regs(regs)
    return vcpu


def rounds_of(
    vcpu: Vcpu, events: Events | None = None, clock: Callable[[], float] = time.perf_counter
) -> Callable[[int], float]:
    """A function that lets the guest exit `count` times and returns the microseconds that each took."""
    counted = Counted()
    handler = counted.without_events() if events is None else counted.with_events(events)

    def one(count: int) -> float:
        counted.left = count
        started = clock()
        vcpu.run(handler)
        return (clock() - started) / count * 1e6

    return one


class CLoop:
    """The loop in C, compiled for the occasion: a process that does one round for each line it reads."""

    def __init__(self, compiler: str, directory: Path) -> None:
        source = Path(__file__).with_name("exits.c")
        binary = directory / "exits"
        subprocess.run([compiler, "-O2", "-o", str(binary), str(source)], check=True)
        self.process = subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def one(self, count: int) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the C loop ended with status {self.process.wait()}")
        return float(line)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def compare_events(name: str, vcpu: Vcpu, pairs: int, exits: int, result: Result) -> None:
    """Exits of one guest, with the code for events and without it, in time of this thread alone."""
    events = Events()
    events.listen(lambda _: None, [Kind.EXIT]).close()  # that somebody has listened before leaves nothing behind
    clock = time.thread_time
    without, with_ = rounds_of(vcpu, clock=clock), rounds_of(vcpu, events, clock)
    for one in (without, with_):
        one(exits)
    for turn in range(pairs):
        if turn & 1:
            second = with_(exits)
            result.pairs.setdefault(name, []).append((without(exits), second))
        else:
            result.pairs.setdefault(name, []).append((without(exits), with_(exits)))
    with events.subscribe([Kind.EXIT]):
        result.listened[name] = statistics.median(with_(exits) for _ in range(5))


def measure(rounds: int, exits: int, pairs: int) -> Result:
    result = Result()
    with ExitStack() as stack:
        measures: dict[str, Callable[[int], float]] = {}
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        kvm = engine_or_note("kvm", result)
        if kvm is not None:
            stack.callback(kvm.close)
            if compiler is None:
                result.notes.append("no C compiler (cc, gcc or clang): nothing to compare with")
            else:
                c_loop = CLoop(compiler, Path(stack.enter_context(tempfile.TemporaryDirectory())))
                stack.callback(c_loop.close)
                measures["c"] = c_loop.one
        for engine in (kvm, engine_or_note("soft", result)):
            if engine is not None:
                pio = guest(engine, PIO_GUEST, stack)
                measures[f"{engine.name} pio"] = rounds_of(pio)
                measures[f"{engine.name} mmio"] = rounds_of(guest(engine, MMIO_GUEST, stack))
                if pairs:
                    compare_events(f"{engine.name} pio", pio, pairs, max(1, exits // 5), result)
        for one in measures.values():
            one(max(1, exits // 10))
        for _ in range(rounds):
            for name, one in measures.items():
                result.rounds.setdefault(name, []).append(one(exits))
    return result


def engine_or_note(name: str, result: Result) -> Engine | None:
    try:
        return open_engine(name)[0]
    except BivisorError as error:
        result.notes.append(f"{name} is left out: {error}")
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--exits", type=int, default=50_000, help="exits in a round")
    parser.add_argument("--pairs", type=int, default=41, help="rounds with and without the code for events")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.rounds, options.exits, options.pairs)
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        for name, times in result.rounds.items():
            print(f"{name:10}  {statistics.median(times):7.2f} µs an exit   ({min(times):.2f} to {max(times):.2f})")
        for name, pairs in result.pairs.items():
            without, with_ = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio, listened = result.events_ratio(name), result.listened[name]
            print(
                f"{name:10}  {without:7.2f} µs without the code for events, {with_:.2f} with it and nobody listening: "
                f"{ratio:.3f} (at most {EVENTS_TARGET}); {listened:.2f} with a listener"
            )
        for note in result.notes:
            print(note)
        if result.ratio is not None:
            print(f"kvm pio in Python / in C: {result.ratio:.2f} (at most {TARGET})")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
