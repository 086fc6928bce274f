"""`--gdb` and the key `gdb`: a machine or domain that a debugger may attach to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bivisor.debug.server import Server
from bivisor.debug.target import Target, target_of
from bivisor.host.tcp import listen
from bivisor.kvm import VirtualMachine
from bivisor.toolstack.gdbplace import parse


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
