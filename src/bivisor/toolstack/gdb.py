"""`--gdb` and the key `gdb`: a machine or domain that a debugger may attach to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bivisor.debug.server import Server
from bivisor.debug.target import Target, target_of
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


def serve(target: Target, text: str, kill: Callable[[], None]) -> Server:
    """A server for `target`, which has not been started yet, as [HOST:]PORT[,wait] says. `kill()` is to end it, soon.
    UsageError where `text` is wrong, or one cannot listen there."""
    host, port, waits = parse(text)
    server = Server(target, listen(host, port), kill)
    if waits:
        target.hold()
    server.start()
    return server


@contextmanager
def gdb_server(vm: VirtualMachine, text: str) -> Iterator[Server]:
    """gdb's way to `vm`, which has not been started yet, as --gdb `text` says."""
    server = serve(target_of(vm.engine, vm.vcpus, vm.memory, vm.control), text, vm.stop)
    try:
        yield server
    finally:
        outcome = vm.wait(0)
        if outcome is not None:
            server.ended(outcome.exit_status)
        server.close()
