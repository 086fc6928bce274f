"""What happens, as one stream of typed events, and the places where it can be changed: see docs/events.md.

`Events` is the stream of one machine or host. Nothing stands in the way of a guest while nobody listens: a place where
something happens (`Site`) puts the code that tells of it in only while somebody wants to hear of it.
"""

from bivisor.events.hub import Events, Site
from bivisor.events.model import (
    DeviceAccess,
    Entry,
    Event,
    EventSend,
    Exit,
    Grant,
    Hypercall,
    Interrupt,
    Kind,
    Life,
    Ring,
    XenBus,
    XenStore,
)
from bivisor.events.probe import Hook, Listener, Probe
from bivisor.events.ring import Subscription
from bivisor.events.verdicts import Answer, Delay, Deny, Drop, Verdict

__all__ = [
    "Answer",
    "Delay",
    "Deny",
    "DeviceAccess",
    "Drop",
    "Entry",
    "Event",
    "EventSend",
    "Events",
    "Exit",
    "Grant",
    "Hook",
    "Hypercall",
    "Interrupt",
    "Kind",
    "Life",
    "Listener",
    "Probe",
    "Ring",
    "Site",
    "Subscription",
    "Verdict",
    "XenBus",
    "XenStore",
]
