"""What a debugger works on: the processors of a machine that is held, their memory by linear address, breakpoints.

A breakpoint is an address that the engine stops at where it can stop at as many as are asked for (`soft`); elsewhere
(`kvm`) four of them are debug registers, and a software breakpoint is an INT3 in the guest's memory, or an OUT on a KVM
from which INT3 does not come out (`cpu/kvm/outs.py`). INT3s of the guest's own are given back to it.

One stop is told at a time, for gdb knows of one alone: of a processor that comes to a breakpoint while the machine is
about to be held, it is told when the machine is to go on, if the breakpoint is still there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bivisor.abi.x86 import Vector
from bivisor.cpu.contract import Engine, Vcpu
from bivisor.cpu.exits import Debug
from bivisor.cpu.kvm.outs import OUT
from bivisor.cpu.measure import int3_comes_out
from bivisor.cpu.registers import GuestDebug
from bivisor.cpu.runcontrol import RunControl
from bivisor.errors import EngineError, GuestAddressError
from bivisor.memory import PAGE, GuestMemory

INT3 = b"\xcc"
_DEBUG_REGISTERS = 4
_LINUX, _LINUX_SIZE = 0xFFFF_FFFF_8000_0000, 1 << 30  # __START_KERNEL_map, KERNEL_IMAGE_SIZE


class TargetError(Exception):
    """What was asked for cannot be done; the text is for a person."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the machine is held: at processor `index`, by `breakpoint` ("hwbreak", "swbreak") or a step ("")."""

    index: int
    breakpoint: str = ""


@dataclass(frozen=True, slots=True)
class _Later:
    """A stop at the breakpoint `linear` that is not told yet, of a processor whose RIP is `rip`."""

    stop: Stop
    linear: int
    rip: int


