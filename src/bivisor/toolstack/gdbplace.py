"""Where gdb may attach, in the words of --gdb and of the key gdb."""

from __future__ import annotations

from bivisor.errors import UsageError
from bivisor.host.tcp import parse_address


def parse(text: str) -> tuple[str, int, bool]:
    """(host, port, whether the guest waits for the debugger) of [HOST:]PORT[,wait]. UsageError."""
    address, comma, word = text.partition(",")
    if comma and word != "wait":
        raise UsageError(f"gdb {text}: [HOST:]PORT, and ,wait if the guest is not to run before gdb says so")
    host, port = parse_address(address)
    return host, port, bool(comma)
