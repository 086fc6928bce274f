"""What a kernel's services cost a program in a guest: KVM's architecture, PVH and PV, on each engine.

The same stock kernel, initramfs and memory everywhere; a static program (guest_costs.c) measures a loop of its own, a
system call, a page fault, a context switch and fork, exec and exit, each as the least of seven rounds. Guests are
started in turns, `--rounds` times; the least of each is shown, which a busy host spoils least, with its ratio to PVH on
the same engine. What cannot run on this host is named with its reason. Needs a C compiler. Usage:

    python bench/guest.py [--rounds 3] [--engine soft|kvm|all] [--only NAME,...] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bivisor.cpu.contract import Engine
from bivisor.cpu.measure import cpl0_speed
from bivisor.cpu.select import INTERPRETING_BELOW, millions, open_engine
from bivisor.errors import BivisorError, HostError
from bivisor.image import Guest, default_guest, quiet
from bivisor.image.initramfs import append_exec
from bivisor.kvm import VirtualMachine
from bivisor.toolstack.xenhost import XenHost

MIB = 1 << 20
MEMORY = 256
PATIENCE_S = 90.0
WORDS = "quiet panic=-1 mitigations=off"
DONE = b"measured-it-all"
SOURCE = Path(__file__).with_name("guest_costs.c")
FLAGS = "-O2 -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie".split()

JOBS = {
    "loop": ("a million turns of a loop", 1e9),
    "system_call": ("system call", 1e6),
    "page_fault": ("page fault", 1e6),
    "context_switch": ("context switch", 1e6),
    "fork_exec": ("fork, exec, exit", 1e6),
}
"""what guest_costs.c says, what that is, and how many of its picoseconds make a unit of the table (ms, then µs)."""

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of running the guest on an engine. `cpl0` says whether its kernel runs at CPL 0 of the processor."""

    name: str
    cpl0: bool
    run: Callable[[Engine, Guest, Path], bytes]


def hosted(engine: Engine, guest: Guest, initrd: Path) -> bytes:
    """As a virtual machine in KVM's architecture; what it said."""
    said = bytearray()
    with VirtualMachine(engine=engine, memory=MEMORY * MIB, console=said.extend) as vm:
        vm.load(guest.kernel, initrd=initrd, cmdline=f"console=ttyS0 bivisor.exit=0xf4 {WORDS}")
        vm.start()
        vm.wait(PATIENCE_S)
    return bytes(said)


def domain(type_: str) -> Callable[[Engine, Guest, Path], bytes]:
    """As a domain of this type; what it said."""

    def run(engine: Engine, guest: Guest, initrd: Path) -> bytes:
        said, done = bytearray(), threading.Event()

        def hear(data: bytes) -> None:
            said.extend(data)
            if DONE in said:
                done.set()

        with XenHost(engine) as host:
            made = host.create(
                "u1",
                guest.kernel,
                type=type_,
                memory=MEMORY,
                initrd=initrd,
                cmdline=f"console=hvc0 {WORDS}",
                console=hear,
            )
            for _ in range(int(PATIENCE_S)):
                if done.wait(1) or made.stopped.is_set():
                    break
        return bytes(said)

    return run


KINDS = (Kind("KVM", True, hosted), Kind("PVH", True, domain("pvh")), Kind("PV", False, domain("pv")))


