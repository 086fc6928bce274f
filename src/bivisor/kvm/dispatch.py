"""The one table that carries exits to where they are handled.

An exit of the guest is looked up by its class; a port or memory access goes on to the bus, which looks up the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bivisor.cpu.exits import (
    Debug,
    Direction,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Mmio,
    PortIo,
    RdMsr,
    Shutdown,
    SystemEvent,
    UnknownExit,
    WrMsr,
)
from bivisor.cpu.exittable import ExitTable
from bivisor.kvm.outcome import End, Outcome
from bivisor.platform.bus import Bus

_ENOSYS = (-1000) & (1 << 64) - 1  # KVM_ENOSYS: what KVM answers to a hypercall that it does not have
_SYSTEM_EVENTS = {1: End.POWER_OFF, 2: End.RESET, 3: End.PANIC}


class Dispatcher:
    """Handles exits for the processors of one machine. `lock` is the devices' lock."""

    def __init__(self, ports: Bus, mmio: Bus, lock: threading.RLock) -> None:
        self._ports = ports
        self._mmio = mmio
        self._lock = lock
        self.table: dict[type[Any], Callable[[Any], bool]] = {
            PortIo: self._port_io,
            Mmio: self._mmio_access,
            RdMsr: self._rdmsr,
            WrMsr: self._wrmsr,
            Hypercall: self._hypercall,
        }

    def processor(self) -> ExitTable:
        """The table of one more processor, whose `handle` is its `ExitHandler`."""
        return ExitTable(self.table, self._place)

    def _place(self, exit_: Exit) -> str:
        """The device that an exit goes to."""
        match exit_:
            case PortIo(port=address):
                claim = self._ports.find(address)
            case Mmio(address=address):
                claim = self._mmio.find(address)
            case _:
                return ""
        return claim.name if claim is not None else "nobody"

    def _port_io(self, exit_: PortIo) -> bool:
        port, size, data = exit_.port, exit_.size, exit_.data
        with self._lock:
            if exit_.direction is Direction.OUT:
                if exit_.count == 1:
                    self._ports.write(port, size, data[0] if size == 1 else int.from_bytes(data, "little"))
                    return True
                for at in range(0, size * exit_.count, size):
                    self._ports.write(port, size, int.from_bytes(data[at : at + size], "little"))
                return True
            if exit_.count > 1 and self._read_block(port, size, data):
                return True
            for at in range(0, size * exit_.count, size):
                data[at : at + size] = self._ports.read(port, size).to_bytes(size, "little")
        return True

    def _read_block(self, port: int, size: int, data: memoryview) -> bool:
        """Have a device that can (`read_block`) fill the data of a string instruction in one go."""
        claim = self._ports.find(port)
        read_block = getattr(claim.device, "read_block", None) if claim is not None else None
        return claim is not None and read_block is not None and bool(read_block(port - claim.base, size, data))

    def _mmio_access(self, exit_: Mmio) -> bool:
        size = exit_.length
        with self._lock:
            if exit_.is_write:
                self._mmio.write(exit_.address, size, int.from_bytes(exit_.data[:size], "little"))
            else:
                exit_.data[:size] = self._mmio.read(exit_.address, size).to_bytes(size, "little")
        return True

    def _rdmsr(self, exit_: RdMsr) -> bool:
        exit_.error[0] = 1  # an MSR that this machine does not have: #GP, as on a processor without it
        return True

    def _wrmsr(self, exit_: WrMsr) -> bool:
        exit_.error[0] = 1
        return True

    def _hypercall(self, exit_: Hypercall) -> bool:
        exit_.result[:] = _ENOSYS.to_bytes(8, "little")
        return True

    @staticmethod
    def final(exit_: Exit) -> Outcome | None:
        """How the machine ended with an exit that nobody handled; None where it goes on."""
        match exit_:
            case Shutdown():
                return Outcome(End.SHUTDOWN)
            case Hlt():
                return Outcome(End.DEAD)
            case InternalError(suberror=suberror, data=data, text=text):
                words = text or f"suberror {suberror}, data {' '.join(f'{word:#x}' for word in data)}"
                return Outcome(End.ENGINE, detail=f"internal error: {words}")
            case FailEntry(hardware_reason=reason, cpu=cpu):
                return Outcome(End.ENGINE, detail=f"VM entry failed on processor {cpu}, reason {reason:#x}")
            case SystemEvent(type=kind):
                end = _SYSTEM_EVENTS.get(kind, End.ENGINE)
                return Outcome(end, detail=f"system event {kind}" if end is End.ENGINE else "")
            case UnknownExit(reason=reason):
                return Outcome(End.ENGINE, detail=f"exit reason {reason} is not known")
            case Debug(pc=pc):
                return Outcome(End.ENGINE, detail=f"debug exit at {pc:#x}")
            case _:
                return None
