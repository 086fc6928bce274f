"""KVM and Xen in Python: one processor, two hypervisor architectures on it (see docs/architecture.md).

    import bivisor

    done = bivisor.run("uname -r")              # a CompletedRun: status, stdout, stderr, outcome, log
    with bivisor.Guest(memory="512M") as guest:
        guest.wait_for("# ")
        guest.send("poweroff\\n")
        print(guest.wait())                     # an Outcome: the guest powered off
    with bivisor.XenHost() as host:
        domain = host.create("demo")            # a DomU: the default guest as a PVH domain
        domain.wait_for("# ")
        domain.shutdown()
        print(domain.wait())                    # a ShutdownReason: 0

`VirtualMachine` is the machine underneath. A name is imported when it is first used, so importing this costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bivisor.errors import BivisorError, EngineError, GuestTimeout, HostError, ImageError, UsageError
    from bivisor.kvm import End, Outcome, VirtualMachine
    from bivisor.toolstack.api import CompletedRun, Guest, run
    from bivisor.toolstack.domu import DomU
    from bivisor.toolstack.xenhost import XenHost

__version__ = "0.1.0"

__all__ = [
    "BivisorError",
    "CompletedRun",
    "DomU",
    "End",
    "EngineError",
    "Guest",
    "GuestTimeout",
    "HostError",
    "ImageError",
    "Outcome",
    "UsageError",
    "VirtualMachine",
    "XenHost",
    "run",
]

_PLACES = {
    **dict.fromkeys(
        ("BivisorError", "EngineError", "GuestTimeout", "HostError", "ImageError", "UsageError"), "bivisor.errors"
    ),
    **dict.fromkeys(("End", "Outcome", "VirtualMachine"), "bivisor.kvm"),
    **dict.fromkeys(("CompletedRun", "Guest", "run"), "bivisor.toolstack.api"),
    "DomU": "bivisor.toolstack.domu",
    "XenHost": "bivisor.toolstack.xenhost",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
