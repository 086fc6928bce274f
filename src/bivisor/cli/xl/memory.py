"""xl mem-set and mem-max."""

from __future__ import annotations

import click

from bivisor.cli.xl.common import connect
from bivisor.errors import UsageError

_UNITS = {"t": 1 << 40, "g": 1 << 30, "m": 1 << 20, "k": 1 << 10, "b": 1, "": 1 << 20}


def size_of(text: str) -> int:
    """Bytes of "512", "512m", "2g", "524288k": MiB without a unit, as xl has it. UsageError."""
    unit = text[-1:].lower() if not text[-1:].isdigit() else ""
    digits = text[: len(text) - len(unit)]
    if unit not in _UNITS or not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"memory {text!r}: a number of MiB, or a number with b, k, m, g or t, as in 512m")
    return int(digits) * _UNITS[unit]


@click.command("mem-set", epilog="\b\nExamples:\n  bivisor xl mem-set demo 128\n  bivisor xl mem-set demo 1g\n")
@click.argument("domain")
@click.argument("memory")
def mem_set(domain: str, memory: str) -> int:
    """Set the memory that a domain's balloon driver is to come to; what it gives back is the host's.

    MEMORY is in MiB, or has a unit: b, k, m, g, t.
    """
    with connect() as host:
        host.call("mem_set", domain=domain, size=size_of(memory))
    return 0


@click.command("mem-max", epilog="\b\nExample:\n  bivisor xl mem-max demo 512\n")
@click.argument("domain")
@click.argument("memory")
def mem_max(domain: str, memory: str) -> int:
    """Set the memory that a domain can have at most, whatever its balloon driver asks for.

    MEMORY is in MiB, or has a unit: b, k, m, g, t.
    """
    with connect() as host:
        host.call("mem_max", domain=domain, size=size_of(memory))
    return 0
