"""A console between a socket of the host's and a web socket: bytes both ways until either ends."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import WSMsgType, web

_PIECE = 16 << 10


async def carry_console(end: socket.socket, first: bytes, page: web.WebSocketResponse) -> None:
    """Until the domain or the page is gone. `first` is sent at once; `end` is closed."""
    end.setblocking(False)
    if first:
        await page.send_bytes(first)
    said = asyncio.create_task(_say(end, page))
    try:
        loop = asyncio.get_running_loop()
        async for message in page:
            if message.type == WSMsgType.BINARY:
                await loop.sock_sendall(end, message.data)
            elif message.type == WSMsgType.TEXT:
                await loop.sock_sendall(end, message.data.encode())
    except OSError:
        pass
    finally:
        said.cancel()
        end.close()


async def _say(end: socket.socket, page: web.WebSocketResponse) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(end, _PIECE):
            await page.send_bytes(data)
    except (OSError, asyncio.CancelledError):
        return
    await page.close(message=b"the domain is gone")
