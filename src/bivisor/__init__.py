"""KVM and Xen in Python: one processor, two hypervisor architectures on it (see docs/architecture.md).

    import bivisor

    done = bivisor.run("uname -r")              # a CompletedRun: status, stdout, stderr, outcome, log
    with bivisor.Guest(memory="512M") as guest:
        guest.wait_for("# ")
        guest.send("poweroff\\n")
        print(guest.wait())                     # an Outcome: the guest powered off

`VirtualMachine` is the machine underneath. A name is imported when it is first used, so importing this costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bivisor.errors import BivisorError, EngineError, HostError, ImageError, UsageError
    from bivisor.kvm import End, Outcome, VirtualMachine
    from bivisor.toolstack.api import CompletedRun, Guest, GuestTimeout, run

__version__ = "0.1.0"

__all__ = [
    "BivisorError",
    "CompletedRun",
    "End",
    "EngineError",
    "Guest",
    "GuestTimeout",
    "HostError",
    "ImageError",
    "Outcome",
    "UsageError",
    "VirtualMachine",
    "run",
]

_PLACES = {
    **dict.fromkeys(("BivisorError", "EngineError", "HostError", "ImageError", "UsageError"), "bivisor.errors"),
    **dict.fromkeys(("End", "Outcome", "VirtualMachine"), "bivisor.kvm"),
    **dict.fromkeys(("CompletedRun", "Guest", "GuestTimeout", "run"), "bivisor.toolstack.api"),
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
