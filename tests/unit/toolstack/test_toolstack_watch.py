"""Each exit in words, and where the time goes."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from bivisor.abi.x86 import Msr
from bivisor.cpu.exits import Cpuid, Direction, Exit, Hlt, Hypercall, Mmio, PortIo, RdMsr, Shutdown, WrMsr
from bivisor.errors import UsageError
from bivisor.platform.bus import mmio_bus, port_bus
from bivisor.toolstack.watch import Watcher, describe, open_trace


def bytes_of(value: int, size: int) -> memoryview:
    return memoryview(bytearray(value.to_bytes(size, "little")))


def out(port: int, value: int, size: int = 1) -> PortIo:
    return PortIo(Direction.OUT, port, size, 1, bytes_of(value, size))


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (out(0xF4, 7), "out 0x00f4/1 <- 0x7"),
        (PortIo(Direction.IN, 0x3FD, 1, 3, bytes_of(0x606060, 3)), "in 0x03fd/1 x3 -> 0x60"),
        (Mmio(0xFEC00000, 4, True, bytes_of(0x10, 8)), "write 0xfec00000/4 <- 0x10"),
        (Mmio(0xFEC00010, 4, False, bytes_of(0xFF, 8)), "read 0xfec00010/4 -> 0xff"),
        (RdMsr(Msr.IA32_APIC_BASE, bytes_of(0xFEE00900, 8), bytes_of(0, 1)), "IA32_APIC_BASE -> 0xfee00900"),
        (RdMsr(0x1234567, bytes_of(0, 8), bytes_of(1, 1)), "MSR 0x1234567 -> #GP"),
        (WrMsr(Msr.IA32_APIC_BASE, 5, bytes_of(1, 1)), "IA32_APIC_BASE <- 0x5 #GP"),
        (Cpuid(7, 1, bytes_of(0, 16)), "leaf 0x7.0x1"),
        (Hypercall("kvm", 5, (1, 2), 0, True, bytes_of(9, 8)), "kvm 5 (0x1, 0x2) -> 0x9"),
        (Hlt(), "Hlt()"),
        (Shutdown(), "Shutdown()"),
    ],
)
def test_an_exit_is_told_in_the_words_of_its_instruction(exit_: Exit, words: str) -> None:
    assert describe(exit_) == words


class Machine:
    """As much of a machine as a watcher sees."""

    def __init__(self) -> None:
        self.ports, self.mmio = port_bus(), mmio_bus()
        self.ports.attach(0xF4, 4, SimpleNamespace(read=lambda *_: 0, write=lambda *_: None), "debug exit")
        self.engine = SimpleNamespace(name="soft")
        self.counters = {"PortIo": 3, "Hlt": 0}


def watched(watcher: Watcher) -> Any:
    watcher.watch(Machine())  # type: ignore[arg-type]
    return watcher.wrap(lambda exit_: True, SimpleNamespace(index=0))


def test_a_trace_has_a_line_an_exit_with_its_device() -> None:
    text = io.StringIO()
    handler = watched(Watcher(text, timed=False))
    assert handler(out(0xF4, 7))
    assert handler(out(0x1234, 1))
    first, second = (line.split(maxsplit=2)[1:] for line in text.getvalue().splitlines())
    assert first == ["cpu0", "io_instruction 0xf40000 out 0x00f4/1 <- 0x7  debug exit"]
    assert second == ["cpu0", "io_instruction 0x12340000 out 0x1234/1 <- 0x1  nobody"]


def test_statistics_count_by_reason_and_device() -> None:
    watcher = Watcher()
    handler = watched(watcher)
    for _ in range(3):
        handler(out(0xF4, 7))
    handler(Mmio(0x1000, 4, True, bytes_of(0, 8)))
    figures = watcher.figures()
    assert {(row["exit"], row["device"], row["count"]) for row in figures["exits"]} == {
        ("PortIo", "debug exit", 3),
        ("Mmio", "nobody", 1),
    }
    assert figures["counters"] == {"PortIo": 3}
    assert figures["inside_seconds"] > 0
    text = io.StringIO()
    watcher.report(out=text)
    assert "debug exit" in text.getvalue()
    text = io.StringIO()
    watcher.report(as_json=True, out=text)
    assert json.loads(text.getvalue())["engine"] == "soft"


def test_a_device_that_raises_is_counted_and_heard() -> None:
    def broken(exit_: Exit) -> bool:
        raise RuntimeError("broken")

    watcher = Watcher()
    watcher.watch(Machine())  # type: ignore[arg-type]
    handler = watcher.wrap(broken, SimpleNamespace(index=0))
    with pytest.raises(RuntimeError):
        handler(out(0xF4, 7))
    assert watcher.figures()["exits"][0]["count"] == 1


def test_a_trace_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UsageError, match="No such file"), open_trace("/nonexistent/trace"):
        pass
