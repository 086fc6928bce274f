"""Starts a host in the background and waits until it answers, or says why it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bivisor.errors import HostError
from bivisor.host.daemon import is_locked
from bivisor.host.local_socket import private_folder
from bivisor.host.logfile import LogFile
from bivisor.toolstack.hostd.client import runs
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.process import READY

STARTING_S = 30.0
"""How long another may take to start a host."""


def ensure(place: Place, engine: str) -> bool:
    """Start a host in `place` unless one runs; whether it was us. Where others start one now, it is waited for."""
    try:
        spawn(place, engine)
    except HostError:
        deadline = time.monotonic() + STARTING_S
        while is_locked(place.lock):
            if runs(place):
                return False
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        raise
    return True


def spawn(place: Place, engine: str) -> None:
    """Start a host in `place`. HostError with what it says where it cannot run."""
    private_folder(place.folder)
    read, write = os.pipe2(os.O_CLOEXEC)
    log = LogFile(place.log)
    words = ["host", "start", "--foreground", "--detach", f"--ready={write}", f"--state={place.folder}"]
    try:
        subprocess.run(
            [sys.executable, "-m", "bivisor", *words, f"--engine={engine}"],
            stdin=subprocess.DEVNULL,
            stdout=log.fileno(),
            stderr=log.fileno(),
            pass_fds=(write,),
            start_new_session=True,
            check=False,
        )
        os.close(write)
        write = -1
        with open(read, "rb", closefd=False) as told:
            words_back = told.read()
    finally:
        log.close()
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)
    if words_back != READY:
        raise HostError(words_back.decode(errors="replace").strip() or f"the host did not start: {place.log} says why")
