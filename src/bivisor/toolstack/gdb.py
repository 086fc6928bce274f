"""`--gdb`: a machine that a debugger may attach to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bivisor.debug.server import Server
from bivisor.debug.target import Target
from bivisor.errors import UsageError
from bivisor.host.tcp import listen, parse_address
from bivisor.kvm import VirtualMachine


def parse(text: str) -> tuple[str, int, bool]:
    """(host, port, whether the guest waits for the debugger) of [HOST:]PORT[,wait]. UsageError."""
    address, comma, word = text.partition(",")
    if comma and word != "wait":
        raise UsageError(f"--gdb {text}: [HOST:]PORT, and ,wait if the guest is not to run before gdb says so")
    host, port = parse_address(address)
    return host, port, bool(comma)


@contextmanager
def gdb_server(vm: VirtualMachine, text: str) -> Iterator[Server]:
    """gdb's way to `vm`, which has not been started yet, as --gdb `text` says."""
    host, port, waits = parse(text)
    server = Server(Target(vm.vcpus, vm.memory, vm.control, vm.engine.name), listen(host, port), vm.stop)
    if waits:
        vm.control.hold()
    server.start()
    try:
        yield server
    finally:
        outcome = vm.wait(0)
        if outcome is not None:
            server.ended(outcome.exit_status)
        server.close()
