"""Sessions over plain TCP, for Wyoming: a connection looks to the hub like a websocket with binary messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from streamer.dialect import Conversation
from streamer.hub import Busy, Hub

logger = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes that are read at once
UNREAD_S = 10.0  # for what is unread when a connection is closed


class TcpConnection:
    """One connection. Bytes come in pieces of any size."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def receive(self) -> Mapping[str, Any]:
        try:
            data = await self.reader.read(CHUNK)
        except OSError:
            data = b""
        return {"type": "websocket.receive", "bytes": data} if data else {"type": "websocket.disconnect"}

    async def send_text(self, data: str) -> None:
        await self.send_bytes(data.encode())

    async def send_bytes(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Waits for the reader for a while."""
        self.writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                await self.writer.wait_closed()
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def serving_tcp(
    listener: socket.socket, hub: Hub, converse: Callable[[str], Conversation]
) -> AsyncIterator[None]:
    """Takes connections while the context lasts; at its end those that the hub has not ended are cut.

    Args:
        converse: makes the session with this id. It takes a place of the hub's only while it has a stream.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def talk(connection: TcpConnection, owner: str) -> None:
        if len(tasks) <= hub.limits.connections:
            with contextlib.suppress(Busy):
                await hub.serve(connection, hub.enter(converse(secrets.token_urlsafe(24)), owner, reserves=False))
        with contextlib.suppress(OSError):
            await connection.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        task = asyncio.create_task(talk(TcpConnection(reader, writer), peer[0] if peer else ""))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, sock=listener)
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("a TCP connection broke", exc_info=outcome)
