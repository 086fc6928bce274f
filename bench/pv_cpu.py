"""What a PV domain on engine `kvm` costs a program that computes: the same loop in the guest and on the host, in turns.

A pair is `--rounds` turns here and as many there; its ratio is that of their medians. Printed are the median over the
pairs and the ratio of the least, of wall clock and of processor time: that of the threads which run the guest's
processors, beside that of the process on the host. `--vcpus` gives the guest more processors, which idle. `--alone`, as
root on a host of two processors, has both run on that one before all that is not of real-time priority, so that other
work is in the caches alone: the guest's program on its processor 0, of which alone the time is counted, and all other
threads of the guest's on the host's other processor. Needs a C compiler. Usage:

    python bench/pv_cpu.py [--pairs 15] [--rounds 3] [--vcpus 1] [--alone CPU] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bivisor.errors import HostError
from bivisor.image import default_guest, quiet
from bivisor.image.initramfs import append_exec
from bivisor.toolstack.xenhost import XenHost

SOURCE = Path(__file__).with_suffix(".c")
WORDS = "console=hvc0 quiet panic=-1 mitigations=off"
PATIENCE_S = 120.0
_PAUSE_S = 0.4
READY, BEGIN, END = b"ready-for-work", b"round begin", b"round end"


@dataclass
class Times:
    """Milliseconds of each round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def add(self, wall: float, processor: float) -> None:
        """One round more."""
        self.wall.append(wall)
        self.processor.append(processor)


class Listener:
    """What the guest says, line by line, and how long its processors had run when it said so."""

    def __init__(self) -> None:
        self._rest = b""
        self._said: list[tuple[bytes, int]] = []
        self._news = threading.Condition()
        self.cpu_time: Callable[[], int] = lambda: 0

    def hear(self, data: bytes) -> None:
        """More of it."""
        ran = self.cpu_time()
        with self._news:
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._said += [(line.strip(), ran) for line in lines]
            self._news.notify_all()

    def wait(self, word: bytes) -> tuple[bytes, int]:
        """The next line with `word` in it. HostError where none comes."""
        found: list[tuple[bytes, int]] = []

        def there() -> bool:
            while self._said and not found:
                line = self._said.pop(0)
                if word in line[0]:
                    found.append(line)
            return bool(found)

        with self._news:
            if not self._news.wait_for(there, PATIENCE_S):
                raise HostError(f"the guest did not say {word.decode()!r} within {PATIENCE_S:.0f} s")
        return found[0]


def first(thread: int, cpu: int | None) -> None:
    """Let a thread of the host's (0: the caller) have processor `cpu` before others; None: leave it as it is."""
    if cpu is not None:
        os.sched_setaffinity(thread, {cpu})
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))


def measure(pairs: int, rounds: int, vcpus: int, alone: int | None) -> list[tuple[Times, Times]]:
    """The guest's times and the host's, of each pair."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        program, initrd = Path(directory, "loop"), Path(directory, "initrd")
        subprocess.run(["cc", "-O2", "-static", SOURCE, "-o", program], check=True)
        guest = default_guest(quiet)
        start = f"stty -echo; echo {READY.decode()}; exec sh"
        initrd.write_bytes(guest.initrd.read_bytes() + append_exec(start, [("/loop", program.read_bytes())]))
        listener = Listener()
        with XenHost("kvm") as host:
            domain = host.create(
                "u1",
                guest.kernel,
                type="pv",
                memory=256,
                vcpus=vcpus,
                initrd=initrd,
                cmdline=WORDS,
                console=listener.hear,
            )
            listener.wait(READY)
            cpu_time = host.xen.domains[domain.domid].cpu_time
            counted = range(vcpus if alone is None else 1)
            listener.cpu_time = lambda: sum(cpu_time(index) for index in counted)
            where = "" if alone is None else " 0"
            busy = domain._built.guest.threads[0]._thread
            if alone is not None:
                for thread in threading.enumerate():
                    if thread.native_id:
                        first(thread.native_id, alone if thread is busy else 1 - alone)
            for _ in range(pairs):
                domain.send(f"/loop {rounds}{where}\n")
                inside, outside = Times(), Times()
                _, before = listener.wait(BEGIN)
                for _ in range(rounds):
                    line, ran = listener.wait(END)
                    inside.add(float(line.split()[2]), (ran - before) / 1e6)
                    before = ran
                time.sleep(_PAUSE_S)  # Linux leaves what is before others a twentieth less than all of a second
                command = [str(program), str(rounds)]
                begin = partial(first, 0, alone)
                run = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=begin)
                time.sleep(_PAUSE_S)
                for said in run.stdout.splitlines()[1:]:
                    _, _, wall, processor = said.split()
                    outside.add(float(wall), float(processor))
                found.append((inside, outside))
                print(f"guest {inside} host {outside}", file=sys.stderr, flush=True)
    return found


def ratios(pairs: list[tuple[list[float], list[float]]]) -> dict[str, float]:
    """Of the medians, median over the pairs, and of the least."""
    each = [statistics.median(inside) / statistics.median(outside) for inside, outside in pairs]
    least = min(min(inside) for inside, _ in pairs) / min(min(outside) for _, outside in pairs)
    return {"median": statistics.median(each), "least": least, "from": min(each), "to": max(each)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--alone", type=int, choices=(0, 1), metavar="CPU")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = measure(options.pairs, options.rounds, options.vcpus, options.alone)
    found = {
        "wall clock": ratios([(inside.wall, outside.wall) for inside, outside in pairs]),
        "processor time": ratios([(inside.processor, outside.processor) for inside, outside in pairs]),
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, each in found.items():
        print(
            f"{name:<16}guest / host: median of {len(pairs)} pairs {each['median']:.3f} "
            f"({each['from']:.3f} to {each['to']:.3f}), least / least {each['least']:.3f}"
        )


if __name__ == "__main__":
    main()