class Target:
    """The machine. `on_stop(stop)` is called when a processor came to a breakpoint or ended a step, once until the
    machine goes on: in its thread, or in that of `resume()` where it had come there earlier."""

    def __init__(
        self, vcpus: Sequence[Vcpu], memory: GuestMemory, control: RunControl, engine: str, *, opcode: bytes = INT3
    ) -> None:
        self.vcpus = vcpus
        self._memory = memory
        self._control = control
        self._patches = engine != "soft"
        self._opcode = opcode
        self._addresses: list[int] = []
        self._patched: dict[int, tuple[int, bytes]] = {}
        self._stepping: int | None = None
        self._lock = threading.Lock()
        self._goes_on = True
        """Whether a processor that stops is to hold the machine."""
        self._later: dict[int, _Later] = {}
        self.stopped = False
        """Whether a stop was told, and the machine has not gone on since."""
        self.physical = False
        self.on_stop: Callable[[Stop], None] = lambda _: None

    # ---------------------------------------------------------------- running

    @property
    def is_held(self) -> bool:
        """Whether somebody holds the machine: a debugger, a stop, or who made it."""
        return self._control.is_held

    def attach(self) -> None:
        """Begin: stops come to `on_stop` from now on."""
        self._control.on_hit = self._hit

    def hold(self) -> None:
        """Hold the machine. TargetError where a processor does not come out of a device."""
        with self._lock:
            self._goes_on = False
        if not self._control.hold():
            raise TargetError("a processor does not stop: a device works for it")
        if self._stepping is not None:
            self._step(self._stepping, False)

    def resume(self, step: int | None = None) -> None:
        """Let the machine go on; with `step`, one instruction of that processor alone. The machine must be held."""
        later = None
        if step is not None:
            self._later.pop(step, None)
            self._step(step, True)
        else:
            later = self._take_later()
        with self._lock:
            self.stopped = later is not None
            self._goes_on = later is None
        if later is None:
            self._control.resume(step)
        else:
            self.on_stop(later.stop)

    def _take_later(self) -> _Later | None:
        """One that is still true."""
        while self._later:
            index, later = self._later.popitem()
            here = later.linear in self._patched or later.linear in self._addresses
            if here and self.vcpus[index].get_regs().rip == later.rip:
                return later
        return None

    def detach(self) -> None:
        """Take every breakpoint back and let the machine go on. The machine must be held, or have ended."""
        for linear in list(self._patched):
            self._unpatch(linear)
        self._addresses.clear()
        self._later.clear()
        self._stepping = None
        self._arm()
        self._goes_on, self.stopped = True, False
        self._control.on_hit = None
        self._control.resume()

    def _step(self, index: int, wanted: bool) -> None:
        self._stepping = index if wanted else None
        self.vcpus[index].set_debug(replace(self._debug(), single_step=wanted, block_interrupts=wanted))

    def _hit(self, vcpu: Vcpu, exit_: Debug) -> None:
        if exit_.exception != Vector.BP:
            self._stop(vcpu, exit_, "hwbreak" if exit_.dr6 & 0xF else "")
        elif exit_.pc in self._patched:
            self._stop(vcpu, exit_, "swbreak")
        else:
            self._give_back(vcpu)

    def _stop(self, vcpu: Vcpu, exit_: Debug, breakpoint_: str) -> None:
        if self._stepping is not None:
            self._step(self._stepping, False)
        stop = Stop(vcpu.index, breakpoint_)
        with self._lock:
            self._control.close()  # with the lock: whoever finds the machine held finds out by `hold()` who holds it
            if not self._goes_on:
                if breakpoint_:
                    self._later[vcpu.index] = _Later(stop, exit_.pc, vcpu.get_regs().rip)
                return
            self._goes_on, self.stopped = False, True
        self.on_stop(stop)

    def _give_back(self, vcpu: Vcpu) -> None:
        """An INT3 of the guest's own is no stop: a machine that is held stays held, and a step goes on behind it."""
        events = vcpu.get_events()
        events.exception = Vector.BP
        vcpu.set_events(events)
        if self._stepping is not None:
            self._step(self._stepping, True)

    # ---------------------------------------------------------------- breakpoints

    def insert(self, linear: int, hardware: bool) -> None:
        """Stop before the instruction at `linear`. TargetError."""
        if self._patches and not hardware:
            self._patch(linear)
            self._arm()
            return
        if linear in self._addresses:
            return
        if self._patches and len(self._addresses) == _DEBUG_REGISTERS:
            raise TargetError(f"a processor has {_DEBUG_REGISTERS} debug registers")
        self._addresses.append(linear)
        self._arm()

    def remove(self, linear: int) -> None:
        """No longer; a breakpoint that is not there is no error."""
        if linear in self._patched:
            self._unpatch(linear)
        elif linear in self._addresses:
            self._addresses.remove(linear)
        self._arm()

    def _patch(self, linear: int) -> None:
        if linear in self._patched:
            return
        gpa = self.vcpus[0].translate(linear)
        if gpa in (None, linear) and 0 <= linear - _LINUX < _LINUX_SIZE:
            gpa = linear - _LINUX  # Linux has no page tables yet, but lies where it was linked
        try:
            if gpa is None:
                raise GuestAddressError(linear, 1)
            old = bytes(self._memory.view(gpa, 1))
        except GuestAddressError:
            raise TargetError(f"{linear:#x} is not mapped to memory") from None
        self._patched[linear] = (gpa, old)
        self._memory.write(gpa, self._opcode)

    def _unpatch(self, linear: int) -> None:
        gpa, old = self._patched.pop(linear)
        if bytes(self._memory.view(gpa, 1)) == self._opcode:  # else the guest has put something else there
            self._memory.write(gpa, old)

    def _debug(self) -> GuestDebug:
        by_int3 = self._opcode == INT3
        return GuestDebug(
            software_breakpoints=by_int3 and bool(self._patched),
            addresses=tuple(self._addresses),
            outs=frozenset() if by_int3 else frozenset(self._patched),
        )

    def _arm(self) -> None:
        debug = self._debug()
        for vcpu in self.vcpus:
            try:
                vcpu.set_debug(debug)
            except EngineError as error:
                raise TargetError(str(error)) from None

    # ---------------------------------------------------------------- memory

    def read(self, address: int, length: int, index: int = 0) -> bytes:
        """Up to `length` bytes as processor `index` sees them; fewer, or none, where nothing is mapped.

        What breakpoints have put into memory does not show.
        """
        found = bytearray()
        for part, at, count in self._parts(address, length):
            gpa = self._physical(part, index)
            if gpa is None:
                break
            try:
                found[at : at + count] = self._memory.view(gpa, count)
            except GuestAddressError:
                break
        for linear, (_, old) in self._patched.items():
            if address <= linear < address + len(found) and not self.physical:
                found[linear - address] = old[0]
        return bytes(found)

    def write(self, address: int, data: bytes, index: int = 0) -> None:
        """Write `data` there, whatever the page's rights say. TargetError, with nothing written, where it cannot."""
        todo = []
        for part, at, count in self._parts(address, len(data)):
            gpa = self._physical(part, index)
            try:
                if gpa is None:
                    raise GuestAddressError(part, count)
                self._memory.view(gpa, count)
            except GuestAddressError:
                raise TargetError(f"{part:#x} is not mapped to memory") from None
            todo.append((gpa, data[at : at + count]))
        for gpa, piece in todo:
            self._memory.write(gpa, piece)

    def _physical(self, address: int, index: int) -> int | None:
        return address if self.physical else self.vcpus[index].translate(address)

    @staticmethod
    def _parts(address: int, length: int) -> list[tuple[int, int, int]]:
        """(address, offset, count) of each piece that is in one page."""
        parts, at = [], 0
        while at < length:
            count = min(length - at, PAGE - (address + at) % PAGE)
            parts.append((address + at & (1 << 64) - 1, at, count))
            at += count
        return parts


def target_of(
    engine: Engine, vcpus: Sequence[Vcpu], memory: GuestMemory, control: RunControl, *, traps_int3: bool = False
) -> Target:
    """The machine as a target, with the breakpoints that its engine lets out; INT3 where `vcpus` see to that."""
    opcode = INT3
    if engine.name == "kvm" and not traps_int3 and not int3_comes_out(engine):
        opcode = OUT
    return Target(vcpus, memory, control, engine.name, opcode=opcode)
