"""The engine `soft`: guest code runs in Unicorn, on any x86-64 Linux host, with no device and no privilege."""

from __future__ import annotations

from bivisor.cpu.registers import CpuidEntry
from bivisor.cpu.soft import library, selftest
from bivisor.cpu.soft.clock import TscFrequency
from bivisor.cpu.soft.machine import SoftMachine
from bivisor.cpu.soft.model import cpuid_model
from bivisor.cpu.soft.turns import MAX_VCPUS


class SoftEngine:
    """See `bivisor.cpu.contract.Engine`. Opening it loads and checks the library; HostError says what is wrong."""

    name = "soft"
    max_vcpus = 1
    max_supervised_vcpus = MAX_VCPUS
    """Of kernels that need no local APIC (see `turns.py`)."""

    def __init__(self) -> None:
        self._library = library.load()
        self._frequency = TscFrequency(self._library.rdtsc)
        if not self._library.proved:
            selftest.prove(SoftMachine(self._library, self._frequency))
            self._library.proved = True

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """See `Engine.supported_cpuid`."""
        return cpuid_model(self.tsc_khz())

    def tsc_khz(self) -> int:
        """See `Engine.tsc_khz`."""
        return self._frequency.khz()

    def create_machine(self) -> SoftMachine:
        """See `Engine.create_machine`."""
        return SoftMachine(self._library, self._frequency)

    def close(self) -> None:
        """See `Engine.close`; the library stays loaded."""

    def __enter__(self) -> SoftEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
