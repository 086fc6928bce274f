"""The host report: can this host run guests, how fast, and what would make it better.

It opens the device, asks for every capability, and measures both engines with tiny guests (some 50 ms in all). The
report is plain data: `to_dict()` for machines, `lines()` for people.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bivisor.cpu import hostfacts
from bivisor.cpu.contract import Engine
from bivisor.cpu.hostfacts import DeviceNode, Memory, Module, Processor, Surroundings
from bivisor.cpu.measure import cpl0_speed, exit_cost
from bivisor.cpu.select import INTERPRETING_BELOW, millions, open_engine, open_kvm, open_soft
from bivisor.errors import BivisorError, HostError

_FEW_BYTES = 512 << 20  # a guest with less memory than this to take hardly boots a distribution's kernel


class Status(Enum):
    """How good a row is: all well, worse than could be, or something cannot be done."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    status: Status
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class CapabilityFact:
    """What KVM_CHECK_EXTENSION says of one capability, and what this program uses it for."""

    name: str
    value: int
    purpose: str
    required: bool


@dataclass(frozen=True, slots=True)
class Speed:
    """Instructions a second at CPL0, and seconds for an exit handled in Python."""

    cpl0: float
    exit: float


@dataclass(frozen=True, slots=True)
class EngineFact:
    """One engine: whether it can be had, why not (`error`), its version, what it can do and how fast it is."""

    name: str
    available: bool
    error: str
    version: str
    max_vcpus: int
    tsc_khz: int
    capabilities: tuple[CapabilityFact, ...]
    speed: Speed | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `--engine auto` would take (None: nothing), and why."""

    engine: str | None
    why: str


@dataclass(frozen=True, slots=True)
class HostReport:
    """Everything that was found out."""

    processor: Processor
    device: DeviceNode
    modules: tuple[Module, ...]
    kvm: EngineFact
    soft: EngineFact
    memory: Memory
    surroundings: Surroundings
    verdict: Verdict

    @property
    def nested(self) -> bool | None:
        """Whether guests of this KVM can use KVM themselves; None where no module tells."""
        values = [module.parameters["nested"] for module in self.modules if "nested" in module.parameters]
        return any(value in ("1", "Y") for value in values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        found = dataclasses.asdict(self)
        found["nested"] = self.nested
        found["rows"] = [{"status": r.status.value, "title": r.title, "detail": r.detail} for r in self.lines()]
        return found

    def lines(self) -> tuple[Row, ...]:
        """The report as rows, in the order in which a person asks."""
        return (
            *_processor_rows(self.processor, self.kvm.available),
            *_device_rows(self.device, self.kvm),
            *_module_rows(self.modules, self.nested),
            *_capability_rows(self.kvm.capabilities),
            *_speed_rows(self.kvm, self.soft),
            *_memory_rows(self.memory),
            *_surrounding_rows(self.surroundings),
            Row(Status.OK if self.verdict.engine else Status.FAIL, "engine", self.verdict.why),
        )


# ── finding out ─────────────────────────────────────────────────────────────────────────────────────────────────────


def check_host(root: Path = hostfacts.ROOT) -> HostReport:
    """Find everything out. Raises nothing that the host can be blamed for; `root` is where the host's files are."""
    kvm, soft = _kvm(), _soft()
    return HostReport(
        processor=hostfacts.processor(root),
        device=hostfacts.device_node("/dev/kvm", root),
        modules=hostfacts.kvm_modules(root),
        kvm=kvm,
        soft=soft,
        memory=hostfacts.memory(root),
        surroundings=hostfacts.surroundings(root),
        verdict=_verdict(kvm, soft),
    )


def _measure(engine: Engine) -> Speed:
    return Speed(cpl0=cpl0_speed(engine), exit=exit_cost(engine))


def _kvm() -> EngineFact:
    from bivisor.cpu.kvm.capabilities import survey

    try:
        version, values = survey()
    except HostError as error:
        return _unavailable("kvm", error)
    facts = tuple(CapabilityFact(c.name, value, c.purpose, c.required) for c, value in values)
    try:
        with open_kvm() as engine:
            speed, max_vcpus, tsc_khz = _measure(engine), engine.max_vcpus, engine.tsc_khz()
    except BivisorError as error:
        return dataclasses.replace(_unavailable("kvm", error), version=f"API {version}", capabilities=facts)
    return EngineFact("kvm", True, "", f"API {version}", max_vcpus, tsc_khz, facts, speed)


def _soft() -> EngineFact:
    try:
        version = importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    try:
        with open_soft() as engine:
            speed = _measure(engine)
            return EngineFact("soft", True, "", f"Unicorn {version}", engine.max_vcpus, engine.tsc_khz(), (), speed)
    except BivisorError as error:
        return dataclasses.replace(_unavailable("soft", error), version=f"Unicorn {version}" if version else "")


