"""The page's server: which address does what. What is behind each is in the modules that this one names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from bivisor.errors import BivisorError, UsageError
from bivisor.toolstack.hostd.place import Place
from bivisor.web.carry import carry, carry_lines
from bivisor.web.guard import Guard
from bivisor.web.hostlink import HostLink
from bivisor.web.live import Live
from bivisor.web.machines import IDENTITY, Machines
from bivisor.web.orders import ORDERS

STATIC = Path(str(files("bivisor.web") / "static"))
_BODY_MAX = 64 << 10
_WANTED = {"kinds", "domains", "names", "match"}
_LISTENING = json.dumps({"counts": {}, "events": []})
"""The first message of a page's events: what happens from now on will be told."""


class Page:
    """One server. `app` is what a runner runs; its sockets are closed when it shuts down."""

    def __init__(self, place: Place, token: str, names: frozenset[str]) -> None:
        self._host = HostLink(place)
        self._machines = Machines(place)
        self._live = Live(self._host, self._machines)
        self._sockets: set[web.WebSocketResponse] = set()
        self.app = web.Application(middlewares=[Guard(token, names).middleware], client_max_size=_BODY_MAX)
        self.app.add_routes(
            [
                web.get("/", _index),
                web.get("/state", self._state),
                web.get("/live", self._socket(self._follow)),
                web.get("/console/{domain}", self._socket(self._console)),
                web.get("/screen/{machine}", self._socket(self._screen)),
                web.get("/events/{whose}", self._socket(self._events)),
                web.get("/store", self._store),
                web.post("/order/{order}", self._order),
                web.static("/static", STATIC),
            ]
        )
        self.app.on_shutdown.append(self._close)

    async def _close(self, _: web.Application) -> None:
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")
        self._host.close()

    # ---------------------------------------------------------------- questions and orders

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response(await self._live.state())

    async def _store(self, request: web.Request) -> web.Response:
        return await _answer(self._host.call("store_nodes", path=request.query.get("path", "/")))

    async def _order(self, request: web.Request) -> web.Response:
        order = ORDERS.get(request.match_info["order"])
        if order is None:
            return _refused(UsageError(f"there is no order {request.match_info['order'][:40]!r}"), 404)
        try:
            words = json.loads(await request.text() or "{}")
        except ValueError:
            words = None
        if not isinstance(words, dict):
            return _refused(UsageError("an order's words are an object of JSON"))
        response = await _answer(order(self._host, self._machines, words))
        self._live.look_soon()
        return response

    # ---------------------------------------------------------------- web sockets

    def _socket(
        self, serve: Callable[[web.Request, web.WebSocketResponse], Awaitable[None]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A web socket that `serve` has until it returns. What it refuses is told as the reason of its end."""

        async def handle(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse(heartbeat=20, max_msg_size=_BODY_MAX)
            await socket.prepare(request)
            self._sockets.add(socket)
            try:
                await serve(request, socket)
            except BivisorError as error:
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode()[:120])
            except ConnectionError:
                pass
            finally:
                self._sockets.discard(socket)
                await socket.close()
            return socket

        return handle

    async def _follow(self, _: web.Request, socket: web.WebSocketResponse) -> None:
        queue = self._live.follow()
        ended = asyncio.create_task(_until_closed(socket))
        try:
            while not ended.done():
                newest = asyncio.create_task(queue.get())
                await asyncio.wait((newest, ended), return_when=asyncio.FIRST_COMPLETED)
                if not newest.done():
                    newest.cancel()
                    return
                await socket.send_json(newest.result())
        finally:
            ended.cancel()
            self._live.leave(queue)

    async def _console(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        name = request.match_info["domain"]
        place = self._machines if name.startswith(IDENTITY) else self._host
        end, first = await place.console(name)
        await carry(end, first, socket)

    async def _events(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        whose, wanted = request.match_info["whose"], wanted_events(request.query.get("wanted", "{}"))
        if whose.startswith(IDENTITY):
            end, first = await self._machines.events(whose, wanted)
        else:
            end, first = await self._host.events(wanted)
        await socket.send_str(_LISTENING)
        await carry_lines(end, first, socket)

    async def _screen(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        name = request.match_info["machine"]
        place = self._machines if name.startswith(IDENTITY) else self._host
        end, first = await place.screen(name)
        await carry(end, first, socket)


def wanted_events(words: str) -> dict[str, Any]:
    """Which events a page asks for, as `tail.offer_tail` takes them. UsageError."""
    try:
        wanted = json.loads(words)
    except ValueError:
        wanted = None
    if (
        not isinstance(wanted, dict)
        or not set(wanted) <= _WANTED
        or not all(isinstance(v, list) for v in wanted.values())
    ):
        raise UsageError(f"which events: an object with lists of {', '.join(sorted(_WANTED))}")
    return wanted


async def _index(_: web.Request) -> web.FileResponse:
    return web.FileResponse(STATIC / "index.html")


async def _until_closed(socket: web.WebSocketResponse) -> None:
    async for message in socket:
        if message.type == WSMsgType.ERROR:
            return


async def _answer(work: Awaitable[Any]) -> web.Response:
    try:
        return web.json_response({"result": await work})
    except BivisorError as error:
        return _refused(error)


def _refused(error: BivisorError, status: int = 400) -> web.Response:
    return web.json_response({"error": str(error)}, status=status)
