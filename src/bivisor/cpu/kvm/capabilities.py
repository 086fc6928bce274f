"""What this program asks of KVM, and what it needs each capability for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from bivisor.abi.linux_kvm import DEVICE, Cap, Ioctl
from bivisor.cpu.kvm.calls import call
from bivisor.cpu.kvm.device import open_device
from bivisor.errors import EngineError, HostError


@dataclass(frozen=True, slots=True)
class Capability:
    """One KVM_CAP_*: without a `required` one the engine does not start."""

    cap: Cap
    purpose: str
    required: bool = True

    @property
    def name(self) -> str:
        """The header's name."""
        return f"KVM_CAP_{self.cap.name}"


CAPABILITIES = (
    Capability(Cap.USER_MEMORY, "guest memory"),
    Capability(Cap.DESTROY_MEMORY_REGION_WORKS, "taking memory slots away"),
    Capability(Cap.READONLY_MEM, "read-only memory (firmware)"),
    Capability(Cap.IRQCHIP, "the local APICs, 8259 and I/O APIC in the kernel"),
    Capability(Cap.PIT2, "the 8254 timer in the kernel"),
    Capability(Cap.MP_STATE, "starting further processors"),
    Capability(Cap.EXT_CPUID, "the guest's CPUID"),
    Capability(Cap.USER_NMI, "NMIs"),
    Capability(Cap.VCPU_EVENTS, "injecting exceptions"),
    Capability(Cap.XSAVE, "the FPU's state"),
    Capability(Cap.SET_GUEST_DEBUG, "breakpoints and single steps"),
    Capability(Cap.IRQFD, "interrupts of devices that run beside the processors"),
    Capability(Cap.IOEVENTFD, "notifications to devices that run beside the processors"),
    Capability(Cap.SIGNAL_MSI, "message-signalled interrupts (virtio over PCI)"),
    Capability(Cap.IMMEDIATE_EXIT, "stopping a processor without losing the request"),
    Capability(Cap.X86_USER_SPACE_MSR, "MSRs that this program answers"),
    Capability(Cap.X86_MSR_FILTER, "choosing the MSRs that this program answers"),
    Capability(Cap.GET_TSC_KHZ, "telling guests their TSC frequency"),
    Capability(Cap.SET_TSS_ADDR, "real mode on older Intel processors", required=False),
    Capability(Cap.SET_IDENTITY_MAP_ADDR, "real mode on older Intel processors", required=False),
    Capability(Cap.IOEVENTFD_NO_LENGTH, "notifications of any width", required=False),
    Capability(Cap.TSC_DEADLINE_TIMER, "the local APIC's TSC-deadline timer", required=False),
    Capability(Cap.BINARY_STATS_FD, "the kernel's own counters", required=False),
    Capability(Cap.INTERNAL_ERROR_DATA, "the instruction that KVM could not emulate", required=False),
    Capability(Cap.ADJUST_CLOCK, "kvm-clock set by the host", required=False),
    Capability(Cap.SYNC_MMU, "giving memory back to the host (balloon)", required=False),
    Capability(Cap.DIRTY_LOG_RING, "finding written pages without a scan", required=False),
    Capability(Cap.XEN_HVM, "hypercalls of Xen guests as exits of their own", required=False),
    Capability(Cap.NESTED_STATE, "guests that are hypervisors themselves", required=False),
)


def survey(device: str = DEVICE) -> tuple[int, list[tuple[Capability, int]]]:
    """The API version of `device` and what it says of each capability. HostError where it does not open."""
    fd = open_device(device)
    try:
        version = call(fd, Ioctl.GET_API_VERSION)
        return version, [(c, call(fd, Ioctl.CHECK_EXTENSION, c.cap)) for c in CAPABILITIES]
    except EngineError as error:
        raise HostError(f"{device} is no KVM device: {error}") from error
    finally:
        os.close(fd)


def require(check: Callable[[Cap], int]) -> dict[Cap, int]:
    """What `check` (KVM_CHECK_EXTENSION) says of each. HostError names every required capability that is missing."""
    values = {capability.cap: check(capability.cap) for capability in CAPABILITIES}
    missing = [f"{c.name} ({c.purpose})" for c in CAPABILITIES if c.required and values[c.cap] <= 0]
    if missing:
        raise HostError(f"this kernel's KVM lacks {', '.join(missing)}; a newer kernel or --engine soft will do")
    return values
