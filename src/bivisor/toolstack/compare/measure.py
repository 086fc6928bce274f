"""Running the rows: boot, log in, every phase once for the time and once for the counts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

from bivisor import events
from bivisor.cpu.contract import Engine
from bivisor.cpu.measure import cpl0_speed
from bivisor.cpu.select import INTERPRETING_BELOW, millions, open_engine
from bivisor.errors import BivisorError, HostError
from bivisor.events import Events
from bivisor.image import Guest, ProgressFactory, default_guest, quiet
from bivisor.image.pckernel import pc_guest
from bivisor.toolstack.compare import workload
from bivisor.toolstack.compare.console import Console
from bivisor.toolstack.compare.counter import KINDS, Counter
from bivisor.toolstack.compare.machines import MEMORY, Setting, Subject
from bivisor.toolstack.compare.moment import NEVER, Moment, least
from bivisor.toolstack.compare.result import BOOT, Comparison, Counts, Measured, RowResult
from bivisor.toolstack.compare.rows import ROWS, Row

BOOT_LIMIT_S = 120.0
PHASE_LIMIT_S = 60.0
PROMPT = "# "
_TRIALS = 2000
_RUNS, _OVERHEAD_RUNS = 2, 3
_LEAST_S = 1e-6

Tell = Callable[[str], None]


def compare(
    engine: str = "auto",
    *,
    only: Collection[str] = (),
    guest: Guest | None = None,
    tell: Tell = lambda _: None,
    progress: ProgressFactory = quiet,
) -> Comparison:
    """Run the rows named in `only`, all where it is empty; `tell` hears what is going on. A row that cannot be is there
    with its reason. HostError where there is no kernel or engine."""
    began = time.perf_counter()
    found = []
    with open_engine(engine)[0] as opened:
        guest = guest or _guest(tell, progress)
        slow = _slowness(opened)
        for row in ROWS:
            if not only or row.key in only:
                tell(f"{row.title}...")
                found.append(_row(row, opened, guest, slow))
                tell(_summary(row, found[-1]))
        name = opened.name
    return Comparison(name, guest.release, MEMORY, tuple(found), time.perf_counter() - began, event_cost() * 1e6)


def _guest(tell: Tell, progress: ProgressFactory) -> Guest:
    """The kernel with a PC's drivers; where it cannot be had, the default guest's, which has none for the e1000."""
    try:
        return pc_guest(progress)
    except HostError as error:
        tell(f"no kernel with every driver ({error}): taking the default guest's")
        return default_guest(progress)


def _slowness(engine: Engine) -> str:
    """Why a kernel at CPL 0 would take minutes on this engine, if it would."""
    speed = cpl0_speed(engine)
    if speed >= INTERPRETING_BELOW:
        return ""
    return f"this {engine.name} interprets kernel code ({millions(speed)}), so it would take minutes"


def _summary(row: Row, result: RowResult) -> str:
    if result.missing:
        return f"{row.title}: not here: {result.missing}"
    return f"{row.title}: user space after {result.phases[BOOT].seconds:.1f} s, {result.seconds:.0f} s in all"


def _row(row: Row, engine: Engine, guest: Guest, slow: str) -> RowResult:
    if slow and row.needs_cpl0:
        return RowResult(row.key, missing=slow)
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="bivisor-compare-") as folder, ExitStack() as stack:
            phases, notes = _run(row, Setting(engine, guest, Path(folder)), stack)
    except BivisorError as error:
        return RowResult(row.key, missing=str(error), seconds=time.perf_counter() - began)
    return RowResult(row.key, phases, notes, seconds=time.perf_counter() - began)


def _run(row: Row, setting: Setting, stack: ExitStack) -> tuple[dict[str, Measured], dict[str, str]]:
    console = Console()
    began = Moment.now()
    subject = row.start(setting, console, stack)
    counter = Counter(subject.domain, subject.counters)
    listener = subject.events.listen(counter.hear, KINDS)
    subject.start()
    console.wait_for("login: " if subject.login else PROMPT, BOOT_LIMIT_S)
    listener.close()
    passed = Moment.now().since(began)
    phases = {BOOT: Measured(passed.wall, 1, counter.counts(), passed.cpu)}
    if subject.login:
        subject.send("root\n")
        console.wait_for(PROMPT, PHASE_LIMIT_S)
    subject.send(workload.setup(subject.disk) + "\n")
    console.wait_for(PROMPT, PHASE_LIMIT_S)
    notes: dict[str, str] = {}
    has = {need: _has(subject, need) for need in ("disk", "network")}
    runner = _Phases(subject)
    for phase in workload.PHASES:
        if phase.needs and not has[phase.needs]:
            notes[phase.key] = f"Linux {setting.guest.release} has no driver for its {phase.needs}"
            continue
        try:
            phases[phase.key] = runner.run(phase)
        except HostError as error:
            notes[phase.key] = str(error)
    return phases, notes


def _has(subject: Subject, need: str) -> bool:
    subject.send(workload.has(need) + "\n")
    return "ha0s" in subject.console.wait_for("0", PHASE_LIMIT_S) + subject.console.wait_for(PROMPT, PHASE_LIMIT_S)


class _Phases:
    """Phases of one guest, each command under a number of its own."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._number = 0

    def run(self, phase: workload.Phase) -> Measured:
        """The seconds that it takes at best, and what a second run of it counts. HostError, GuestTimeout."""
        to_peer = phase.key == workload.SEND
        passed = least([self._timed(phase.command, to_peer) for _ in range(_RUNS)])
        counts = self._counted(phase.command, to_peer)
        if phase.overhead:
            passed = passed.since(least([self._timed(phase.overhead) for _ in range(_OVERHEAD_RUNS)]))
            counts = counts.minus(self._counted(phase.overhead))
        return Measured(max(passed.wall, _LEAST_S), phase.units, counts, max(passed.cpu, _LEAST_S))

    def _timed(self, command: str, to_peer: bool = False) -> Moment:
        """What passed between the marks, or between the first and the last byte that came over the network."""
        subject, number = self._subject, self._number
        self._number += 1
        subject.peer.first = subject.peer.last = NEVER
        subject.send(workload.marked(command, number) + "\n")
        subject.console.wait_for(f"@e{number}", PHASE_LIMIT_S)
        subject.console.wait_for(PROMPT, PHASE_LIMIT_S)
        if not to_peer:
            return subject.console.marks[f"@e{number}"].since(subject.console.marks[f"@b{number}"])
        if subject.peer.last.wall <= subject.peer.first.wall:
            raise HostError("nothing came out of the guest's network")
        return subject.peer.last.since(subject.peer.first)

    def _counted(self, command: str, to_peer: bool = False) -> Counts:
        """What happens meanwhile."""
        subject = self._subject
        counter = Counter(subject.domain, subject.counters)
        found: list[Counts] = []
        if to_peer:
            subject.peer.on_edge = lambda: found.append(counter.counts())
        else:
            subject.console.on_mark = lambda _: found.append(counter.counts())
        listener = subject.events.listen(counter.hear, KINDS)
        try:
            self._timed(command, to_peer)
        finally:
            listener.close()
            subject.console.on_mark = lambda _: None
            subject.peer.on_edge = lambda: None
        if listener.error is not None or len(found) != 2:
            raise HostError(f"counting failed: {listener.error or f'{len(found)} marks of 2 came'}")
        return found[1].minus(found[0])


def event_cost() -> float:
    """Seconds that telling and counting one event takes here."""
    counter = Counter(0)
    stream = Events()
    listener = stream.listen(counter.hear, KINDS)
    event = events.Exit(0, 0, 0, 0, reason="PortIo", device="COM1")
    began = time.perf_counter()
    for _ in range(_TRIALS):
        listener.tell(event)
    passed = time.perf_counter() - began
    listener.close()
    return passed / _TRIALS
