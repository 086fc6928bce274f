"""Looking into a guest and stopping it: memory, registers, symbols, breakpoints, for a program as gdb has them for a
person. One of the two at a time: a breakpoint of a program's takes the processors from gdb.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from bivisor.boot.cache import Cache
from bivisor.boot.kallsyms import kernel_symbols
from bivisor.cpu.registers import Regs
from bivisor.debug.target import Stop, Target, TargetError
from bivisor.errors import GuestTimeout, UsageError

Where = int | str
"""A linear address, or a symbol of the kernel's, as in "start_kernel" or "init_uts_ns+0x45"."""
_STEP_S = 10.0


@dataclass(frozen=True, slots=True)
class Hit:
    """Processor `vcpu` is about to carry out the instruction at a breakpoint, with these registers."""

    vcpu: int
    registers: Regs


Action = Callable[[Hit], object]


class Breakpoint:
    """Where the guest stops. With an `action`, that is called each time and the guest goes on; without, it stays held
    until `resume()`. As a context manager it goes at the end."""

    def __init__(self, inspector: Inspector, address: int, action: Action | None) -> None:
        self._inspector = inspector
        self.address = address
        self.action = action
        self.hits = 0
        """How often a processor came here."""
        self.error: BaseException | None = None
        """What the action raised; it is not called again."""
        self._news = threading.Condition()
        self._last: Hit | None = None

    def hit(self, hit: Hit) -> None:
        """A processor has come."""
        if self.action is not None and self.error is None:
            try:
                self.action(hit)
            except BaseException as error:
                self.error = error
        with self._news:
            self.hits += 1
            self._last = hit
            self._news.notify_all()

    def wait(self, timeout: float = 60.0) -> Hit:
        """Wait for the next processor that comes, counted from the last call. GuestTimeout."""
        with self._news:
            if not self._news.wait_for(lambda: self._last is not None, timeout):
                raise GuestTimeout(f"the guest did not come to {self.address:#x} within {timeout:g} s")
            hit, self._last = self._last, None
            assert hit is not None
            return hit

    def resume(self) -> None:
        """Let a guest that is held here go on."""
        self._inspector.resume()

    def remove(self) -> None:
        """Take it away; a guest that is held here goes on. What the action raised is raised here."""
        self._inspector.remove(self)
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Breakpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Inspector:
    """Works on `target`, whose kernel is in the file `kernel`. Every method waits until no guest code runs."""

    def __init__(self, target: Target, kernel: Path | None, cache: Cache) -> None:
        self._target = target
        self._kernel = kernel
        self._cache = cache
        self._symbols: dict[str, int] | None = None
        self._lock = threading.RLock()
        self._breakpoints: dict[int, Breakpoint] = {}
        self._stops: SimpleQueue[Stop | None] = SimpleQueue()
        self._at: Stop | None = None
        self._holder: Breakpoint | None = None
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------- symbols

    @property
    def symbols(self) -> dict[str, int]:
        """The kernel's symbols, as its kallsyms have them. ImageError where it has none."""
        if self._symbols is None:
            if self._kernel is None:
                raise UsageError("this guest has no kernel file to take symbols from")
            found = kernel_symbols(self._kernel, self._cache)
            self._symbols = {name: symbol.address for name, symbol in found.items()}
        return self._symbols

    def address(self, where: Where) -> int:
        """The linear address that `where` means. UsageError."""
        if isinstance(where, int):
            return where
        name, _, offset = where.partition("+")
        try:
            return self.symbols[name.strip()] + (int(offset, 0) if offset else 0)
        except KeyError:
            raise UsageError(f"the kernel has no symbol {name!r}") from None
        except ValueError:
            raise UsageError(f"{where!r}: a symbol, or a symbol and a number as in init_uts_ns+0x45") from None

    # ---------------------------------------------------------------- a guest that was made held

    def start(self) -> None:
        """Let it run; one that runs is no error."""
        with self._lock:
            if self._at is None and not self._target.stopped:
                self._target.resume()

    # ---------------------------------------------------------------- memory and registers

    def read(self, where: Where, length: int, *, physical: bool = False, vcpu: int = 0) -> bytes:
        """`length` bytes of memory, by linear address as processor `vcpu` has it mapped, or by guest-physical address.
        UsageError where some of it is not mapped."""
        address = self.address(where)
        with self._held():
            self._target.physical = physical
            try:
                found = self._target.read(address, length, vcpu)
            finally:
                self._target.physical = False
        if len(found) < length:
            raise UsageError(f"{address + len(found):#x} is not mapped to memory")
        return found

    def write(self, where: Where, data: bytes, *, physical: bool = False, vcpu: int = 0) -> None:
        """Write `data` there, whatever the page's rights say. UsageError where some of it is not mapped."""
        address = self.address(where)
        with self._held():
            self._target.physical = physical
            try:
                self._target.write(address, data, vcpu)
            except TargetError as error:
                raise UsageError(str(error)) from None
            finally:
                self._target.physical = False

    def registers(self, vcpu: int = 0) -> Regs:
        """The general registers of a processor."""
        with self._held():
            return self._target.vcpus[vcpu].get_regs()

    def set_registers(self, vcpu: int = 0, **values: int) -> None:
        """Set some of them, as in `set_registers(rax=0)`. UsageError for a name that is none."""
        with self._held():
            try:
                changed = replace(self._target.vcpus[vcpu].get_regs(), **values)
            except TypeError:
                raise UsageError(f"{', '.join(values)}: registers are rax to r15, rip and rflags") from None
            self._target.vcpus[vcpu].set_regs(changed)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            stopped = self._target.is_held
            if self._at is None:
                try:
                    self._target.hold()
                except TargetError as error:
                    if not stopped:
                        self._target.resume()
                    raise UsageError(str(error)) from None
            try:
                yield
            finally:
                if not stopped and not self._target.stopped:  # else `_serve` has heard of it, or is about to
                    self._target.resume()

    # ---------------------------------------------------------------- breakpoints

    def breakpoint(self, where: Where, action: Action | None = None) -> Breakpoint:
        """Stop before the instruction at `where`. UsageError where there is one already, or the engine has no more."""
        address = self.address(where)
        with self._lock:
            if address in self._breakpoints:
                raise UsageError(f"there is a breakpoint at {address:#x} already")
            if self._thread is None:
                self._target.on_stop = self._stops.put
                self._target.attach()
                self._thread = threading.Thread(target=self._serve, name="bivisor-breakpoints", daemon=True)
                self._thread.start()
            with self._held():
                self._insert(address)
            made = self._breakpoints[address] = Breakpoint(self, address, action)
            return made

    def _insert(self, address: int) -> None:
        try:
            self._target.insert(address, False)
        except TargetError:
            try:
                self._target.insert(address, True)  # what is not mapped yet can have a debug register
            except TargetError as error:
                raise UsageError(str(error)) from None

    def remove(self, breakpoint_: Breakpoint) -> None:
        """Take one away; one that is gone is no error."""
        with self._lock:
            if self._breakpoints.pop(breakpoint_.address, None) is None:
                return
            with self._held():
                self._target.remove(breakpoint_.address)
            if self._holder is breakpoint_:
                self.resume()

    def resume(self) -> None:
        """Let a guest go on that is held at a breakpoint; one that runs is no error."""
        with self._lock:
            stop, self._at, self._holder = self._at, None, None
            if stop is None:
                return
            address = self._rip(stop)
            if address in self._breakpoints:
                self._step_over(stop.index, address)
            self._target.resume()

    def step(self) -> Regs:
        """Carry out one instruction of the processor that is held at a breakpoint. UsageError where none is."""
        with self._lock:
            if self._at is None:
                raise UsageError("no processor is held at a breakpoint")
            stop = self._at
            address = self._rip(stop)
            if address in self._breakpoints:
                self._step_over(stop.index, address)
            else:
                self._step(stop.index)
            return self._target.vcpus[stop.index].get_regs()

    def _step_over(self, index: int, address: int) -> None:
        self._target.remove(address)
        self._step(index)
        self._insert(address)

    def _step(self, index: int) -> None:
        done = threading.Event()
        before, self._target.on_stop = self._target.on_stop, lambda _: done.set()
        try:
            self._target.resume(index)
            if not done.wait(_STEP_S):
                self._target.hold()
        except TargetError as error:
            raise UsageError(str(error)) from None
        finally:
            self._target.on_stop = before

    def _rip(self, stop: Stop) -> int:
        return self._target.vcpus[stop.index].get_regs().rip

    def _serve(self) -> None:
        while (stop := self._stops.get()) is not None:
            with self._lock:
                self._target.hold()  # the other processors may still be on their way out
                self._at = stop
                registers = self._target.vcpus[stop.index].get_regs()
                found = self._holder = self._breakpoints.get(registers.rip)
                if found is None:  # it was taken away meanwhile
                    self.resume()
                    continue
            found.hit(Hit(stop.index, registers))
            if found.action is not None:
                self.resume()

    def close(self) -> None:
        """Let go of a guest that has ended, or is about to be closed."""
        if self._thread is not None:
            self._stops.put(None)
            self._thread.join()
            self._thread = None


class Inspected:
    """The part of a guest's interface that an `Inspector` answers."""

    _inspector: Inspector

    @property
    def symbols(self) -> dict[str, int]:
        """See `Inspector.symbols`."""
        return self._inspector.symbols

    def read_memory(self, where: Where, length: int, *, physical: bool = False, vcpu: int = 0) -> bytes:
        """See `Inspector.read`."""
        return self._inspector.read(where, length, physical=physical, vcpu=vcpu)

    def write_memory(self, where: Where, data: bytes, *, physical: bool = False, vcpu: int = 0) -> None:
        """See `Inspector.write`."""
        self._inspector.write(where, data, physical=physical, vcpu=vcpu)

    def registers(self, vcpu: int = 0) -> Regs:
        """See `Inspector.registers`."""
        return self._inspector.registers(vcpu)

    def set_registers(self, vcpu: int = 0, **values: Any) -> None:
        """See `Inspector.set_registers`."""
        self._inspector.set_registers(vcpu, **values)

    def breakpoint(self, where: Where, action: Action | None = None) -> Breakpoint:
        """See `Inspector.breakpoint`."""
        return self._inspector.breakpoint(where, action)

    def step(self) -> Regs:
        """See `Inspector.step`."""
        return self._inspector.step()
