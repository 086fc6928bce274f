"""One run of a guest on this process's own streams, from options to exit status: what `bivisor run` does."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bivisor.errors import UsageError
from bivisor.host.tty import raw_terminal
from bivisor.kvm import End, Outcome, VirtualMachine
from bivisor.toolstack.launch import Payload, launch, payload
from bivisor.toolstack.options import RunOptions, check_machine_name
from bivisor.toolstack.session import CommandSession, Log
from bivisor.toolstack.terminal import TerminalSession

if TYPE_CHECKING:
    from bivisor.toolstack.feed import Feed
    from bivisor.toolstack.presence import Presence
    from bivisor.toolstack.watch import Watcher

TIMED_OUT = 124
_LAST_LINES = 20
_ABNORMAL = {End.RESET, End.PANIC, End.SHUTDOWN, End.DEAD, End.ENGINE}


@dataclass(frozen=True, slots=True)
class View:
    """How much of a run is shown. `trace` is a file's name, or "-" for standard error, and what comes behind its last
    dot says what is written (see `tracing.recorder`); `timeout` is in seconds;
    `gdb` is where a debugger may attach, [HOST:]PORT[,wait]; `name` is what others find the machine by."""

    timeout: float | None = None
    stats: bool = False
    as_json: bool = False
    trace: str | None = None
    verbose: bool = False
    quiet: bool = False
    gdb: str | None = None
    name: str = ""


Runner = Callable[[RunOptions, View, ExitStack], int]
"""Runs a guest of another kind, with what it holds on the stack; the exit status."""


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: leave as with Ctrl-C."""


def run(options: RunOptions, view: View, runner: Runner | None = None) -> int:
    """Run a guest until it ends or is left; the exit status. `runner` does it, if it is not one that is loaded here."""
    if view.timeout is not None and not 0 < view.timeout <= threading.TIMEOUT_MAX:
        raise UsageError(f"--timeout {view.timeout:g}: a number of seconds above 0 and up to {threading.TIMEOUT_MAX:g}")
    if view.name:
        check_machine_name(view.name)
    with ExitStack() as stack:
        stack.enter_context(_signals())
        try:
            if runner is not None:
                return runner(options, view, stack)
            status = _run(options, view, _watcher(view, stack), stack)
        except (KeyboardInterrupt, _Terminated):
            status = End.STOPPED.value
        return status


def _run(options: RunOptions, view: View, watcher: Watcher | None, stack: ExitStack) -> int:
    found = payload(options)
    log = Log(_to_stderr if view.verbose else None)
    session: CommandSession | TerminalSession
    if options.command is not None:
        session = CommandSession(options.command, log=log)
    else:
        session = TerminalSession(virtio=_has_hvc(options, found), is_terminal=os.isatty(0), log=log)
    vm = launch(options, session, found=found, wrap=watcher.wrap if watcher else None)
    stack.callback(vm.close)
    if watcher is not None:
        watcher.watch(vm)
    if view.verbose:
        say(f"engine {vm.why}")
    if view.gdb is not None:
        _offer_gdb(vm, view, stack)

    outcome = until_the_end(vm, session, view)
    if watcher is not None and watcher.timed:
        watcher.report(as_json=view.as_json)
    if outcome is None:
        say(f"the guest did not end within {view.timeout:g} s")
        return TIMED_OUT
    if outcome.end is End.STOPPED and isinstance(session, TerminalSession) and not view.quiet:
        say(str(outcome))
    if not_run(options, found, outcome):
        say("the guest powered off without a status of --exec: only initramfs of this program (image initrd) run it")
    if outcome.end in _ABNORMAL:
        if not view.verbose and not (isinstance(session, TerminalSession) and session.was_seen):
            for line in log.lines(_LAST_LINES):
                print(line, file=sys.stderr)
        reason = log.panic() if outcome.end is End.PANIC else ""
        say(f"{outcome}: {reason}" if reason else str(outcome))
    return outcome.exit_status


def not_run(options: RunOptions, found: Payload, outcome: Outcome) -> bool:
    """Whether the command of `options` was probably never run, though the guest ended well: nothing in it knew."""
    return options.command is not None and not found.ours and outcome.end is End.POWER_OFF


def _offer_gdb(vm: VirtualMachine, view: View, stack: ExitStack) -> None:
    from bivisor.toolstack.gdb import gdb_server

    server = stack.enter_context(gdb_server(vm, view.gdb or ""))
    if not view.quiet:
        say(f"gdb: target remote :{server.port}")


def _has_hvc(options: RunOptions, found: Payload) -> bool:
    """Whether the guest's shell will be on the virtio console: the last console= counts."""
    consoles = [word for word in options.append.split() if word.startswith("console=")]
    return found.ours and (not consoles or consoles[-1].startswith("console=hvc"))


def until_the_end(
    vm: VirtualMachine, session: CommandSession | TerminalSession, view: View, timeout: float | None = None
) -> Outcome | None:
    """Start `vm` and wait; how it ended, or None where `timeout` (that of `view`, if none is given) passed."""
    timeout = view.timeout if timeout is None else timeout
    gc.freeze()  # what is there stays
    gc.enable()
    if isinstance(session, CommandSession):
        vm.start()
        with _told_of(vm, view, None):
            outcome = vm.wait(timeout)
    else:
        if os.isatty(0) and not view.quiet:
            say(f"booting a guest with {vm.why or 'an engine of its own'}; Ctrl-] leaves")
        with raw_terminal(0, session.resize):
            vm.start()
            with _told_of(vm, view, session.feed):
                outcome = vm.wait(timeout)
    if outcome is None:
        vm.stop()
        vm.wait()
        vm.drain()  # and no waiting for whoever should read it
    else:
        session.drain(vm)
    return outcome


def _told_of(vm: VirtualMachine, view: View, feed: Feed | None) -> Presence:
    """Others can find the machine. Imported now, while the guest boots already."""
    from bivisor.toolstack.presence import Presence

    return Presence(vm, view.name, feed)


def _watcher(view: View, stack: ExitStack) -> Watcher | None:
    stats = view.stats or view.as_json
    if not stats and view.trace is None:
        return None
    from bivisor.toolstack.tracing.recorder import Recorder, is_recording
    from bivisor.toolstack.watch import Watcher, open_trace

    if view.trace is not None and is_recording(view.trace):
        recorder = stack.enter_context(Recorder(Path(view.trace)))
        return Watcher(timed=stats, recorder=recorder)
    trace = None if view.trace is None else stack.enter_context(open_trace(view.trace))
    return Watcher(trace, timed=stats)


@contextmanager
def watch_exits(view: View) -> Iterator[Watcher | None]:
    """What --stats and --trace ask for, None without them."""
    with ExitStack() as stack:
        yield _watcher(view, stack)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP give everything back, too."""

    def ended(number: int, _: FrameType | None) -> None:
        for each in numbers:  # a second one must not interrupt what gives everything back
            signal.signal(each, signal.SIG_IGN)
        raise _Terminated

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = [signal.signal(number, ended) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _to_stderr(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.flush()


def say(words: str) -> None:
    """Tell the person on standard error."""
    print(f"bivisor: {words}", file=sys.stderr, flush=True)
