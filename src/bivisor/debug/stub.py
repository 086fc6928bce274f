"""Answers gdb's packets (GDB manual, appendix E.2 "Packets" and E.4 "General Query Packets").

A processor is a thread, number 1 and on. All-stop: while the guest runs gdb waits, and Ctrl-C holds it.
"""

from __future__ import annotations

import re
from binascii import hexlify, unhexlify
from collections.abc import Callable

from bivisor.debug.monitor import monitor
from bivisor.debug.registers import REGISTERS, Register, State, target_xml
from bivisor.debug.target import Stop, Target, TargetError
from bivisor.errors import EngineError

PACKET_SIZE = 0x4000
_SIGINT, _SIGTRAP = 2, 5
_OK, _UNKNOWN, _BAD, _FAILED = b"OK", b"", b"E22", b"E14"
_PARTS = {"regs": "set_regs", "sregs": "set_sregs", "fpu": "set_fpu"}


class Detached(Exception):
    """gdb leaves the guest."""


class Killed(Exception):
    """gdb wants the guest to end."""


class Stub:
    """One gdb on `target`, which is held. `packet()` gives the answer, or None: then the guest runs, and the answer is
    what `stopped()` or `interrupted()` says later."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._thread = 0
        self._last = Stop(0)
        self._signal = _SIGTRAP
        self.running = False
        self.no_acks = False
        self._xml = target_xml()
        self._table: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self._reason(),
            b"g": lambda _: self._read_all(),
            b"G": self._write_all,
            b"p": self._read_one,
            b"P": self._write_one,
            b"m": self._read_memory,
            b"M": self._write_memory,
            b"X": self._write_binary,
            b"Z": self._insert,
            b"z": self._remove,
            b"c": lambda _: self._go(None),
            b"s": lambda _: self._go(self._thread),
            b"v": self._verb,
            b"H": self._choose,
            b"T": self._alive,
            b"D": self._detach,
            b"k": self._kill,
            b"q": self._query,
            b"Q": self._set,
        }

    def packet(self, packet: bytes) -> bytes | None:
        """The answer to a packet. Detached, Killed."""
        command = self._table.get(packet[:1])
        if command is None:
            return _UNKNOWN
        try:
            return command(packet[1:])
        except (TargetError, EngineError):
            return _FAILED
        except (ValueError, IndexError):
            return _BAD

    def stopped(self, stop: Stop) -> bytes:
        """The machine is held at a breakpoint or after a step."""
        self._target.hold()  # the other processors may still be on their way out
        self.running = False
        self._last, self._signal, self._thread = stop, _SIGTRAP, stop.index
        return self._reason()

    def interrupted(self) -> bytes:
        """Ctrl-C: hold the machine."""
        self._target.hold()
        self.running = False
        self._last, self._signal = Stop(self._thread), _SIGINT
        return self._reason()

    def _reason(self) -> bytes:
        why = f"{self._last.breakpoint}:;" if self._last.breakpoint else ""
        return f"T{self._signal:02x}thread:{self._last.index + 1:x};{why}".encode()

    # ---------------------------------------------------------------- registers

    def _read_all(self) -> bytes:
        state = State.of(self._target.vcpus[self._thread])
        return b"".join(_hex(register, state) for register in REGISTERS)

    def _write_all(self, text: bytes) -> bytes:
        data = unhexlify(text)
        state, at, parts = State.of(self._target.vcpus[self._thread]), 0, set()
        for register in REGISTERS:
            part = data[at : at + register.size]
            at += register.size
            value = int.from_bytes(part, "little")
            if len(part) == register.size and register.set is not None and register.get(state) != value:
                register.set(state, value)
                parts.add(register.part)
        self._store(state, parts)
        return _OK

    def _read_one(self, text: bytes) -> bytes:
        number = int(text, 16)
        if number >= len(REGISTERS):
            return _BAD
        return _hex(REGISTERS[number], State.of(self._target.vcpus[self._thread]))

    def _write_one(self, text: bytes) -> bytes:
        number, _, value = text.partition(b"=")
        register = REGISTERS[int(number, 16)]
        if register.set is None:
            return _BAD
        state = State.of(self._target.vcpus[self._thread])
        register.set(state, int.from_bytes(unhexlify(value), "little"))
        self._store(state, {register.part})
        return _OK

    def _store(self, state: State, parts: set[str]) -> None:
        vcpu = self._target.vcpus[self._thread]
        for part in parts:
            getattr(vcpu, _PARTS[part])(getattr(state, part))

    # ---------------------------------------------------------------- memory

    def _read_memory(self, text: bytes) -> bytes:
        address, length = (int(word, 16) for word in text.split(b","))
        if length > PACKET_SIZE // 2:
            return _BAD
        data = self._target.read(address, length, self._thread)
        return hexlify(data) if data or not length else _FAILED

    def _write_memory(self, text: bytes) -> bytes:
        where, _, data = text.partition(b":")
        return self._write(where, unhexlify(data))

    def _write_binary(self, text: bytes) -> bytes:
        where, _, data = text.partition(b":")
        return self._write(where, data)

    def _write(self, where: bytes, data: bytes) -> bytes:
        address, length = (int(word, 16) for word in where.split(b","))
        if length != len(data):
            return _BAD
        self._target.write(address, data, self._thread)
        return _OK

    # ---------------------------------------------------------------- breakpoints

    def _insert(self, text: bytes) -> bytes:
        kind, address = text.split(b",")[:2]
        if kind not in (b"0", b"1"):
            return _UNKNOWN
        self._target.insert(int(address, 16), kind == b"1")
        return _OK

    def _remove(self, text: bytes) -> bytes:
        kind, address = text.split(b",")[:2]
        if kind not in (b"0", b"1"):
            return _UNKNOWN
        self._target.remove(int(address, 16))
        return _OK

    # ---------------------------------------------------------------- running

    def _go(self, step: int | None) -> None:
        self.running = True
        self._target.resume(step)

    def _verb(self, text: bytes) -> bytes | None:
        if text == b"Cont?":
            return b"vCont;c;C;s;S"
        if text.startswith(b"Cont;"):
            return self._continue(text[5:])
        if text.startswith(b"Kill"):
            raise Killed
        return _UNKNOWN

    def _continue(self, text: bytes) -> bytes | None:
        """The first action that names a thread, or no thread, is what is done; others go on with it."""
        for action in text.split(b";"):
            what, _, thread = action.partition(b":")
            if what[:1] in (b"s", b"S"):
                index = self._index(thread) if thread else self._thread
                self._go(self._thread if index is None else index)
                return None
        self._go(None)
        return None

    def _index(self, thread: bytes) -> int | None:
        """The processor that a thread's number means; None for all and for any."""
        number = int(thread, 16)
        if number <= 0:
            return None
        if number > len(self._target.vcpus):
            raise ValueError
        return number - 1

    def _choose(self, text: bytes) -> bytes:
        index = self._index(text[1:])
        if text[:1] == b"g":
            self._thread = self._last.index if index is None else index
        return _OK

    def _alive(self, text: bytes) -> bytes:
        return _OK if self._index(text) is not None else _BAD

    def _detach(self, _: bytes) -> bytes:
        raise Detached

    def _kill(self, _: bytes) -> bytes:
        raise Killed

    # ---------------------------------------------------------------- queries

    def _query(self, text: bytes) -> bytes:
        name = re.split(rb"[:,;]", text, maxsplit=1)[0]
        match name:
            case b"Supported":
                return (
                    b"PacketSize=%x;qXfer:features:read+;vContSupported+;QStartNoAckMode+;swbreak+;hwbreak+"
                    % PACKET_SIZE
                )
            case b"C":
                return b"QC%x" % (self._thread + 1)
            case b"Attached":
                return b"1"
            case b"fThreadInfo":
                return b"m" + b",".join(b"%x" % (index + 1) for index in range(len(self._target.vcpus)))
            case b"sThreadInfo":
                return b"l"
            case b"ThreadExtraInfo":
                index = self._index(text.rpartition(b",")[2])
                return hexlify(f"CPU#{index}".encode())
            case b"Xfer":
                return self._transfer(text)
            case b"Rcmd":
                return hexlify(monitor(self._target, self._thread, unhexlify(text[5:]).decode()).encode())
            case b"qemu.PhyMemMode":
                return b"%d" % self._target.physical
        return _UNKNOWN

    def _transfer(self, text: bytes) -> bytes:
        _, kind, action, annex, where = text.split(b":")
        if (kind, action, annex) != (b"features", b"read", b"target.xml"):
            return _UNKNOWN
        at, length = (int(word, 16) for word in where.split(b","))
        part = self._xml[at : at + min(length, PACKET_SIZE - 4)]
        return (b"m" if at + len(part) < len(self._xml) else b"l") + part

    def _set(self, text: bytes) -> bytes:
        if text == b"StartNoAckMode":
            self.no_acks = True
            return _OK
        if text.startswith(b"qemu.PhyMemMode:"):
            self._target.physical = text.endswith(b"1")
            return _OK
        return _UNKNOWN


def _hex(register: Register, state: State) -> bytes:
    return hexlify(register.get(state).to_bytes(register.size, "little"))
