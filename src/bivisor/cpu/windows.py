"""Windows of devices in a machine's memory map (see `platform/windows.py`): memory slots that come and go."""

from __future__ import annotations

from bivisor.cpu.contract import Machine
from bivisor.errors import BivisorError
from bivisor.memory import MemoryRegion, Slot
from bivisor.memory.guest import GuestMemory


class MachineWindows:
    """The windows of `machine`. A place that the guest chooses over its own RAM is not taken: the window is nowhere."""

    def __init__(self, machine: Machine, memory: GuestMemory) -> None:
        self._machine = machine
        self._memory = memory
        self._wanted: dict[str, Slot | None] = {}
        self._mapped: dict[str, Slot] = {}
        self._closed = False

    def show(self, name: str, gpa: int | None, region: MemoryRegion, offset: int, size: int) -> None:
        """See `Windows.show`."""
        self.show_slot(name, None if gpa is None else Slot(gpa, size, region, offset))

    def show_slot(self, name: str, slot: Slot | None) -> None:
        """Let window `name` be `slot`, or nowhere."""
        self._wanted[name] = slot
        self._machine.between_blocks(self._settle)

    def show_rom(self, name: str, slot: Slot | None) -> None:
        """As `show_slot` with a read-only slot, and at once: the guest's next access finds the change. No engine has
        code of such a slot that it could be executing."""
        self._wanted[name] = slot
        if not self._closed:
            self._take_away(name)
            self._put(name)

    def places(self) -> list[tuple[int, int]]:
        """(address, length) of each window that is somewhere, or is about to be."""
        slots = {slot for slot in self._wanted.values() if slot is not None} | set(self._mapped.values())
        return [(slot.gpa, slot.size) for slot in slots]

    def _settle(self) -> None:
        if self._closed:
            return
        for name in self._mapped.copy():
            self._take_away(name)
        for name in self._wanted:
            self._put(name)

    def _take_away(self, name: str) -> None:
        slot = self._mapped.get(name)
        if slot is not None and self._wanted.get(name) != slot:
            self._machine.unmap(self._mapped.pop(name))

    def _put(self, name: str) -> None:
        wanted = self._wanted.get(name)
        if wanted is None or name in self._mapped or self._is_taken(wanted):
            return
        try:
            self._machine.map(wanted)
        except BivisorError:  # a place that the engine cannot map stays with the device
            return
        self._mapped[name] = wanted

    def _is_taken(self, wanted: Slot) -> bool:
        others = (*self._memory.slots, *self._mapped.values())
        return any(o.gpa < wanted.gpa + wanted.size and wanted.gpa < o.gpa + o.size for o in others)

    def close(self) -> None:
        """Map nothing any more: the machine goes, and the devices with it."""
        self._closed = True
        for slot in self._mapped.values():
            self._machine.unmap(slot)
        self._mapped.clear()
