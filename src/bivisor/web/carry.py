"""Bytes between a socket of a host or machine and a web socket, both ways, until either ends: consoles and screens."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import WSMsgType, web

_PIECE = 16 << 10


async def carry(end: socket.socket, first: bytes, page: web.WebSocketResponse) -> None:
    """Until the guest or the page is gone. `first` is sent at once; `end` is closed."""
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
    await page.close(message=b"the guest is gone")
