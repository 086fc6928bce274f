"""Where the guest's accesses to ports and to what is not memory arrive: exits, handled in place if possible.

These functions run inside the guest's code, so they raise nothing: an exception is kept in `error`, the guest is
stopped, and `run()` raises it. Exit objects are made once for each kind of access and handed out again, so an exit
costs no allocation.
"""

from __future__ import annotations

import ctypes as C
from typing import TYPE_CHECKING, Any

from bivisor.abi.x86 import Vector
from bivisor.cpu.contract import ExitHandler
from bivisor.cpu.exits import (
    Direction,
    Exit,
    Mmio,
    PortIo,
)
from bivisor.cpu.soft import private as p

if TYPE_CHECKING:
    from bivisor.cpu.soft.vcpu import SoftVcpu

_DENIED = 0x100
_OWN = 0x100
_U32 = (1 << 32) - 1
_INTERNED = 4096
_STRING = 4096
_REPEAT, _OPERAND, _ADDRESS, _INS = 0xF3, 0x66, 0x67, 0x6D


class Accesses:
    """Ports and memory of one processor. `handler` is what `run()` was given."""

    def __init__(self, vcpu: SoftVcpu) -> None:
        self._vcpu = vcpu
        self._cpu = vcpu.cpu
        self.handler: ExitHandler | None = None
        self.exit: Exit | None = None
        self.error: BaseException | None = None
        self.in_access = False
        self.replaying = False
        self.replayed = False
        self._answers: list[tuple[object, int]] = []
        self._given = 0
        self._buffer = (C.c_uint8 * 32)()
        self._view = memoryview(self._buffer).cast("B")
        self._u64 = C.c_uint64.from_buffer(self._buffer)
        self._sized: dict[int, Any] = {
            size: type_.from_buffer(self._buffer)
            for size, type_ in ((1, C.c_uint8), (2, C.c_uint16), (4, C.c_uint32), (8, C.c_uint64))
        }
        self._data = {size: self._view[:size] for size in range(1, 9)}
        self._error_flag = self._view[16:17]
        self._out_exits: dict[int, PortIo] = {}
        self._in_exits: dict[int, PortIo] = {}
        self._mmio_exits: dict[tuple[int, int, bool], Mmio] = {}
        self.gathers_strings = False
        self._last_in = 0
        self._string = memoryview(bytearray(_STRING))
        self.outs = self.ins = self.mmio_reads = self.mmio_writes = self.halts = 0
        self._counts: dict[str, int] = {}
        context = vcpu.machine.context
        self.context = context
        context.out = p.OUT(self._out)
        context.in_ = p.IN(self._in)
        context.mmio_read = p.MMIO_READ(self._mmio_read)
        context.mmio_write = p.MMIO_WRITE(self._mmio_write)

    # ---------------------------------------------------------------- stopping

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self._cpu.leave()

    def _leave(self, exit_: Exit, key: object) -> None:
        """Nobody handled it: come back from `run()` with it; its answer is under `key` when the guest tries again."""
        self.exit = exit_
        self._pending = key
        self._cpu.leave()
        self._vcpu.resume = self._answered

    def _answered(self) -> None:
        """The next `run()` begins: what was written into the exit's view is the answer."""
        self._answers.insert(self._given, (self._pending, self._u64.value))
        self._given = 0
        self.replaying = True
        self.replayed = False

    def _replayed(self, key: object) -> int | None:
        """The answer to the access `key` of the instruction that is being executed again, if it has been made before.

        An instruction can make several: both halves of eight bytes, a read and the write back, the ten of an FLD. So
        the answers are kept in their order until it has ended, which is when `cpu_exec` comes back.
        """
        self._cpu.interrupt()
        self.replayed = True
        given, answers = self._given, self._answers
        if given < len(answers) and answers[given][0] == key:
            self._given = given + 1
            return answers[given][1]
        return None

    def forget_replay(self) -> None:
        """The instruction has ended, or the host moved the guest elsewhere."""
        self._answers.clear()
        self._given = 0
        self.replaying = False
        self._vcpu.resume = None

    def _handled(self, exit_: Exit, key: object) -> bool:
        handler = self.handler
        if handler is None:
            return False
        self.in_access = True
        try:
            handled = handler(exit_)
        finally:
            self.in_access = False
        if handled and self.replaying:  # a later access of the same instruction may have to come out
            self._answers.insert(self._given, (key, self._u64.value))
            self._given += 1
        return handled

    # ---------------------------------------------------------------- ports

    def _out(self, port: int, size: int, value: int) -> None:
        try:
            if size & _DENIED:
                size &= 0xFF
                if not self._port_allowed(port, size):
                    self._cpu.raise_fault(Vector.GP)
                    return
            key = port << 4 | size
            if self.replaying and self._replayed(key) is not None:
                return
            self.outs += 1
            signals = self._vcpu.machine.port_signals
            if signals and signals.signal(port, size, value):
                return
            exit_ = self._out_exits.get(key) or self._new_port(self._out_exits, Direction.OUT, port, size)
            self._u64.value = value
            if not self._handled(exit_, key):
                self._leave(exit_, key)
        except BaseException as error:
            self._fail(error)

    def _in(self, port: int, size: int) -> int:
        try:
            if size & _DENIED:
                size &= 0xFF
                if not self._port_allowed(port, size):
                    self._cpu.raise_fault(Vector.GP)
                    return 0
            key = port << 4 | size | 8
            if self.replaying:
                value = self._replayed(key)
                if value is not None:
                    return value & (1 << 8 * size) - 1
            self.ins += 1
            if self.gathers_strings:
                value = self._gathered(port, size, key)
                if value is not None:
                    return value
            exit_ = self._in_exits.get(key) or self._new_port(self._in_exits, Direction.IN, port, size)
            if self._handled(exit_, key):
                return int(self._sized[size].value)
            self._leave(exit_, key)
        except BaseException as error:
            self._fail(error)
        return 0

    def _gathered(self, port: int, size: int, key: int) -> int | None:
        """The rest of an INS with a repeat prefix as one exit: its first item; native code answers the others. None
        where the guest does something else. Looked for with the second item in a row, which other accesses seldom are.
        """
        last, self._last_in = self._last_in, key
        if key != last or size == 1 or self.replaying:
            return None
        count = min(self._repeats(), _STRING // size)
        if count < 2:
            return None
        data = self._string[: count * size]
        if not self._handled(PortIo(Direction.IN, port, size, count, data), key):
            return None
        self._vcpu.machine.feed_port(port, data[size:])
        return int.from_bytes(data[:size], "little")

    def _repeats(self) -> int:
        """How often the INS at RIP is still to be done, 0 where there is none with a repeat prefix."""
        cpu = self._cpu
        self._vcpu.cpu.library.restore_state(cpu.cpu, self.context.return_address, 0)
        flags = cpu.hflags.value
        code = self._vcpu.read_linear(cpu.segs[1].base + cpu.eip.value & (1 << 64) - 1, 4) or b""
        prefixes = set()
        for at, byte in enumerate(code):
            if byte == _INS:
                break
            if byte not in (_REPEAT, _OPERAND, _ADDRESS) or at == len(code) - 1:
                return 0
            prefixes.add(byte)
        if _REPEAT not in prefixes:
            return 0
        wide = bool(flags & (p.HF_CS32 | p.HF_CS64)) != (_ADDRESS in prefixes)
        mask = _U32 if wide else 0xFFFF
        if flags & p.HF_CS64:
            mask = _U32 if _ADDRESS in prefixes else (1 << 64) - 1
        return int(cpu.regs[1]) & mask

    def _new_port(self, known: dict[int, PortIo], direction: Direction, port: int, size: int) -> PortIo:
        if len(known) >= _INTERNED:  # a guest that sweeps the ports must not fill the host's memory
            known.clear()
        exit_ = PortIo(direction, port, size, 1, self._data[size])
        known[port << 4 | size | (8 if direction is Direction.IN else 0)] = exit_
        return exit_

    def _port_allowed(self, port: int, size: int) -> bool:
        """CPL is above IOPL: the I/O permission bitmap of the TSS decides (SDM volume 1, 19.5.2)."""
        tr = self._cpu.tr
        if not tr.flags >> 15 & 1 or tr.limit < 103:
            return False
        base = self._vcpu.read_linear(tr.base + 102, 2)
        if base is None or len(base) < 2:
            return False
        at = int.from_bytes(base, "little") + (port >> 3)
        if at + 1 > tr.limit:
            return False
        bits = self._vcpu.read_linear(tr.base + at, 2)
        if bits is None or len(bits) < 2:
            return False
        return not int.from_bytes(bits, "little") >> (port & 7) & (1 << size) - 1

    # ---------------------------------------------------------------- memory

    def _mmio_read(self, gpa: int, size: int) -> int:
        try:
            vcpu = self._vcpu
            if size & _OWN:
                # page tables, gates and descriptors are looked for in memory only: elsewhere they are not present
                return vcpu.machine.rom(gpa, size & 0xFF) or 0
            key = (gpa, size, False)
            if self.replaying:
                value = self._replayed(key)
                if value is not None:
                    return value
            if vcpu.apic.answers_at(gpa):
                return vcpu.apic.read(gpa & 0xFF0)
            rom = vcpu.machine.rom(gpa, size)
            if rom is not None:
                return rom
            self.mmio_reads += 1
            exit_ = self._mmio_exits.get(key) or self._new_mmio(key)
            if self._handled(exit_, key):
                return int(self._sized[size].value)
            self._leave(exit_, key)
        except BaseException as error:
            self._fail(error)
        return 0

    def _mmio_write(self, gpa: int, size: int, value: int) -> None:
        try:
            vcpu = self._vcpu
            if size & _OWN:
                return
            key = (gpa, size, True)
            if self.replaying and self._replayed(key) is not None:
                return
            if vcpu.apic.answers_at(gpa):
                vcpu.apic.write(gpa & 0xFF0, value & _U32)
                return
            self.mmio_writes += 1
            signals = vcpu.machine.mmio_signals
            if signals and signals.signal(gpa, size, value):
                return
            exit_ = self._mmio_exits.get(key) or self._new_mmio(key)
            self._u64.value = value
            if not self._handled(exit_, key):
                self._leave(exit_, key)
        except BaseException as error:
            self._fail(error)

    def _new_mmio(self, key: tuple[int, int, bool]) -> Mmio:
        if len(self._mmio_exits) >= _INTERNED:
            self._mmio_exits.clear()
        gpa, size, is_write = key
        exit_ = self._mmio_exits[key] = Mmio(gpa, size, is_write, self._data[size])
        return exit_
