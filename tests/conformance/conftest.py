"""The engines that this host has. `kvm` is left out only where /dev/kvm does not open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bivisor.cpu.contract import Engine
from bivisor.cpu.measure import cpl0_speed
from bivisor.cpu.select import INTERPRETING_BELOW, open_kvm, open_soft
from bivisor.errors import HostError

from .guest import Guest

Lacking = Callable[[str], None]
"""`lacking("…")` says what an interpreting KVM does not do; the test is expected to fail there and nowhere else."""

_OPENERS = {"kvm": open_kvm, "soft": open_soft}


@pytest.fixture(scope="session", params=[pytest.param("kvm", marks=pytest.mark.kvm), "soft"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    try:
        opened = _OPENERS[request.param]()
    except HostError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="session")
def interprets(engine: Engine) -> bool:
    """Whether this is a KVM that interprets CPL0 code, which lacks some instructions and rules."""
    return engine.name == "kvm" and cpl0_speed(engine) < INTERPRETING_BELOW


@pytest.fixture
def lacking(interprets: bool) -> Lacking:
    def say(reason: str) -> None:
        if interprets:
            pytest.xfail(f"this KVM interprets CPL0 code: {reason}")

    return say


@pytest.fixture
def emulated_processor(engine: Engine) -> Lacking:
    """`emulated_processor("…")` says what QEMU's TCG gets wrong when it plays the processor that KVM runs on, as on a
    host that is itself a TCG guest. KVM hands these through; real processors and their KVM pass."""

    def say(reason: str) -> None:
        if engine.name == "kvm" and "QEMU TCG" in Path("/proc/cpuinfo").read_text():
            pytest.xfail(f"this host's processor is QEMU's TCG: {reason}")

    return say


@pytest.fixture
def guest(engine: Engine) -> Iterator[Guest]:
    with Guest(engine) as made:
        yield made


@pytest.fixture
def apic_guest(engine: Engine) -> Iterator[Guest]:
    """A guest with local APICs, and whatever other interrupt controllers the engine has."""
    with Guest(engine, irqchip=True) as made:
        yield made