def compile_program(into: Path) -> bytes:
    """The program of guest_costs.c; says what is missing where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit(f"{SOURCE.name} has to be compiled and there is no cc, gcc or clang (Debian: apt install gcc)")
    output = into / "guest"
    done = subprocess.run(
        [compiler, *FLAGS, "-o", output, SOURCE], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise SystemExit(f"{compiler} cannot compile {SOURCE.name}:\n{done.stderr.strip()}")
    return output.read_bytes()


def figures_of(said: bytes) -> Figures:
    """Picoseconds by job. HostError where one is missing."""
    found: Figures = {}
    for line in said.decode(errors="replace").splitlines():
        name, _, number = line.strip().partition(" ")
        if name in JOBS and number.isdecimal():
            found[name] = int(number)
    if missing := [name for name in JOBS if name not in found]:
        last = " | ".join(said.decode(errors="replace").split("\n")[-4:]).strip()
        raise HostError(f"the guest did not say what {missing[0]} costs; it ended with: {last or 'nothing'}")
    return found


def measure(engines: list[str], only: set[str], rounds: int) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """Figures of each round by "KIND on ENGINE" (and "no guest"), and why what is missing is missing."""
    found: dict[str, list[Figures]] = {}
    missing: dict[str, str] = {}
    guest = default_guest(quiet)
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(Path(folder))
        initrd = Path(folder, "initrd")
        command = f"/bivisor/guest; echo {DONE.decode()}; sleep 1"
        initrd.write_bytes(guest.initrd.read_bytes() + append_exec(command, [("/bivisor/guest", program)]))
        for _ in range(rounds):
            native = subprocess.run([Path(folder, "guest")], capture_output=True, timeout=PATIENCE_S, check=True)
            found.setdefault("no guest", []).append(figures_of(native.stdout))
            for engine in engines:
                for kind in KINDS:
                    name = f"{kind.name} on {engine}"
                    if name in missing or (only and kind.name not in only):
                        continue
                    try:
                        found.setdefault(name, []).append(once(engine, kind, guest, initrd))
                    except BivisorError as error:
                        missing[name] = str(error)
                        found.pop(name, None)
    return found, missing


def once(name: str, kind: Kind, guest: Guest, initrd: Path) -> Figures:
    """One run. HostError where this host cannot, in reasonable time."""
    engine, _ = open_engine(name)
    with engine:
        if kind.cpl0 and (speed := cpl0_speed(engine)) < INTERPRETING_BELOW:
            raise HostError(f"this {name} interprets kernel code ({millions(speed)}): it would take minutes")
        print(f"{kind.name} on {name}...", file=sys.stderr, flush=True)
        return figures_of(kind.run(engine, guest, initrd))


def least(found: dict[str, list[Figures]]) -> dict[str, Figures]:
    """The least of the rounds."""
    return {who: {job: min(f[job] for f in rounds) for job in JOBS} for who, rounds in found.items()}


def table(shown: dict[str, Figures]) -> str:
    """Figures with, in brackets, their ratio to PVH on the same engine."""
    lines = [["", *shown]]
    for job, (words, unit) in JOBS.items():
        row = [f"{words}, {'ms' if unit == 1e9 else 'µs'}"]
        for who, figures in shown.items():
            base = shown.get(f"PVH on {who.rpartition(' ')[2]}")
            ratio = f" ({figures[job] / base[job]:.2f})" if base is not None and base is not figures else ""
            row.append(f"{figures[job] / unit:.{1 if figures[job] >= 10 * unit else 2}f}{ratio}")
        lines.append(row)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join([line[0].ljust(widths[0]), *text[1:]]) for line, text in zip(lines, texts, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("soft", "kvm", "all"), default="all")
    parser.add_argument("--only", default="", help="of KVM, PVH and PV, with commas between them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    if wrong := only - {kind.name for kind in KINDS}:
        parser.error(f"--only {', '.join(wrong)}: there are {', '.join(kind.name for kind in KINDS)}")
    engines = ["soft", "kvm"] if options.engine == "all" else [options.engine]
    found, missing = measure(engines, only, options.rounds)
    shown = least(found)
    if options.json:
        print(json.dumps({"picoseconds": found, "least": shown, "missing": missing}, indent=2))
        return
    print(table(shown))
    print(f"the least of {options.rounds}; in brackets the ratio to PVH on the same engine")
    for who, why in missing.items():
        print(f"{who}: not here: {why}")


if __name__ == "__main__":
    main()
