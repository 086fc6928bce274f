"""From the exit that stands in kvm_run to an `Exit` object (KVM API section 5).

A guest comes out for the same few accesses over and over, so port and MMIO exits are kept by the words that tell them
apart: seen once, they cost a dictionary look-up, and their `data` is a view that points into kvm_run already.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from bivisor.abi import linux_kvm as abi
from bivisor.abi.linux_kvm import ExitReason, InternalSuberror, Run
from bivisor.cpu.exits import (
    Debug,
    Direction,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Interrupted,
    InterruptWindow,
    Mmio,
    PortIo,
    RdMsr,
    Shutdown,
    SystemEvent,
    UnknownExit,
    WrMsr,
)
from bivisor.cpu.kvm.live import LiveRegisters

_KEPT = 4096  # a guest that sweeps all addresses must not fill the host's memory
MMIO_KEY = (1 << 40) - 1
"""Of the 8 bytes that hold an MMIO exit's length and direction, the last 3 are padding."""

_MASK_32, _MASK_64 = (1 << 32) - 1, (1 << 64) - 1
_DIRECTIONS = {abi.EXIT_IO_IN: Direction.IN, abi.EXIT_IO_OUT: Direction.OUT}


class RunArea:
    """The mapped kvm_run of one processor: the words that the kernel and the program exchange, and exits made of them.

    `bytes`, `words` (32 bits) and `quads` (64 bits) are the same memory.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("I")
        self.quads = self.bytes.cast("Q")
        self.ports: dict[int, Exit] = {}
        self._doors: dict[int, Exit] = {}
        self.mmios: dict[tuple[int, int], Mmio] = {}
        self._views: dict[tuple[int, int], memoryview] = {}
        self._live: LiveRegisters | None = None
        self._hlt = Hlt()
        self._window = InterruptWindow()
        self._shutdown = Shutdown()
        self._interrupted = Interrupted()
        self._hypercall_port: int | None = None
        self._msr_error = self._view(Run.MSR_ERROR, 1)
        self._msr_data = self._view(Run.MSR_DATA, 8)
        self._hypercall_result = self._view(Run.HYPERCALL_RET, 8)
        self._xen_result = self._view(Run.XEN_RESULT, 8)
        self._decoders: dict[int, Callable[[], Exit]] = {
            ExitReason.IO: self._port_io,
            ExitReason.MMIO: self._mmio,
            ExitReason.HLT: lambda: self._hlt,
            ExitReason.IRQ_WINDOW_OPEN: lambda: self._window,
            ExitReason.SHUTDOWN: lambda: self._shutdown,
            ExitReason.INTR: lambda: self._interrupted,
            ExitReason.X86_RDMSR: self._rdmsr,
            ExitReason.X86_WRMSR: self._wrmsr,
            ExitReason.DEBUG: self._debug,
            ExitReason.HYPERCALL: self._hypercall,
            ExitReason.XEN: self._xen,
            ExitReason.FAIL_ENTRY: lambda: FailEntry(*abi.EXIT_FAIL_ENTRY.unpack_from(self.bytes, Run.EXIT)),
            ExitReason.INTERNAL_ERROR: self._internal_error,
            ExitReason.SYSTEM_EVENT: self._system_event,
        }

    def take_hypercalls(self, port: int) -> None:
        """Make `Hypercall` exits of writes of 4 bytes to `port`: the kernel is told to leave the registers here at each
        exit, and to take RAX from here (KVM API 5, kvm_valid_regs and kvm_dirty_regs)."""
        self._hypercall_port = port
        self._rax = self._view(Run.SYNC_REGS, 8)
        self.quads[Run.VALID_REGS // 8] = abi.SYNC_X86_REGS | abi.SYNC_X86_SREGS

    def door(self, port: int, exit_: Exit) -> None:
        """A write of one byte to `port` comes as `exit_`, always the same object."""
        key = abi.EXIT_IO_OUT | 1 << 8 | port << 16 | 1 << 32
        self._doors[key] = self.ports[key] = exit_

    def live(self) -> LiveRegisters:
        """The registers, from the next exit on."""
        if self._live is None:
            self._live = LiveRegisters(self.bytes, self.quads)
        return self._live

    def decode(self) -> Exit:
        """The exit that kvm_run tells of."""
        reason = self.words[Run.EXIT_REASON // 4]
        decoder = self._decoders.get(reason)
        return UnknownExit(reason) if decoder is None else decoder()

    def close(self) -> None:
        """Unmap. Views that exits carry are released with it."""
        if self._live is not None:
            self._live.close()
        for view in (*self._views.values(), self.quads, self.words, self.bytes):
            view.release()
        self._views.clear()
        self.ports.clear()
        self._doors.clear()
        self.mmios.clear()
        self._decoders.clear()  # they refer to this object: without the circle it goes when its owner goes
        self._map.close()

    def _view(self, start: int, length: int) -> memoryview:
        view = self._views.get((start, length))
        if view is None:
            view = self._views[start, length] = self.bytes[start : start + length]
        return view

    def _port_io(self) -> Exit:
        direction, size, port, count, offset = abi.EXIT_IO.unpack_from(self.bytes, Run.EXIT)
        if port == self._hypercall_port and size == 4 and direction == abi.EXIT_IO_OUT and count == 1:
            return self._hypercall_by_port()
        if len(self.ports) >= _KEPT:
            self.ports.clear()
            self.ports.update(self._doors)
        # The kernel always uses the same page for port data (KVM_PIO_PAGE_OFFSET), so the offset is no part of the key.
        found = PortIo(_DIRECTIONS[direction], port, size, count, self._view(offset, size * count))
        self.ports[self.quads[Run.EXIT // 8]] = found
        return found

    def _mmio(self) -> Mmio:
        address, length, is_write = abi.EXIT_MMIO.unpack_from(self.bytes, Run.EXIT)
        key = (address, self.quads[Run.EXIT // 8 + 2] & MMIO_KEY)
        found = self.mmios.get(key)
        if found is None:
            if len(self.mmios) >= _KEPT:
                self.mmios.clear()
            found = Mmio(address, length, bool(is_write), self._view(Run.MMIO_DATA, length))
            self.mmios[key] = found
        return found

    def _rdmsr(self) -> RdMsr:
        _, index, _ = abi.EXIT_MSR.unpack_from(self.bytes, Run.EXIT)
        return RdMsr(index, self._msr_data, self._msr_error)

    def _wrmsr(self) -> WrMsr:
        _, index, value = abi.EXIT_MSR.unpack_from(self.bytes, Run.EXIT)
        return WrMsr(index, value, self._msr_error)

    def _debug(self) -> Debug:
        return Debug(*abi.EXIT_DEBUG.unpack_from(self.bytes, Run.EXIT))

    def _hypercall(self) -> Hypercall:
        nr, *args, long_mode = abi.EXIT_HYPERCALL.unpack_from(self.bytes, Run.EXIT)
        return Hypercall("kvm", nr, tuple(args[:4]), 0, bool(long_mode), self._hypercall_result)

    def _xen(self) -> Exit:
        type_, long_mode, cpl, nr, *params = abi.EXIT_XEN.unpack_from(self.bytes, Run.EXIT)
        if type_ != abi.EXIT_XEN_HCALL:
            return UnknownExit(ExitReason.XEN)
        return Hypercall("xen", nr, tuple(params), cpl, bool(long_mode), self._xen_result)

    def _hypercall_by_port(self) -> Hypercall:
        rax, rbx, rcx, rdx, rsi, rdi, _, rbp, r8, r9, r10, *_ = abi.REGS.unpack_from(self.bytes, Run.SYNC_REGS)
        _, _, selector, _, _, _, _, _, long_mode, *_ = abi.SEGMENT.unpack_from(self.bytes, Run.SYNC_SREGS)
        args = (rdi, rsi, rdx, r10, r8, r9) if long_mode else (rbx, rcx, rdx, rsi, rdi, rbp)
        self.quads[Run.DIRTY_REGS // 8] = abi.SYNC_X86_REGS
        mask = _MASK_64 if long_mode else _MASK_32
        return Hypercall(
            "xen", rax & mask, tuple(value & mask for value in args), selector & 3, bool(long_mode), self._rax
        )

    def _internal_error(self) -> InternalError:
        suberror, count, *data = abi.EXIT_INTERNAL.unpack_from(self.bytes, Run.EXIT)
        data = data[: min(count, len(data))]
        return InternalError(suberror, tuple(data), self._internal_text(suberror, len(data)))

    def _internal_text(self, suberror: int, count: int) -> str:
        match suberror:
            case InternalSuberror.EMULATION:
                _, _, flags, size, code = abi.EXIT_EMULATION.unpack_from(self.bytes, Run.EXIT)
                if count >= 3 and flags & abi.EMULATION_FLAG_INSTRUCTION_BYTES:
                    return f"KVM cannot emulate the instruction {code[:size].hex(' ')}"
                return "KVM cannot emulate an instruction"
            case InternalSuberror.SIMUL_EX:
                return "two exceptions at once"
            case InternalSuberror.DELIVERY_EV:
                return "an exit while an event was being delivered"
            case InternalSuberror.UNEXPECTED_EXIT_REASON:
                return "an exit that KVM does not expect"
        return ""

    def _system_event(self) -> SystemEvent:
        type_, count, *data = abi.EXIT_SYSTEM_EVENT.unpack_from(self.bytes, Run.EXIT)
        return SystemEvent(type_, tuple(data[: min(count, len(data))]))
