"""The page's server: who gets in, what it answers, and that it goes on when a host comes and goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web

from bivisor.errors import UsageError
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.server import RpcServer
from bivisor.web.guard import new_token
from bivisor.web.server import Page

TOKEN = new_token()
KEY = {"Authorization": f"Bearer {TOKEN}"}
PICTURE: dict[str, Any] = {"engine": "soft", "domains": [], "channels": [], "grants": [], "rings": [], "watches": []}


@contextmanager
def a_host(place: Place, calls: list[tuple[str, dict[str, Any]]]) -> Iterator[None]:
    """A host that notes what it is asked to do, and refuses to destroy."""

    def note(method: str) -> Callable[..., Any]:
        def work(_: object, **words: Any) -> Any:
            calls.append((method, words))
            if method == "destroy":
                raise UsageError("there is no domain 7")
            return PICTURE if method == "picture" else {"done": method}

        return work

    place.folder.mkdir(mode=0o700, exist_ok=True)
    server = RpcServer(place.socket, {name: note(name) for name in ("picture", "pause", "destroy", "create")})
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def served(place: Place) -> AsyncIterator[tuple[ClientSession, str]]:
    """A session with the server, and its address."""
    runner = web.AppRunner(Page(place, TOKEN, frozenset({"127.0.0.1:0"})).app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = site.name
    assert runner.addresses
    async with ClientSession(address) as session:
        try:
            yield session, address
        finally:
            await runner.cleanup()


def with_server(place: Place, work: Callable[[ClientSession], Awaitable[None]]) -> None:
    """Do `work` with a server whose `Host` is taken for 127.0.0.1:0, whatever port it really has."""

    async def all_of_it() -> None:
        async with served(place) as (session, _):
            session.headers["Host"] = "127.0.0.1:0"
            await asyncio.wait_for(work(session), 20)

    asyncio.run(all_of_it())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "host")


@pytest.mark.parametrize("path", ["/", "/state", "/static/main.js", "/store", "/live", "/console/1"])
def test_without_the_token_nothing_is_served(place: Place, path: str) -> None:
    async def work(session: ClientSession) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "bivisor=wrong"}):
            async with session.get(path, headers=headers) as response:
                assert response.status == 401
                assert "token" in await response.text()
        async with session.get("/?token=wrong") as response:
            assert response.status == 401

    with_server(place, work)


def test_the_token_goes_from_the_address_into_a_cookie_that_no_script_and_no_other_site_gets(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        async with session.get(f"/?token={TOKEN}", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/")
            cookie = response.headers["Set-Cookie"]
            assert TOKEN in cookie
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
        async with session.get("/", headers={"Cookie": f"bivisor={TOKEN}"}) as response:
            assert response.status == 200
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "http" not in policy

    with_server(place, work)


def test_a_request_of_another_origin_is_refused_even_with_the_token(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        foreign = {"Origin": "http://evil.example", "Cookie": f"bivisor={TOKEN}"}
        async with session.post("/order/pause", headers=foreign, data="{}") as response:
            assert response.status == 403
        with pytest.raises(WSServerHandshakeError, match="403"):
            await session.ws_connect("/live", headers=foreign)
        with pytest.raises(WSServerHandshakeError, match="403"):  # a page that says nothing of itself
            await session.ws_connect("/live", headers={"Cookie": f"bivisor={TOKEN}"})
        async with session.post("/order/pause", headers={"Cookie": f"bivisor={TOKEN}"}, data="{}") as response:
            assert response.status == 403
        async with session.get("/state", headers=KEY | {"Host": "evil.example:8006"}) as response:
            assert response.status == 403

    with_server(place, work)


def test_the_state_comes_at_once_and_again_when_it_has_changed(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        socket = await session.ws_connect("/live", headers=KEY)
        first = await socket.receive_json()
        assert first["xen"] is None
        assert "no host runs" in first["xen_error"]
        with a_host(place, []):
            assert (await socket.receive_json())["xen"] == PICTURE
        assert (await socket.receive_json())["xen"] is None
        await socket.close()

    with_server(place, work)


def test_nobody_asks_a_host_at_whose_page_nobody_looks(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        calls: list[tuple[str, dict[str, Any]]] = []
        with a_host(place, calls):
            socket = await session.ws_connect("/live", headers=KEY)
            await socket.receive_json()
            await socket.close()
            await asyncio.sleep(0.1)
            before = len(calls)
            await asyncio.sleep(1.0)
            assert len(calls) == before

    with_server(place, work)


def test_orders_reach_the_host_and_refusals_come_back_in_its_words(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        calls: list[tuple[str, dict[str, Any]]] = []
        with a_host(place, calls):
            async with session.post("/order/pause", headers=KEY, json={"domain": "1"}) as response:
                assert await response.json() == {"result": {"done": "pause"}}
            assert ("pause", {"domain": "1"}) in calls
            async with session.post("/order/destroy", headers=KEY, json={"domain": "7"}) as response:
                assert response.status == 400
                assert await response.json() == {"error": "there is no domain 7"}

    with_server(place, work)


@pytest.mark.parametrize(
    ("order", "body", "words"),
    [
        ("explode", "{}", "there is no order"),
        ("pause", "{}", "domain is missing"),
        ("pause", '{"domain": 3}', "domain is missing"),
        ("pause", "[1]", "object of JSON"),
        ("pause", "{", "object of JSON"),
        ("create", '{"name": "x", "vcpus": "many", "kernel": "k"}', "no number"),
        ("create", '{"name": "x", "vcpus": 100000, "kernel": "k"}', "from 1 to 128"),
        ("create", '{"name": "x", "memory": "lots", "kernel": "k"}', "lots"),
        ("create", '{"name": "x", "type": "vax", "kernel": "k"}', "vax"),
        ("create", '{"name": "a/b", "kernel": "k"}', "a/b"),
    ],
)
def test_an_order_that_is_none_is_refused_and_says_why(place: Place, order: str, body: str, words: str) -> None:
    async def work(session: ClientSession) -> None:
        async with session.post(f"/order/{order}", headers=KEY, data=body) as response:
            assert response.status in (400, 404)
            assert words in (await response.json())["error"]

    with_server(place, work)


def test_the_console_of_a_domain_that_is_not_there_ends_with_the_reason(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        socket = await session.ws_connect("/console/7", headers=KEY)
        message = await socket.receive()
        assert message.type is WSMsgType.CLOSE
        assert "no host runs" in (message.extra or "")

    with_server(place, work)


def test_no_path_leads_out_of_the_folder_of_the_page(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py"):
            async with session.get(path, headers=KEY) as response:
                assert response.status in (403, 404)

    with_server(place, work)


def test_what_the_page_needs_is_all_in_the_package(place: Place) -> None:
    async def work(session: ClientSession) -> None:
        static = Path(str(__import__("bivisor.web.server").web.server.STATIC))
        for script in static.glob("*.js"):
            for line in script.read_text().splitlines():
                if line.startswith("import ") and " from " in line:
                    name = json.loads(line.rpartition(" from ")[2].rstrip(";"))
                    assert (script.parent / name).is_file(), (script.name, name)
            async with session.get(f"/static/{script.name}", headers=KEY) as response:
                assert response.status == 200
                assert "javascript" in response.headers["Content-Type"]
        page = (static / "index.html").read_text()
        assert "http://" not in page
        assert "https://" not in page

    with_server(place, work)
