"""KVM and Xen in Python: one processor, two hypervisor architectures on it (see docs/architecture.md).

    import bivisor

    done = bivisor.run("uname -r")              # a CompletedRun: status, stdout, stderr, outcome, log
    with bivisor.kvm_guest(memory="512M") as guest:
        print(guest.run("uname -r").text)       # a Result: status, stdout, stderr
        guest.run("poweroff")
        print(guest.wait())                     # an Outcome: the guest powered off
    with bivisor.xen_host() as host:
        domain = host.create("demo", agent=True)  # a DomU: the default guest as a PVH domain
        print(domain.run("cat /sys/hypervisor/type").text)
        domain.shutdown()
        print(domain.wait())                    # a ShutdownReason: 0

docs/api.md tells all of it. `bivisor.aio` is the same for asyncio, `bivisor.testing` the plugin for pytest, and
`VirtualMachine` the machine underneath. A name is imported when it is first used, so importing this costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bivisor.errors import BivisorError, EngineError, GuestTimeout, HostError, ImageError, UsageError
    from bivisor.kvm import End, Outcome, VirtualMachine
    from bivisor.toolstack.agent import CommandFailed, Result
    from bivisor.toolstack.api import CompletedRun, Guest, run
    from bivisor.toolstack.domu import DomU
    from bivisor.toolstack.faults import Answer, Corrupt, Delay, Deny, Drop, Injection
    from bivisor.toolstack.guests import KvmGuest, kvm_guest
    from bivisor.toolstack.inspect import Breakpoint, Hit
    from bivisor.toolstack.xenhost import XenHost, xen_host

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BivisorError",
    "Breakpoint",
    "CommandFailed",
    "CompletedRun",
    "Corrupt",
    "Delay",
    "Deny",
    "DomU",
    "Drop",
    "End",
    "EngineError",
    "Guest",
    "GuestTimeout",
    "Hit",
    "HostError",
    "ImageError",
    "Injection",
    "KvmGuest",
    "Outcome",
    "Result",
    "UsageError",
    "VirtualMachine",
    "XenHost",
    "kvm_guest",
    "run",
    "xen_host",
]

_PLACES = {
    **dict.fromkeys(
        ("BivisorError", "EngineError", "GuestTimeout", "HostError", "ImageError", "UsageError"), "bivisor.errors"
    ),
    **dict.fromkeys(("End", "Outcome", "VirtualMachine"), "bivisor.kvm"),
    **dict.fromkeys(("CompletedRun", "Guest", "run"), "bivisor.toolstack.api"),
    **dict.fromkeys(("CommandFailed", "Result"), "bivisor.toolstack.agent"),
    **dict.fromkeys(("KvmGuest", "kvm_guest"), "bivisor.toolstack.guests"),
    **dict.fromkeys(("Answer", "Corrupt", "Delay", "Deny", "Drop", "Injection"), "bivisor.toolstack.faults"),
    **dict.fromkeys(("Breakpoint", "Hit"), "bivisor.toolstack.inspect"),
    **dict.fromkeys(("XenHost", "xen_host"), "bivisor.toolstack.xenhost"),
    "DomU": "bivisor.toolstack.domu",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