def _unavailable(name: str, error: BivisorError) -> EngineFact:
    return EngineFact(name, False, str(error), "", 0, 0, (), None)


def _verdict(kvm: EngineFact, soft: EngineFact) -> Verdict:
    """Ask `open_engine` itself, with what was measured already."""
    rate = kvm.speed.cpl0 if kvm.speed else 0.0
    soft_opener = open_soft if soft.available else lambda: _refuse(soft)
    try:
        engine, why = open_engine("auto", soft=soft_opener, speed=lambda engine: rate)
    except HostError as error:
        return Verdict(None, str(error))
    with engine:
        return Verdict(engine.name, why)


def _refuse(fact: EngineFact) -> Engine:
    raise HostError(fact.error)


# ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _row(good: bool, title: str, detail: str, otherwise: Status = Status.WARN) -> Row:
    return Row(Status.OK if good else otherwise, title, detail)


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _processor_rows(p: Processor, kvm_works: bool) -> Iterator[Row]:
    inside = ", itself in a virtual machine" if p.is_guest else ""
    yield Row(Status.OK, "processor", f"{p.model} ({p.vendor}), {p.usable} usable{inside}")
    extension = "vmx (Intel VT-x)" if p.vmx else "svm (AMD-V)" if p.svm else ""
    missing = "neither vmx nor svm" + (": /dev/kvm is not hardware virtualization" if kvm_works else "")
    yield _row(bool(extension), "virtualization extension", extension or missing)


def _device_rows(d: DeviceNode, kvm: EngineFact) -> Iterator[Row]:
    if not d.present:
        yield Row(Status.WARN, d.path, kvm.error or "not there")
        return
    rights = f"{d.mode}, group {d.group}"
    yield _row(d.accessible, d.path, rights if d.accessible else f"{rights}: {kvm.error}")
    if kvm.version:
        yield _row(kvm.available, "KVM", kvm.version if kvm.available else f"{kvm.version}: {kvm.error}")


def _module_rows(modules: tuple[Module, ...], nested: bool | None) -> Iterator[Row]:
    if modules:
        yield Row(Status.OK, "kernel modules", ", ".join(module.name for module in modules))
    if nested is not None:
        yield Row(Status.OK, "nested virtualization", "on" if nested else "off: guests cannot use KVM themselves")


def _capability_rows(capabilities: tuple[CapabilityFact, ...]) -> Iterator[Row]:
    if not capabilities:
        return
    there = sum(1 for c in capabilities if c.value)
    yield Row(Status.OK, "capabilities", f"{there} of {len(capabilities)}")
    for c in capabilities:
        if not c.value:
            yield Row(Status.FAIL if c.required else Status.WARN, c.name, f"missing: {c.purpose}")


def _speed_rows(kvm: EngineFact, soft: EngineFact) -> Iterator[Row]:
    if kvm.speed:
        fast = kvm.speed.cpl0 >= INTERPRETING_BELOW
        note = "" if fast else ": interpreted, a Linux kernel would take minutes to boot"
        yield _row(fast, "kvm: kernel mode", millions(kvm.speed.cpl0) + note)
        yield Row(Status.OK, "kvm: an exit", f"{kvm.speed.exit * 1e6:.1f} µs, handled in Python")
    if not soft.available:
        yield Row(Status.WARN, "soft", f"{soft.version}: {soft.error}" if soft.version else soft.error)
        return
    yield Row(Status.OK, "soft", f"{soft.version}, self-test passed")
    if soft.speed:
        yield Row(Status.OK, "soft: kernel mode", millions(soft.speed.cpl0))
        yield Row(Status.OK, "soft: an exit", f"{soft.speed.exit * 1e6:.1f} µs, handled in Python")


def _memory_rows(m: Memory) -> Iterator[Row]:
    usable = min(m.available, m.limit if m.limit is not None else m.available)
    limit = f", control group limit {_mib(m.limit)}" if m.limit is not None else ""
    yield _row(usable >= _FEW_BYTES, "memory", f"{_mib(m.available)} available of {_mib(m.total)}{limit}")
    yield _row(m.memfd, "memfd", "works" if m.memfd else "cannot be created: no guest memory", Status.FAIL)
    reserved = f"{m.huge_free} of {_mib(m.huge_size)} free" if m.huge_free else "none reserved"
    yield Row(Status.OK, "huge pages", f"{reserved}, transparent: {m.transparent_huge or 'not there'}")


def _surrounding_rows(s: Surroundings) -> Iterator[Row]:
    groups = f"{s.iommu_groups} groups" if s.iommu_groups else "none: no device can be passed through"
    yield Row(Status.OK, "IOMMU", groups)
    tun = "accessible" if s.tun.accessible else "no permission" if s.tun.present else "not there"
    yield _row(s.tun.accessible, "/dev/net/tun", tun if s.tun.accessible else f"{tun}: no TAP networking")
    yield _row(s.passt is not None, "passt", s.passt or "not installed: no user-mode networking")
