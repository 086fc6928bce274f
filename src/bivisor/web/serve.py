"""`bivisor web` from its options to its end: a server in this process, its address on the terminal."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import webbrowser
from contextlib import ExitStack

from bivisor.errors import HostError, UsageError
from bivisor.toolstack.hostd.place import place_of

_TOKEN_MIN = 16


def serve(*, port: int, listen: str, state: str | None, token: str | None, demo: bool, opens: bool) -> int:
    """Serve until Ctrl-C or SIGTERM. UsageError, HostError."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise HostError("the page needs aiohttp: pip install 'bivisor[web]'") from None
    if token is not None and len(token) < _TOKEN_MIN:
        raise UsageError(f"a token has at least {_TOKEN_MIN} characters")
    try:
        address = ipaddress.ip_address(listen)
    except ValueError:
        raise UsageError(f"--listen {listen}: an address such as 127.0.0.1 or ::1") from None
    place = place_of(state)
    with ExitStack() as stack:
        if demo:
            from bivisor.web.demo import start_demo

            start_demo(place, stack)
        asyncio.run(_serve(str(address), port, state, token, opens))
    return 0


async def _serve(address: str, port: int, state: str | None, token: str | None, opens: bool) -> None:
    from aiohttp import web

    from bivisor.web.guard import new_token
    from bivisor.web.server import Page

    token = token or new_token()
    written = f"[{address}]" if ":" in address else address
    listener = _listen(address, port)
    port = listener.getsockname()[1]
    names = frozenset(f"{name}:{port}" for name in (written, "localhost", "127.0.0.1", "[::1]"))
    runner = web.AppRunner(Page(place_of(state), token, names).app, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        url = f"http://{written}:{port}/?token={token}"
        print(f"bivisor: open {url}\nbivisor: Ctrl-C ends it", flush=True)
        if opens:
            webbrowser.open(url)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        await ended.wait()
    finally:
        await runner.cleanup()


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    end = socket.socket(family, socket.SOCK_STREAM)
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind((address, port))
        end.listen(64)
    except OSError as error:
        end.close()
        raise HostError(f"{address} port {port}: {error.strerror}; --port names another") from None
    return end
