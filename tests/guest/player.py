"""A PVH guest that makes the hypercalls that a test writes into its memory (`tiny/player.S`)."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenhost import XenHost
from bivisor.xen.domain import Domain

HERE = Path(__file__).parent / "tiny"
MIB = 1 << 20
MEMORY = 8 * MIB
CONTROL, TABLE, SCRATCH = 0x1F_F000, 0x20_0000, 0x40_0000
ENTRY = struct.Struct("<10Q")
_CONTROL = struct.Struct("<5Q")  # mode, wanted, done, count, played
MAX_CALLS = (SCRATCH - TABLE) // ENTRY.size
_MASK = (1 << 64) - 1
PATIENCE_S = 20.0
LOAD, STORE, CALL = -2, -3, -4
"""In place of a hypercall's number: the guest's own access to memory, or a call of its own code."""

Ask = tuple[int, ...]
"""The number of a hypercall and its arguments."""


def signed(value: int) -> int:
    """A hypercall's result as the number that it is."""
    return value - (1 << 64) if value >> 63 else value


def entries(calls: Iterable[Ask], dumps: Sequence[tuple[int, int]] = ()) -> bytes:
    """The table for `calls`; `dumps` are addresses and lengths of what to print with each."""
    data = bytearray()
    for number, (nr, *arguments) in enumerate(calls):
        words = [argument & _MASK for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
        data += ENTRY.pack(nr & _MASK, *words, 0, *(dumps[number] if number < len(dumps) else (0, 0)))
    return bytes(data)


def build(folder: Path, table: bytes = b"", count: int = 0, *, alone: bool = False) -> Path:
    """The guest as an ELF file in `folder`: to be served, or to play `count` entries of `table` on its own."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("binutils (as, ld) are not installed")
    control = _CONTROL.pack(not alone, 0, 0, count, 0).ljust(TABLE - CONTROL, b"\0")
    folder.joinpath("table.bin").write_bytes(control + table)
    object_, image = folder / "player.o", folder / "player.elf"
    subprocess.run(["as", "-I", folder, HERE / "player.S", "-o", object_], check=True, timeout=30)
    script = HERE / "player.ld"
    subprocess.run(["ld", "-n", "--no-warn-rwx-segments", "-T", script, object_, "-o", image], check=True, timeout=30)
    return image


def assembled(folder: Path, text: str) -> bytes:
    """The machine code of `text`, in 64-bit mode and at no address in particular."""
    if not (shutil.which("as") and shutil.which("objcopy")):
        pytest.skip("binutils (as, objcopy) are not installed")
    source, object_, code = (folder / f"code.{kind}" for kind in ("S", "o", "bin"))
    source.write_text(f".code64\n{text}\n")
    subprocess.run(["as", source, "-o", object_], check=True, timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", object_, code], check=True, timeout=30)
    return code.read_bytes()


class Ended(Exception):
    """The guest is not there any more, or does not answer; `played` is how many calls it made."""

    def __init__(self, played: int) -> None:
        super().__init__(f"after {played} hypercalls")
        self.played = played


class Player:
    """A running guest to which a test dictates."""

    def __init__(self, host: XenHost, image: Path, name: str = "hostile", memory: int = MEMORY) -> None:
        self.unit: DomU = host.create(name, image, memory=memory >> 20)
        self.domain: Domain = host.xen.domains[self.unit.domid]
        self.domid = self.domain.domid
        self.memory = self.domain.memory
        self._wanted = 0

    def write(self, address: int, data: bytes) -> None:
        """As if the guest had written it."""
        self.memory.write(address, data)

    def read(self, address: int, length: int) -> bytes:
        """What the guest has there."""
        return self.memory.read(address, length)

    def begin(self, calls: Sequence[Ask]) -> None:
        """Let it make these hypercalls, and do not wait."""
        assert len(calls) <= MAX_CALLS
        self._wanted += 1
        self.memory.write(TABLE, entries(calls))
        self.memory.write(CONTROL + 24, struct.pack("<QQ", len(calls), 0))
        self.memory.write(CONTROL + 8, struct.pack("<Q", self._wanted))

    def play(self, calls: Sequence[Ask], patience: float = PATIENCE_S) -> list[int]:
        """Let it make these hypercalls; their results. `Ended` where it does not get to the end."""
        self.begin(calls)
        return self.finish(len(calls), patience)

    def finish(self, count: int, patience: float = PATIENCE_S) -> list[int]:
        """Wait for the end of what `begin` began: the results. `Ended` after `patience` seconds with no progress."""
        deadline, pause, played = time.monotonic() + patience, 0.0001, 0
        while self.memory.read_u64(CONTROL + 16) != self._wanted:
            if (now := self.memory.read_u64(CONTROL + 32)) != played:
                deadline, played = time.monotonic() + patience, now
            if time.monotonic() > deadline or not self.domain.runnable:
                raise Ended(min(self.memory.read_u64(CONTROL + 32), count))
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
        size = ENTRY.size
        return [signed(self.memory.read_u64(TABLE + size * i + 56)) for i in range(count)]

    def call(self, nr: int, *arguments: int) -> int:
        """Let it make one hypercall."""
        return self.play([(nr, *arguments)])[0]

    def load(self, address: int) -> int:
        """The eight bytes that the guest itself finds at `address`."""
        return self.call(LOAD, address) & _MASK

    def store(self, address: int, value: int) -> None:
        """Let the guest itself store eight bytes."""
        self.call(STORE, address, value)

    def ask(self, nr: int, cmd: int, structure: bytes, *more: int) -> tuple[int, bytes]:
        """A hypercall of the form (cmd, pointer to a structure, …): its result, and the structure afterwards."""
        self.write(SCRATCH, structure)
        result = self.call(nr, cmd, SCRATCH, *more)
        return result, self.read(SCRATCH, len(structure))
