"""What an interceptor may decide about something that is about to happen. None lets it happen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deny:
    """It is refused, as the place refuses: a negative `number` of Xen's, XenStore's or the grant table's, an error in
    the ring, #GP for an MSR. `number` is an errno, or the amount of a GNTST_*."""

    number: int = 1


@dataclass(frozen=True, slots=True)
class Drop:
    """It does not happen, and who asked is not told: a write that goes nowhere, an event or a reply that is lost."""


@dataclass(frozen=True, slots=True)
class Delay:
    """It happens `seconds` later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """It does not happen, and `value` is the answer: the number that a hypercall or an access gives, the bytes of a
    reply of the store's, the status of a ring's response."""

    value: int | bytes


Verdict = Deny | Drop | Delay | Answer
