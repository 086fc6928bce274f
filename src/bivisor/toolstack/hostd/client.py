"""The commands' end of the connection to a host."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from bivisor.errors import HostError
from bivisor.host import local_socket
from bivisor.host.daemon import Watched
from bivisor.toolstack.hostd import messages
from bivisor.toolstack.hostd.messages import HostDied, LineReader
from bivisor.toolstack.hostd.place import Place

ENDING_S = 60.0
"""How long a host has for ending once its domains are down."""


class HostClient:
    """A connection to the host in `place`. HostError where none runs there. `with` ends it."""

    def __init__(self, place: Place) -> None:
        nobody = f"no host runs in {place.folder}: `bivisor host start` starts one, `bivisor xl create` does by itself"
        self._connect(place.socket, nobody)

    def _connect(self, path: Path, nobody: str) -> None:
        end = local_socket.connect(path)
        if end is None:
            raise HostError(nobody)
        if local_socket.peer_uid(end) not in (local_socket.own_uid(), 0):
            end.close()
            raise HostError(f"{path}: somebody else's program listens there")
        self._end = end
        self._reader = LineReader(end)

    @classmethod
    def at(cls, path: Path) -> HostClient:
        """A connection to a machine that tells of itself at the socket `path`. HostError where it does not."""
        made = cls.__new__(cls)
        made._connect(path, f"{path}: no machine runs there")
        return made

    def call(self, method: str, **params: Any) -> Any:
        """Have the host do something: its result. What it refuses is raised as it would be there."""
        try:
            self._end.sendall(messages.encode({"method": method, "params": params}))
            line = self._reader.line()
        except OSError as error:
            raise HostDied(f"the host is gone: {error.strerror}") from None
        if line is None:
            raise HostDied("the host ended before it answered")
        answer = messages.decode(line)
        if "error" in answer:
            messages.raise_error(answer["error"])
        return answer.get("result")

    def console(self, domain: str) -> tuple[socket.socket, bytes]:
        """Attach to a domain's console: the connection, which is only that from now on, and what came already."""
        return self.take("console", domain=domain)

    def take(self, method: str, **params: Any) -> tuple[socket.socket, bytes]:
        """Call a method that has the connection to itself afterwards: the connection, and what came already."""
        self.call(method, **params)
        return self._end, self._reader.rest

    def close(self) -> None:
        """Disconnect."""
        self._end.close()

    def __enter__(self) -> HostClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def runs(place: Place) -> bool:
    """Whether a host runs there."""
    end = local_socket.connect(place.socket)
    if end is not None:
        end.close()
    return end is not None


def stop_host(place: Place, timeout: float, force: bool) -> list[str] | None:
    """Stop the host that runs there, and wait until it is gone: the domains that had to be destroyed, None without a
    host."""
    if not runs(place):
        return None
    with HostClient(place) as host:
        process = Watched(int(host.call("status")["pid"]))
        destroyed = host.call("stop", timeout=timeout, force=force)["destroyed"]
        if not process.wait(ENDING_S):
            raise HostError(f"the host in {place.folder} does not end: {place.log} may say why")
    return [str(name) for name in destroyed]
