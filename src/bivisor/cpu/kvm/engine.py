"""The engine `kvm`: hardware virtualization through /dev/kvm (Documentation/virt/kvm/api.rst, section 4)."""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import replace

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import Cap, Ioctl
from bivisor.abi.x86 import FEATURES
from bivisor.cpu.kvm import state
from bivisor.cpu.kvm.calls import call
from bivisor.cpu.kvm.capabilities import require
from bivisor.cpu.kvm.device import open_device
from bivisor.cpu.kvm.kick import kick_signal
from bivisor.cpu.kvm.machine import KvmMachine
from bivisor.cpu.registers import CpuidEntry
from bivisor.errors import EngineError, HostError

_MAX_VCPUS = 255  # what fits into an 8-bit APIC id beside the broadcast address
_TOPOLOGY_LEAVES = (0xB, 0x1F)  # whose EDX is the x2APIC id


class KvmEngine:
    """See `contract.Engine`. HostError says what to do where the device does not open or lacks something."""

    def __init__(self, device: str = abi.DEVICE) -> None:
        self._fd = open_device(device)
        try:
            version = call(self._fd, Ioctl.GET_API_VERSION)
            if version != abi.KVM_API_VERSION:
                raise HostError(f"{device}: its API version is {version}, not {abi.KVM_API_VERSION}: update the kernel")
            self.capabilities = require(self._check)
            self._run_size = call(self._fd, Ioctl.GET_VCPU_MMAP_SIZE)
            kick_signal()
        except EngineError as error:
            self.close()
            raise HostError(f"{device} is no KVM device: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """ "kvm"."""
        return "kvm"

    @property
    def max_vcpus(self) -> int:
        """KVM_CAP_MAX_VCPUS, and not more than 255."""
        return min(self._check(Cap.MAX_VCPUS) or self._check(Cap.NR_VCPUS) or 1, _MAX_VCPUS)

    def _check(self, cap: Cap) -> int:
        return call(self._fd, Ioctl.CHECK_EXTENSION, cap)

    @functools.cached_property
    def _supported(self) -> tuple[CpuidEntry, ...]:
        data = bytearray(abi.CPUID2.size + abi.MAX_CPUID_ENTRIES * abi.CPUID_ENTRY2.size)
        abi.CPUID2.pack_into(data, 0, abi.MAX_CPUID_ENTRIES)
        call(self._fd, Ioctl.GET_SUPPORTED_CPUID, data)
        return state.unpack_cpuid(data)

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """KVM API 4.46 KVM_GET_SUPPORTED_CPUID, and what the kernel leaves to be added: the hypervisor bit, and the TSC
        deadline (which needs `create_irqchip`)."""
        added = 1 << FEATURES["hypervisor"].bit
        if self.capabilities[Cap.TSC_DEADLINE_TIMER]:
            added |= 1 << FEATURES["tsc_deadline"].bit
        return tuple(replace(e, ecx=e.ecx | added) if e.leaf == 1 else e for e in self._supported)

    def _model(self, index: int, has_apic: bool) -> bytearray:
        """The supported features with the APIC id of processor `index`; without a local APIC none of its features."""
        apic_ecx = 1 << FEATURES["x2apic"].bit | 1 << FEATURES["tsc_deadline"].bit
        apic_edx = 1 << FEATURES["apic"].bit
        entries = []
        for entry in self.supported_cpuid():
            if entry.leaf == 1:
                entry = replace(entry, ebx=entry.ebx & 0x00FF_FFFF | index << 24)
                if not has_apic:
                    entry = replace(entry, ecx=entry.ecx & ~apic_ecx, edx=entry.edx & ~apic_edx)
            elif entry.leaf in _TOPOLOGY_LEAVES:
                entry = replace(entry, edx=index)
            entries.append(entry)
        return state.pack_cpuid(entries)

    @functools.cached_property
    def _tsc_khz(self) -> int:
        with self.create_machine() as machine:
            return machine.create_vcpu().tsc_khz()

    def tsc_khz(self) -> int:
        """KVM API 4.57 KVM_GET_TSC_KHZ, asked once of a processor made for it."""
        return self._tsc_khz

    def create_machine(self) -> KvmMachine:
        """KVM API 4.2 KVM_CREATE_VM. HostError where another hypervisor has the processor."""
        try:
            fd = call(self._fd, Ioctl.CREATE_VM)
        except EngineError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
                raise HostError("/dev/kvm: another hypervisor has taken the processor: stop it first") from error
            raise
        try:
            return KvmMachine(fd, self.capabilities, self._run_size, self._model)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the device. Machines that were created stay until they are closed themselves."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> KvmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
