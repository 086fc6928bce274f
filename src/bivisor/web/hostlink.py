"""A Xen host for asynchronous code: each call in a thread, for the host's protocol is a line out and a line back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

from bivisor.toolstack.hostd.client import HostClient
from bivisor.toolstack.hostd.messages import HostDied
from bivisor.toolstack.hostd.place import Place


class HostLink:
    """Calls to the host in `place`, one after the other on one connection, which is made anew where it broke."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client: HostClient | None = None
        self._lock = asyncio.Lock()

    async def call(self, method: str, **params: Any) -> Any:
        """The result of a method of the host. BivisorError for what it refuses, HostError where there is none."""
        async with self._lock:
            return await asyncio.to_thread(self._call, method, params)

    def _call(self, method: str, params: dict[str, Any]) -> Any:
        if self._client is None:
            self._client = HostClient(self._place)
        try:
            return self._client.call(method, **params)
        except HostDied:
            self.close()
            raise

    async def call_apart(self, method: str, **params: Any) -> Any:
        """The same for one that takes long: on a connection of its own, so that others need not wait for it."""

        def work() -> Any:
            with HostClient(self._place) as host:
                return host.call(method, **params)

        return await asyncio.to_thread(work)

    async def console(self, domain: str) -> tuple[socket.socket, bytes]:
        """A domain's console: a connection that the caller closes, and what came already."""
        return await asyncio.to_thread(lambda: HostClient(self._place).console(domain))

    async def events(self, wanted: Mapping[str, Any]) -> tuple[socket.socket, bytes]:
        """The newest events: a connection that carries them as lines of JSON, and what came of it already."""
        return await asyncio.to_thread(lambda: HostClient(self._place).take("events", **wanted))

    async def screen(self, domain: str) -> tuple[socket.socket, bytes]:
        """A domain's screen: a connection that carries the RFB protocol, and what came of it already."""
        return await asyncio.to_thread(lambda: HostClient(self._place).take("screen", domain=domain))

    def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.close()
            self._client = None
