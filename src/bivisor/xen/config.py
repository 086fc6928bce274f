"""What a domain is created with (domctl.h, struct xen_domctl_createdomain), checked as Xen 4.17 checks it."""

from __future__ import annotations

from dataclasses import dataclass

from bivisor.abi.xen import domctl as abi
from bivisor.abi.xen.domctl import Cdf
from bivisor.abi.xen.errno import Errno
from bivisor.xen.errors import XenError
from bivisor.xen.maptrack import MAX_MAPTRACK_FRAMES

NO_HANDLE = bytes(16)
MAX_VCPUS = 128
PVH = int(Cdf.HVM | Cdf.HAP)
DEFAULT = -1
"""For the limits of the grant table: whatever is the hypervisor's own."""


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """`handle` is the domain's UUID; a negative limit means the hypervisor's default. The default is a PVH domain."""

    handle: bytes = NO_HANDLE
    flags: int = PVH
    max_vcpus: int = 1
    max_evtchn_port: int = 1023
    max_grant_frames: int = DEFAULT
    max_maptrack_frames: int = DEFAULT
    grant_version: int = 2
    emulation_flags: int = abi.X86_EMU_LAPIC
    misc_flags: int = 0
    ssidref: int = 0

    def pack(self) -> bytes:
        """`struct xen_domctl_createdomain`."""
        return abi.CREATEDOMAIN.pack(
            self.ssidref,
            self.handle,
            self.flags,
            0,
            self.max_vcpus,
            self.max_evtchn_port,
            self.max_grant_frames,
            self.max_maptrack_frames,
            self.grant_version,
            0,
            0,
            self.emulation_flags,
            self.misc_flags,
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, max_grant_frames: int) -> DomainConfig:
        """From `struct xen_domctl_createdomain`. XenError: EINVAL, EOPNOTSUPP, and ESRCH for a CPU pool."""
        fields = abi.CREATEDOMAIN.unpack_from(data)
        ssidref, handle, flags, iommu, vcpus, ports, frames, maptrack, grant, vmtrace, pool, emulation, misc = fields
        hvm = bool(flags & Cdf.HVM)
        invalid = (
            flags & ~abi.CDF_ALL
            or (not hvm and flags & (Cdf.HAP | Cdf.NESTED_VIRT))
            or (iommu and not flags & Cdf.IOMMU)
            or not 1 <= vcpus <= MAX_VCPUS
            or grant & ~abi.GRANT_VERSION_MASK
            or not 1 <= grant <= 2
            or frames > max_grant_frames
            or maptrack > MAX_MAPTRACK_FRAMES
            or misc & ~abi.MSR_RELAXED
        )
        if invalid:
            raise XenError(Errno.EINVAL)
        if flags & (Cdf.IOMMU | Cdf.VPMU | Cdf.NESTED_VIRT) or vmtrace:  # there is none of these here
            raise XenError(Errno.EINVAL)
        if emulation not in ((0, abi.X86_EMU_LAPIC, abi.X86_EMU_HVM) if hvm else (0,)):
            raise XenError(Errno.EOPNOTSUPP)
        if pool:
            raise XenError(Errno.ESRCH)
        return cls(handle, flags, vcpus, ports, frames, maptrack, grant, emulation, misc, ssidref)
