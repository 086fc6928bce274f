"""The host's process: from nothing to sockets that answer, until somebody stops it, and nothing left behind."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from bivisor.dom0.xenstore.socket_server import SocketServer
from bivisor.errors import BivisorError, HostError
from bivisor.host.daemon import LockFile, leave_parent
from bivisor.host.local_socket import private_folder
from bivisor.host.logfile import LogFile
from bivisor.toolstack.hostd.methods import Methods
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.server import RpcServer
from bivisor.toolstack.xenhost import XenHost

READY = b"ready\n"
_log = logging.getLogger("bivisor.host")


def serve(place: Place, engine: str, ready: int = -1) -> None:
    """Be the host in `place` until it is stopped. What went well or wrong at the start is told on descriptor `ready`.

    Called in the main thread, which waits for signals. HostError where a host runs there already.
    """
    stopped = threading.Event()
    try:
        with ExitStack() as stack:
            _start(place, engine, stopped, stack)
            _log.info("ready in %s, process %d", place.folder, os.getpid())
            if _tell(ready, READY):
                ready = -1
                stopped.wait()
            _log.info("stopping")
    except BivisorError as error:
        _log.error("%s", error)
        _tell(ready, f"{error}\n".encode())
        raise


def _start(place: Place, engine: str, stopped: threading.Event, stack: ExitStack) -> None:
    private_folder(place.folder)
    stack.enter_context(LockFile(place.lock, f"a host runs in {place.folder} already"))
    stack.callback(_remove_logs, place)
    private_folder(place.consoles)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stopped.set())
    host = stack.enter_context(XenHost(engine))
    host.on_failure = lambda _: stopped.set()
    with host.loop.lock:
        tools = SocketServer(host.server, host.loop, place.xenstored)
    stack.callback(_close_tools, host, tools)
    methods = Methods(host, place, stopped.set)
    stack.callback(methods.close)
    server = RpcServer(place.socket, methods.table())
    stack.callback(server.close)
    stack.callback(host.destroy_all)  # which is what some clients wait for
    _log.info("engine %s", host.why or host.engine.name)


def _close_tools(host: XenHost, tools: SocketServer) -> None:
    with host.loop.lock:
        tools.close()


def _remove_logs(place: Place) -> None:
    """What a host that ended well leaves: nothing. One that did not leaves its log and those of the consoles."""
    if sys.exc_info()[0] is not None:
        return
    for file in place.consoles.glob("guest-*.log*"):
        file.unlink(missing_ok=True)
    place.consoles.rmdir()
    for file in place.folder.glob("host.log*"):
        file.unlink(missing_ok=True)


def _tell(ready: int, words: bytes) -> bool:
    """Whether there was nobody to tell it to, or somebody heard it: one who was interrupted wants no host any more."""
    if ready >= 0:
        try:
            os.write(ready, words)
            os.close(ready)
        except OSError:
            return False
    return True


class _Bounded(logging.Handler):
    """Log lines to a file that does not grow without bound, whatever guests do to be mentioned in it."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        self._file.write(self.format(record).encode(errors="replace") + b"\n")


def start_logging(handler: logging.Handler) -> None:
    """Log lines with their time to `handler`."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        handlers=[handler],
        force=True,
    )


def follow_folder(folder: Path) -> None:
    """Make `folder` the current one, so that the host keeps no other from being unmounted; imports go on working."""
    sys.path[:] = [str(Path(part).absolute()) for part in sys.path]
    try:
        os.chdir(folder)
    except OSError as error:
        raise HostError(f"{folder}: {error.strerror}") from None


def run(place: Place, engine: str, *, ready: int = -1, detach: bool = False) -> None:
    """`serve`, as a process that does nothing else; with `detach`, one that nobody waits for."""
    os.umask(0o077)
    if detach:
        leave_parent()
        follow_folder(place.folder)
    start_logging(_Bounded(LogFile(place.log)) if detach else logging.StreamHandler())
    serve(place, engine, ready)
