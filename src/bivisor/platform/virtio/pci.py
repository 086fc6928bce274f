"""Virtio over PCI, modern devices only: virtio 1.2 section 4.1.

One BAR holds all registers, another the MSI-X table. A queue's notification is a write to an address of its own: it
comes as an MMIO access and is served in the processor's thread, or, after `attach_notifiers`, the engine turns it into
an eventfd and it is served in the loop's thread while the processor goes on.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from bivisor.abi import virtio as abi
from bivisor.errors import EngineError
from bivisor.memory import GuestMemory
from bivisor.platform.pci import BarKind, Identity, PciFunction
from bivisor.platform.virtio import registers as reg
from bivisor.platform.virtio.device import VirtioDevice
from bivisor.platform.virtio.registers import VirtioRegisters

if TYPE_CHECKING:
    from bivisor.cpu.contract import Machine
    from bivisor.host.loop import Loop

REGISTERS_BAR, MSIX_BAR = 0, 1
CAP_VENDOR = 0x09
NOTIFY_WRITE = 2
_WINDOW = struct.Struct("<B3xII")  # bar, (id, padding), offset, length: behind cap_len and cfg_type


class VirtioPci(PciFunction):
    """The PCI function of `device`, whose queues live in `memory`."""

    def __init__(self, device: VirtioDevice, memory: GuestMemory) -> None:
        identity = Identity(
            abi.PCI_VENDOR,
            abi.PCI_DEVICE_BASE + device.device_id,
            device.pci_class,
            abi.PCI_REVISION,
            abi.PCI_VENDOR,
            abi.PCI_DEVICE_BASE + device.device_id,
        )
        super().__init__(identity, name=device.name, pin=1)
        self.device = device
        self.vectors = len(device.queue_sizes) + 1
        self._table = self.add_msix(MSIX_BAR, self.vectors)
        self.registers = VirtioRegisters(device, memory, self)
        self.add_bar(REGISTERS_BAR, BarKind.MEMORY32, reg.BAR_SIZE, self.registers)
        for kind, offset, length, extra in (
            (abi.PCI_CAP_COMMON_CFG, reg.COMMON, reg.COMMON_LENGTH, b""),
            (abi.PCI_CAP_ISR_CFG, reg.ISR, 1, b""),
            (abi.PCI_CAP_DEVICE_CFG, reg.DEVICE, max(4, len(device.config)), b""),
            (abi.PCI_CAP_NOTIFY_CFG, reg.NOTIFY, reg.PAGE, struct.pack("<I", reg.NOTIFY_MULTIPLIER)),
        ):
            self.add_capability(CAP_VENDOR, _body(kind, offset, length, extra))
        writable = b"\0\0\xff\0\0\0" + b"\xff" * 12
        self._window = self.add_capability(CAP_VENDOR, _body(abi.PCI_CAP_PCI_CFG, 0, 0, bytes(4)), writable)
        self._notifiers: list[int] = []
        self._machine: Machine | None = None
        self._loop: Loop | None = None
        self._placed: list[tuple[int, int]] = []

    # How it interrupts (registers.Signals; `set_intx` is the function's own)

    @property
    def messages_enabled(self) -> bool:
        """See `Signals.messages_enabled`."""
        return self._table.enabled

    def send_message(self, vector: int) -> None:
        """See `Signals.send_message`."""
        self._table.notify(vector)

    # The window into the BAR that configuration space has (4.1.4.9)

    def config_read(self, offset: int, size: int) -> int:
        """See `PciFunction.config_read`; the window's data is what the BAR says."""
        data = self._window + abi.PCI_CAP_LENGTH
        if offset < data + 4 and offset + size > data and (place := self._window_place()):
            at, length = place
            self.config[data : data + 4] = self.registers.read(at, length).to_bytes(4, "little")
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """See `PciFunction.config_write`; what is written to the window's data goes to the BAR."""
        super().config_write(offset, size, value)
        data = self._window + abi.PCI_CAP_LENGTH
        if offset < data + 4 and offset + size > data and (place := self._window_place()):
            at, length = place
            self.registers.write(at, length, int.from_bytes(self.config[data : data + length], "little"))

    def _window_place(self) -> tuple[int, int] | None:
        """The (offset, length) that the window shows. One outside of the registers, or crooked, shows nothing."""
        bar, offset, length = _WINDOW.unpack_from(self.config, self._window + 4)
        if bar != REGISTERS_BAR or length not in (1, 2, 4) or offset % length or offset + length > reg.BAR_SIZE:
            return None
        return offset, length

    # Notifications by eventfd

    def attach_notifiers(self, machine: Machine, loop: Loop) -> bool:
        """Let `machine` signal an eventfd for each queue, which `loop` watches. False where the engine cannot: then
        notifications go on as MMIO accesses."""
        self._machine, self._loop = machine, loop
        self._notifiers = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in self.device.queues]
        try:
            self._place_notifiers(self.bars[REGISTERS_BAR].mapped)
        except EngineError:
            self._close_notifiers()
            return False
        for index, fd in enumerate(self._notifiers):
            loop.watch(fd, lambda index=index, fd=fd: self._notified(index, fd))  # type: ignore[misc]
        return True

    def bar_moved(self, index: int, address: int | None) -> None:
        """See `PciFunction.bar_moved`: the eventfds follow the registers."""
        if index == REGISTERS_BAR and self._machine is not None:
            try:
                self._place_notifiers(address)
            except EngineError:  # the guest put them where the engine takes none: they are MMIO accesses there
                pass

    def _place_notifiers(self, address: int | None) -> None:
        assert self._machine is not None
        while self._placed:
            fd, at = self._placed.pop()
            self._machine.remove_ioeventfd(fd, at, NOTIFY_WRITE)
        if address is None:
            return
        for index, fd in enumerate(self._notifiers):
            at = address + self.registers.notify_offset(index)
            self._machine.ioeventfd(fd, at, NOTIFY_WRITE)
            self._placed.append((fd, at))

    def _notified(self, index: int, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        self.registers.notified(index)

    def _close_notifiers(self) -> None:
        try:
            if self._machine is not None:
                self._place_notifiers(None)
        except EngineError:  # the machine has gone, and its ioeventfds with it
            pass
        for fd in self._notifiers:
            if self._loop is not None:
                self._loop.unwatch(fd)
            os.close(fd)
        self._notifiers = []
        self._placed = []
        self._machine = self._loop = None

    def close(self) -> None:
        """Close the device and the eventfds. Before the machine and its memory are closed."""
        self._close_notifiers()
        self.device.close()


def _body(kind: int, offset: int, length: int, extra: bytes) -> bytes:
    """A virtio capability behind its first two bytes, which every PCI capability has."""
    total = abi.PCI_CAP_LENGTH + len(extra)
    return abi.PCI_CAP.pack(CAP_VENDOR, 0, total, kind, REGISTERS_BAR, 0, 0, offset, length)[2:] + extra
