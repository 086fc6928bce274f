"""A domain's RAM as the devices of its device model reach it."""

from __future__ import annotations

from bivisor.dom0.control import Control
from bivisor.errors import GuestAddressError
from bivisor.memory import PAGE, MemoryRegion, Slot
from bivisor.xen.errors import XenError


class ForeignMemory:
    """The RAM of domain `domid`, mapped piece by piece for as long as a transfer lasts: what the guest has given away
    meanwhile is refused. See `platform.fwcfg.Memory`."""

    def __init__(self, control: Control, domid: int) -> None:
        self._control = control
        self._domid = domid

    def view(self, gpa: int, length: int) -> memoryview:
        """The bytes, in place. GuestAddressError where they are not the domain's RAM."""
        try:
            return self._control.map_foreign_range(self._domid, gpa, length)
        except XenError:
            raise GuestAddressError(gpa, length) from None

    def written(self, gpa: int, length: int) -> None:
        """A device wrote there."""
        if length:
            self._control.foreign_written(self._domid, gpa, length)


class ForeignWindows:
    """Device memory that the domain reaches without the device model. See `platform.windows.Windows`."""

    def __init__(self, control: Control, domid: int) -> None:
        self._control = control
        self._domid = domid
        self._shown: set[str] = set()

    def show(
        self, name: str, gpa: int | None, region: MemoryRegion, offset: int, size: int, *, readonly: bool = False
    ) -> None:
        """See `Windows.show`."""
        slot = None if gpa is None or size < PAGE else Slot(gpa, size, region, offset, readonly)
        self._control.show_memory(self._domid, name, slot)
        self._shown.add(name)

    def close(self) -> None:
        """Show nothing any more: the devices go."""
        for name in self._shown:
            try:
                self._control.show_memory(self._domid, name, None)
            except XenError:  # the domain has gone before
                return
