"""The interrupt lines of an HVM domain: ISA lines, PCI pins with their routing, and the line of event channels.

A PCI pin drives an input of its own of the I/O APIC, if there are so many, and through one of four links the ISA line
that the chipset's registers say (XEN_DMOP_set_pci_link_route); several may hold a line at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from bivisor.abi.xen.errno import Errno
from bivisor.xen.errors import XenError

LINKS, ISA_IRQS, PCI_SLOTS, PINS = 4, 16, 32, 4
FIRST_PCI_GSI = 16
_CALLBACK = "callback"


def pci_gsi(slot: int, pin: int) -> int:
    """The I/O APIC's input of `pin` (0 to 3) of `slot` (Xen's hvm_pci_intx_gsi)."""
    return ((slot << 2) + (slot >> 3) + pin & 31) + FIRST_PCI_GSI


def pci_link(slot: int, pin: int) -> int:
    """The link of `pin` (0 to 3) of `slot` (Xen's hvm_pci_intx_link)."""
    return slot + pin & 3


class Lines:
    """`set_irq(gsi, level)` is the interrupt controllers'. The hypervisor's lock is held by whoever calls."""

    def __init__(self, set_irq: Callable[[int, bool], None]) -> None:
        self._set_irq = set_irq
        self._holders: dict[int, set[Hashable]] = {}
        self._asserted: list[set[tuple[int, int]]] = [set() for _ in range(LINKS)]
        self._routes = [0] * LINKS
        self._callback: int | None = None

    def _hold(self, gsi: int, who: Hashable, level: bool) -> None:
        holders = self._holders.setdefault(gsi, set())
        before = bool(holders)
        if level:
            holders.add(who)
        else:
            holders.discard(who)
        if bool(holders) != before:
            self._set_irq(gsi, level)

    def set_isa(self, irq: int, level: bool) -> None:
        """XEN_DMOP_set_isa_irq_level. XenError(EINVAL)."""
        if irq >= ISA_IRQS:
            raise XenError(Errno.EINVAL)
        self._hold(irq, "isa", level)

    def set_pin(self, slot: int, pin: int, level: bool) -> None:
        """XEN_DMOP_set_pci_intx_level. XenError(EINVAL)."""
        if slot >= PCI_SLOTS or pin >= PINS:
            raise XenError(Errno.EINVAL)
        self._hold(pci_gsi(slot, pin), (slot, pin), level)
        link = pci_link(slot, pin)
        if level:
            self._asserted[link].add((slot, pin))
        else:
            self._asserted[link].discard((slot, pin))
        self._drive(link)

    def route(self, link: int, irq: int) -> None:
        """XEN_DMOP_set_pci_link_route: `irq` is 1 to 15, or 0 for none. XenError(EINVAL)."""
        if link >= LINKS or irq >= ISA_IRQS:
            raise XenError(Errno.EINVAL)
        old = self._routes[link]
        if old and old != irq:
            self._hold(old, ("link", link), False)
        self._routes[link] = irq
        self._drive(link)

    def _drive(self, link: int) -> None:
        if self._routes[link]:
            self._hold(self._routes[link], ("link", link), bool(self._asserted[link]))

    # ---------------------------------------------------------------- HVM_PARAM_CALLBACK_IRQ

    def set_callback(self, place: tuple[int, int] | int | None) -> None:
        """Events come at a GSI, or at (slot, pin) of PCI; None: at no line."""
        self.callback_level(False)
        self._callback = None
        self._callback_pin = place if isinstance(place, tuple) else None
        if isinstance(place, int):
            self._callback = place
        elif place is not None:
            self._callback = pci_gsi(*place)

    @property
    def has_callback(self) -> bool:
        """Whether events come at a line."""
        return self._callback is not None

    @property
    def callback_is_up(self) -> bool:
        """Whether that line is held."""
        return self._callback is not None and _CALLBACK in self._holders.get(self._callback, ())

    def callback_level(self, level: bool) -> None:
        """The level of that line."""
        if self._callback is None:
            return
        if self._callback_pin is None:
            self._hold(self._callback, _CALLBACK, level)
            return
        slot, pin = self._callback_pin
        self._hold(self._callback, _CALLBACK, level)
        link = pci_link(slot, pin)
        mine = (slot, PINS + pin)  # beside the pin itself, which the device model drives
        if level:
            self._asserted[link].add(mine)
        else:
            self._asserted[link].discard(mine)
        self._drive(link)
