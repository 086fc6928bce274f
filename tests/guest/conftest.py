"""The guest that is booted, and the engines that can boot it in reasonable time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bivisor.cpu.measure import cpl0_speed
from bivisor.cpu.select import INTERPRETING_BELOW, millions, open_kvm, open_soft
from bivisor.errors import HostError
from bivisor.image import Guest, default_guest, quiet

from .harness import GuestRun

Boot = Callable[..., GuestRun]


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The default guest."""
    try:
        return default_guest(quiet)
    except HostError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["soft", pytest.param("kvm", marks=[pytest.mark.kvm, pytest.mark.rig])])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine; `kvm` where the device runs kernels at the processor's own speed."""
    name = str(request.param)
    try:
        with open_kvm() if name == "kvm" else open_soft() as opened:
            if name == "kvm" and (rate := cpl0_speed(opened)) < INTERPRETING_BELOW:
                pytest.skip(f"/dev/kvm interprets CPL0 code ({millions(rate)})")
    except HostError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="session", params=["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def pv_engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine for PV domains, whose kernels need no processor that runs CPL 0 at its own speed."""
    name = str(request.param)
    try:
        (open_kvm() if name == "kvm" else open_soft()).close()
    except HostError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture
def boot(engine: str, guest: Guest) -> Boot:
    """`boot(command, …)`: a `GuestRun` on the engine."""

    def make(command: str, **options: object) -> GuestRun:
        return GuestRun(engine, guest, command, **options)  # type: ignore[arg-type]

    return make
