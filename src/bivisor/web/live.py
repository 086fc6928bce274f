"""What runs, as every open page sees it: looked at a few times a second while somebody looks, told when it changed."""

from __future__ import annotations

import asyncio
from typing import Any

from bivisor.errors import BivisorError
from bivisor.web.hostlink import HostLink
from bivisor.web.machines import Machines

PERIOD_S = 0.4


class Live:
    """The state of the host and of the machines, for those who `follow` it."""

    def __init__(self, host: HostLink, machines: Machines) -> None:
        self._host = host
        self._machines = machines
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._state: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()

    async def state(self) -> dict[str, Any]:
        """All of it, now: `xen` is None where no host runs, and `xen_error` says why."""
        found: dict[str, Any] = {"xen": None, "xen_error": ""}
        try:
            found["xen"] = await self._host.call("picture")
        except BivisorError as error:
            found["xen_error"] = str(error)
        found["machines"] = await self._machines.look()
        return found

    def follow(self) -> asyncio.Queue[dict[str, Any]]:
        """A queue that holds the newest state, never more than one, and None of what a slow page missed."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        self._followers.add(queue)
        if self._state:
            queue.put_nowait(self._state)
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        return queue

    def leave(self, queue: asyncio.Queue[dict[str, Any]]) -> None:
        """End `follow`. Nobody looks at a host at whose page nobody looks."""
        self._followers.discard(queue)
        if not self._followers and self._task is not None:
            self._task.cancel()
            self._task = None
            self._state = {}

    def look_soon(self) -> None:
        """Something was just changed."""
        self._soon.set()

    async def _look(self) -> None:
        while True:
            state = await self.state()
            if state != self._state:
                self._state = state
                for queue in self._followers:
                    if queue.full():
                        queue.get_nowait()
                    queue.put_nowait(state)
            self._soon.clear()
            try:
                await asyncio.wait_for(self._soon.wait(), PERIOD_S)
            except TimeoutError:
                pass
