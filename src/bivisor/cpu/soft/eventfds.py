"""Eventfds as KVM has them: signalled by a guest's write (KVM_IOEVENTFD), or pulsing an interrupt line (KVM_IRQFD).

KVM API 4.59 and 4.75; eventfd(2).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from bivisor.errors import EngineError


class Signals(dict[tuple[int, int, int | None], int]):
    """(address, length, value) to the eventfd that a write there signals; length 0 is any, value None is any."""

    def add(self, fd: int, address: int, length: int, value: int | None) -> None:
        """Register. EngineError where there is one already."""
        key = (address, length, value)
        if key in self:
            raise EngineError(f"KVM_IOEVENTFD: {address:#x} has an eventfd already")
        self[key] = fd

    def remove(self, fd: int, address: int, length: int, value: int | None) -> None:
        """Undo `add`. EngineError where there is none."""
        key = (address, length, value)
        if self.get(key) != fd:
            raise EngineError(f"KVM_IOEVENTFD: {address:#x} has no such eventfd")
        del self[key]

    def signal(self, address: int, size: int, value: int) -> bool:
        """Signal the eventfd that is registered for this write; False if there is none."""
        for key in ((address, size, value), (address, size, None), (address, 0, None)):
            fd = self.get(key)
            if fd is not None:
                os.eventfd_write(fd, 1)
                return True
        return False


class IrqfdThread:
    """Turns eventfds into pulses of interrupt lines, as the kernel does for KVM_IRQFD."""

    def __init__(self, pulse: Callable[[int], None]) -> None:
        self._pulse = pulse
        self._poll = select.epoll()
        self._lines: dict[int, int] = {}
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._stop, select.EPOLLIN)
        self._events = select.EPOLLIN
        self._thread = threading.Thread(target=self._main, name="bivisor-irqfd", daemon=True)
        self._thread.start()

    def add(self, fd: int, gsi: int) -> None:
        """Let `fd` pulse line `gsi`."""
        self._lines[fd] = gsi
        self._poll.register(fd, self._events)

    def remove(self, fd: int, gsi: int) -> bool:
        """Undo `add`; False if it does not."""
        if self._lines.get(fd) != gsi:
            return False
        self._poll.unregister(fd)
        del self._lines[fd]
        return True

    def close(self) -> None:
        """End the thread and wait for it."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._poll.close()
        os.close(self._stop)

    def _main(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._stop:
                    return
                gsi = self._lines.get(fd)
                if gsi is not None:
                    try:
                        os.eventfd_read(fd)
                    except OSError:  # its owner has drained or closed it
                        continue
                    self._pulse(gsi)
