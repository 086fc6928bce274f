"""The machines of the hosted architecture that run now: processes that tell of themselves (`toolstack/presence.py`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bivisor.errors import BivisorError, UsageError
from bivisor.toolstack.hostd.client import HostClient
from bivisor.toolstack.hostd.messages import HostDied
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.presence import machine_sockets

IDENTITY = "machine-"
"""What the name of a machine's box on the page begins with."""


class Machines:
    """Those that tell of themselves in the host's folder."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def look(self) -> list[dict[str, Any]]:
        """What each says of itself, by name. One that just ends is left out."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> list[dict[str, Any]]:
        found = []
        for name, path in machine_sockets(self._place).items():
            with suppress(BivisorError), HostClient.at(path) as client:
                told = client.call("describe")
                console = f"/console/{IDENTITY}{name}" if told["console"] else None
                screen = f"/screen/{IDENTITY}{name}" if told["screen"] else None
                found.append(told | {"id": f"{IDENTITY}{name}", "console": console, "screen": screen})
        return found

    async def call(self, identity: str, method: str, **params: Any) -> Any:
        """Have a machine do something. UsageError where there is none of this name."""
        return await asyncio.to_thread(lambda: self._ask(identity, method, params))

    def _ask(self, identity: str, method: str, params: dict[str, Any]) -> Any:
        with self._open(identity) as client:
            try:
                return client.call(method, **params)
            except HostDied:  # it has ended, as it was told to
                return None

    async def console(self, identity: str) -> tuple[socket.socket, bytes]:
        """A machine's console: a connection that the caller closes, and what came already."""
        return await asyncio.to_thread(lambda: self._open(identity).console(identity))

    async def events(self, identity: str, wanted: Mapping[str, Any]) -> tuple[socket.socket, bytes]:
        """A machine's newest events: a connection that carries them as lines of JSON, and what came of it already."""
        return await asyncio.to_thread(lambda: self._open(identity).take("events", **wanted))

    async def screen(self, identity: str) -> tuple[socket.socket, bytes]:
        """A machine's screen: a connection that carries the RFB protocol, and what came of it already."""
        return await asyncio.to_thread(lambda: self._open(identity).take("screen"))

    def _open(self, identity: str) -> HostClient:
        path = machine_sockets(self._place).get(identity.removeprefix(IDENTITY))
        if path is None:
            raise UsageError(f"no machine {identity.removeprefix(IDENTITY)[:40]!r} runs")
        return HostClient.at(path)
