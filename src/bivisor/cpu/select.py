"""Which engine to use: the one that was asked for, or the faster one for a guest kernel, found out in milliseconds.

An engine is imported when it is wanted and not before: `kvm` works without Unicorn, `soft` without a /dev/kvm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from bivisor.cpu.contract import Engine
from bivisor.cpu.measure import cpl0_speed
from bivisor.errors import BivisorError, HostError, UsageError

Choice = Literal["auto", "kvm", "soft"]

INTERPRETING_BELOW = 50e6
"""Instructions a second at CPL0. Hardware runs billions, an interpreting KVM one or two millions."""


def open_kvm() -> Engine:
    """The engine `kvm`, or HostError."""
    from bivisor.cpu.kvm import KvmEngine

    return KvmEngine()


def open_soft() -> Engine:
    """The engine `soft`, or HostError."""
    try:
        from bivisor.cpu.soft import SoftEngine
    except ImportError as error:
        raise HostError(f"the engine soft cannot be loaded: {error}") from error
    return SoftEngine()


def open_engine(
    choice: str = "auto",
    *,
    kvm: Callable[[], Engine] = open_kvm,
    soft: Callable[[], Engine] = open_soft,
    speed: Callable[[Engine], float] = cpl0_speed,
) -> tuple[Engine, str]:
    """The engine and one sentence that says which it is and why. UsageError for another name than those of `Choice`,
    HostError where none can be had. A test passes its own `kvm`, `soft` and `speed`."""
    match choice:
        case "kvm":
            return kvm(), "kvm, as asked for"
        case "soft":
            return soft(), "soft, as asked for"
        case "auto":
            return _choose(kvm, soft, speed)
    raise UsageError(f"engine {choice!r}: there are auto, kvm and soft")


def _choose(
    kvm: Callable[[], Engine], soft: Callable[[], Engine], speed: Callable[[Engine], float]
) -> tuple[Engine, str]:
    try:
        device = kvm()
    except HostError as error:
        return _fall_back(soft, error), f"soft: {error}"
    try:
        rate = speed(device)
    except BivisorError as error:
        device.close()
        return _fall_back(soft, error), f"soft: /dev/kvm opens but does not run a tiny guest ({error})"
    if rate >= INTERPRETING_BELOW:
        return device, f"kvm: /dev/kvm runs CPL0 code at {millions(rate)}"
    try:
        engine = soft()
    except HostError as error:
        return device, f"kvm: /dev/kvm interprets CPL0 code ({millions(rate)}), but soft cannot be had ({error})"
    device.close()
    return engine, f"soft: /dev/kvm interprets CPL0 code ({millions(rate)})"


def _fall_back(soft: Callable[[], Engine], reason: BivisorError) -> Engine:
    try:
        return soft()
    except HostError as error:
        raise HostError(f"no engine: kvm: {reason}; soft: {error}") from error


def millions(rate: float) -> str:
    """A rate in words."""
    return f"{rate / 1e6:,.1f} million instructions/s" if rate < 1e8 else f"{rate / 1e6:,.0f} million instructions/s"
