"""The registers of a virtio device on PCI, all in one BAR: virtio 1.2 section 4.1.4.

Reads and writes of any place at any size come from the guest; what is no register reads as zero and takes no value. How
an interrupt leaves (MSI-X or a line) is the function's business: see `pci.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bivisor.abi import virtio as abi
from bivisor.abi.virtio import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, MSI_NO_VECTOR, bit
from bivisor.memory import GuestMemory
from bivisor.platform.virtio.device import VirtioDevice, VirtQueue

PAGE = 0x1000
COMMON, ISR, DEVICE, NOTIFY, BAR_SIZE = 0 * PAGE, 1 * PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE
COMMON_LENGTH = 0x3C
NOTIFY_MULTIPLIER = 4

_DRIVER_STATUS = (
    abi.STATUS_ACKNOWLEDGE | abi.STATUS_DRIVER | abi.STATUS_DRIVER_OK | abi.STATUS_FEATURES_OK | abi.STATUS_FAILED
)
_LOW = (1 << 32) - 1


class Signals(Protocol):
    """The ways in which a PCI function interrupts."""

    vectors: int

    @property
    def messages_enabled(self) -> bool:
        """Whether the guest has enabled MSI-X."""

    def send_message(self, vector: int) -> None:
        """Send the message of `vector`."""

    def set_intx(self, level: bool) -> None:
        """Set the level of the interrupt pin."""


class VirtioRegisters:
    """The BAR of `device`, whose queues live in `memory`. It is the device's transport."""

    _device_feature_select: int
    _driver_feature_select: int
    _driver_features: int
    _config_vector: int
    _queue_select: int
    _generation: int

    def __init__(self, device: VirtioDevice, memory: GuestMemory, signals: Signals) -> None:
        self.device = device
        self.signals = signals
        self.status = 0
        self.isr = 0
        self.needs_reset_reason = ""
        self._clear()
        device.attach(memory, self)
        self._pages = (
            (self._read_common, self._write_common),
            (self._read_isr, _ignore),
            (self._read_config, self._write_config),
            (_nothing, self._write_notify),
        )
        self._readers: dict[tuple[int, int], Callable[[], int]] = {
            (0x00, 4): lambda: self._device_feature_select,
            (0x04, 4): self._device_feature,
            (0x08, 4): lambda: self._driver_feature_select,
            (0x0C, 4): self._driver_feature,
            (0x10, 2): lambda: self._config_vector,
            (0x12, 2): lambda: len(self.device.queues),
            (0x14, 1): lambda: self.status,
            (0x15, 1): lambda: self._generation,
            (0x16, 2): lambda: self._queue_select,
            (0x18, 2): lambda: queue.size if (queue := self._queue()) else 0,
            (0x1A, 2): lambda: queue.vector if (queue := self._queue()) else MSI_NO_VECTOR,
            (0x1C, 2): lambda: int(queue.enabled) if (queue := self._queue()) else 0,
            (0x1E, 2): lambda: self._queue_select if self._queue() else 0,
        }
        self._writers: dict[tuple[int, int], Callable[[int], None]] = {
            (0x00, 4): lambda value: setattr(self, "_device_feature_select", value),
            (0x08, 4): lambda value: setattr(self, "_driver_feature_select", value),
            (0x0C, 4): self._set_driver_feature,
            (0x10, 2): lambda value: setattr(self, "_config_vector", self._vector(value)),
            (0x14, 1): self._set_status,
            (0x16, 2): lambda value: setattr(self, "_queue_select", value),
            (0x18, 2): lambda value: self._set_queue("size", value),
            (0x1A, 2): self._set_queue_vector,
            (0x1C, 2): self._enable_queue,
        }
        for offset, name in ((0x20, "desc_address"), (0x28, "driver_address"), (0x30, "device_address")):
            self._address_register(offset, name)

    # The BAR

    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset` of the BAR."""
        page, offset = divmod(offset, PAGE)
        return self._pages[page][0](offset, size) if page < len(self._pages) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset` of the BAR."""
        page, offset = divmod(offset, PAGE)
        if page < len(self._pages):
            self._pages[page][1](offset, size, value)

    def notify_offset(self, index: int) -> int:
        """Where in the BAR the driver notifies of queue `index`."""
        return NOTIFY + index * NOTIFY_MULTIPLIER

    def _read_common(self, offset: int, size: int) -> int:
        reader = self._readers.get((offset, size))
        return reader() if reader else 0

    def _write_common(self, offset: int, size: int, value: int) -> None:
        writer = self._writers.get((offset, size))
        if writer:
            writer(value)

    def _read_isr(self, offset: int, size: int) -> int:
        """4.1.4.5: reading it clears it and takes the line down."""
        if offset:
            return 0
        isr, self.isr = self.isr, 0
        self.signals.set_intx(False)
        return isr

    def _read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.device.config[offset : offset + size], "little")

    def _write_config(self, offset: int, size: int, value: int) -> None:
        allowed = self.device.writable_config()
        # Only what the specification lets a driver write: it must not change its own capacity or its size.
        if offset in allowed and offset + size - 1 in allowed:
            self.device.config[offset : offset + size] = value.to_bytes(size, "little")
            self.device.config_written(offset, size)

    def _write_notify(self, offset: int, size: int, value: int) -> None:
        self.notified(offset // NOTIFY_MULTIPLIER)

    def notified(self, index: int) -> None:
        """The driver notified of queue `index`, by a write or by an eventfd."""
        # A queue that is not there or not set up has nothing to serve.
        if self.device.active and index < len(self.device.queues) and self.device.queues[index].enabled:
            self.device.notify(index)

    # Features

    def _device_feature(self) -> int:
        return self._half(self.device.offered, self._device_feature_select)

    def _driver_feature(self) -> int:
        return self._half(self._driver_features, self._driver_feature_select)

    def _half(self, features: int, select: int) -> int:
        return features >> 32 * select & _LOW if select < 2 else 0

    def _set_driver_feature(self, value: int) -> None:
        # 3.1.1: features are settled with FEATURES_OK; changing them later would change the layout of live rings.
        if self._driver_feature_select < 2 and not self.status & abi.STATUS_FEATURES_OK:
            shift = 32 * self._driver_feature_select
            self._driver_features = self._driver_features & ~(_LOW << shift) | value << shift

    # Status

    def _set_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        new = value & _DRIVER_STATUS & ~self.status  # bits go up only; 0 takes all of them down
        if new & abi.STATUS_FEATURES_OK:
            wanted = self._driver_features
            # A feature that was not offered, or the legacy layout: leave FEATURES_OK clear, as 3.1.1 says.
            if wanted & ~self.device.offered or not wanted & bit(F_VERSION_1):
                new &= ~(abi.STATUS_FEATURES_OK | abi.STATUS_DRIVER_OK)
            else:
                self.device.features = wanted
        if new & abi.STATUS_DRIVER_OK and not (self.status | new) & abi.STATUS_FEATURES_OK:
            new &= ~abi.STATUS_DRIVER_OK
        self.status |= new
        if new & abi.STATUS_DRIVER_OK and not self.status & abi.STATUS_DEVICE_NEEDS_RESET:
            self.device.active = True
            self.device.activate()

    def _clear(self) -> None:
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._driver_features = 0
        self._config_vector = MSI_NO_VECTOR
        self._queue_select = 0
        self._generation = 0

    def reset(self) -> None:
        """2.4: the driver (or the machine) resets the device."""
        self.status = 0
        self.isr = 0
        self.needs_reset_reason = ""
        self._clear()
        self.device.reset()
        self.signals.set_intx(False)

    # Queues

    def _queue(self) -> VirtQueue | None:
        queues = self.device.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    def _set_queue(self, name: str, value: int) -> None:
        queue = self._queue()
        # A ring that moves while it is served would be read with the old checks.
        if queue is not None and not queue.enabled:
            setattr(queue, name, value)

    def _set_queue_vector(self, value: int) -> None:
        queue = self._queue()
        if queue is not None:
            queue.vector = self._vector(value)

    def _vector(self, value: int) -> int:
        """4.1.5.1.2.1: a vector that does not exist reads back as none."""
        return value if value < self.signals.vectors else MSI_NO_VECTOR

    def _enable_queue(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and value == 1 and not queue.enabled and self.status & abi.STATUS_FEATURES_OK:
            queue.enable(indirect=self.device.has(F_INDIRECT_DESC), event_index=self.device.has(F_EVENT_IDX))

    def _address_register(self, offset: int, name: str) -> None:
        """A 64-bit address, which drivers write in two halves (4.1.3.1)."""

        def value() -> int:
            queue = self._queue()
            return int(getattr(queue, name)) if queue else 0

        self._readers[offset, 8] = value
        self._readers[offset, 4] = lambda: value() & _LOW
        self._readers[offset + 4, 4] = lambda: value() >> 32
        self._writers[offset, 8] = lambda new: self._set_queue(name, new)
        self._writers[offset, 4] = lambda new: self._set_queue(name, value() & ~_LOW | new)
        self._writers[offset + 4, 4] = lambda new: self._set_queue(name, value() & _LOW | new << 32)

    # What the device asks for (device.Transport)

    def interrupt(self, queue: VirtQueue) -> None:
        """See `Transport.interrupt`."""
        if self.signals.messages_enabled:
            if queue.vector != MSI_NO_VECTOR:
                self.signals.send_message(queue.vector)
        else:
            self.isr |= abi.ISR_QUEUE
            self.signals.set_intx(True)

    def config_changed(self) -> None:
        """See `Transport.config_changed`."""
        self._generation = (self._generation + 1) & 0xFF
        if self.status & abi.STATUS_DRIVER_OK:
            self._interrupt_config()

    def needs_reset(self, reason: str) -> None:
        """See `Transport.needs_reset`."""
        self.status |= abi.STATUS_DEVICE_NEEDS_RESET
        self.needs_reset_reason = reason
        if self.status & abi.STATUS_DRIVER_OK:
            self._interrupt_config()

    def _interrupt_config(self) -> None:
        self.isr |= abi.ISR_CONFIG
        if not self.signals.messages_enabled:
            self.signals.set_intx(True)
        elif self._config_vector != MSI_NO_VECTOR:
            self.signals.send_message(self._config_vector)


def _ignore(offset: int, size: int, value: int) -> None:
    pass


def _nothing(offset: int, size: int) -> int:
    return 0
