"""Bytes between a socket of a host or machine and a web socket, both ways, until either ends: consoles and screens."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import WSMsgType, web

_PIECE = 16 << 10
_LINE_MAX = 1 << 20


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


async def carry_lines(end: socket.socket, first: bytes, page: web.WebSocketResponse) -> None:
    """Each line that comes from `end` as a message of text, until either is gone; `end` is closed."""
    end.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=end, limit=_LINE_MAX)
    said = asyncio.create_task(_say_lines(first, reader, page))
    try:
        async for _ in page:  # nothing that a page says here is of interest, but that it goes
            pass
    finally:
        said.cancel()
        writer.close()


async def _say_lines(first: bytes, reader: asyncio.StreamReader, page: web.WebSocketResponse) -> None:
    try:
        while line := await reader.readline():
            await page.send_str((first + line).decode().rstrip())
            first = b""
    except (OSError, ValueError, asyncio.CancelledError):
        return
    await page.close(message=b"the guest is gone")
