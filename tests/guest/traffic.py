"""Data between a guest's disks and a server of the host, by the guest's network.

Only the host works out checksums: they would take a guest longer than all the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

MIB = 1 << 20
PATIENCE = 200.0


class Person(Protocol):
    """Somebody at a shell of the guest."""

    def run(self, command: str) -> list[str]:
        """What a command prints, line by line."""


class Server:
    """A server of the host that a guest reaches by user-mode networking. It serves one connection."""

    def __init__(self, work: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port = self._listener.getsockname()[1]
        self._work = work
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        end, _ = self._listener.accept()
        end.settimeout(PATIENCE)
        with end:
            self._work(end)

    def join(self) -> None:
        """Wait until the connection has been served."""
        self._thread.join(PATIENCE)
        self._listener.close()
        assert not self._thread.is_alive()


def disks(folder: Path, size: int) -> tuple[Path, Path]:
    """A disk of random bytes, and one as large that is empty."""
    full, empty = folder / "full.img", folder / "empty.img"
    full.write_bytes(os.urandom(size))
    with open(empty, "wb") as file:
        file.truncate(size)
    return full, empty


def digest(path: Path) -> str:
    """The file's checksum."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move(person: Person, source: str, target: str, full: Path, empty: Path) -> None:
    """Have the guest send its disk `source`, which is `full`, to the host, and put what the host sends on its disk
    `target`, which is `empty`; all has to arrive. Its eth0 is on a user-mode network."""
    arrived = hashlib.sha256()

    def take(end: socket.socket) -> None:
        end.sendall(b"\n")  # see host/passt.py: it resets a connection whose guest only ever sends
        while part := end.recv(MIB):
            arrived.update(part)

    def give(end: socket.socket) -> None:
        with open(full, "rb") as file:
            end.sendfile(file)
        end.shutdown(socket.SHUT_WR)
        while end.recv(1):
            pass

    said = " ".join(person.run("ifconfig eth0 up; udhcpc -i eth0 -n -q -t 5 -T 1 2>&1"))
    found = re.search(r"lease of (\S+) obtained from (\S+),", said)
    assert found is not None, said
    person.run(f"ifconfig eth0 {found[1]} netmask 255.255.255.255; route add {found[2]} dev eth0")
    server = Server(take)
    # what nobody has read when a connection is closed makes it a reset
    person.run(f"nc {found[2]} {server.port} -e sh -c 'read line; exec dd if={source} bs=256k 2>/dev/null'")
    server.join()
    assert arrived.hexdigest() == digest(full)
    server = Server(give)
    person.run(f"nc {found[2]} {server.port} -e dd of={target} bs=64k iflag=fullblock conv=fsync 2>/dev/null")
    server.join()
    assert digest(empty) == digest(full)
