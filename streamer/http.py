"""uvicorn's protocols with limits that it has no settings for: slow requests, too many connections, stalled readers.

A client that sends its request a byte a minute holds a connection for ever ("slowloris"): headers must be there
within `header_s`, and a body must come at `BODY_RATE` at least from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import unquote

import h11
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

BODY_RATE = 1000  # bytes a second
MAX_FRAMES = 4096  # of one message
UNREAD_S = 30.0  # for what is unread when a connection is closed
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class HttpProtocol(H11Protocol):
    """Use `http_protocol` to get a class with limits."""

    header_s: float
    most_connections: int
    timer: asyncio.TimerHandle | None = None  # while a request is not there as a whole
    deadline = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.write(FULL)
            transport.close()
            return
        self.expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self.relax()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        state = self.conn.their_state
        if self.transport.get_protocol() is not self:  # a websocket now, which may be silent
            self.relax()
        elif state is h11.SEND_BODY:
            self.expect()
            self.deadline += len(data) / BODY_RATE
        elif state is h11.IDLE:
            self.expect()  # more of the headers
        else:
            self.relax()

    def expect(self) -> None:
        if self.timer is None and not self.transport.is_closing():
            self.deadline = self.loop.time() + self.header_s
            self.timer = self.loop.call_later(self.header_s, self.expire)

    def relax(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def expire(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:  # it is us who are slow
            self.deadline = max(self.deadline, now + self.header_s)
        if now < self.deadline:
            self.timer = self.loop.call_at(self.deadline, self.expire)
            return
        self.timer = None
        if self.conn.our_state is h11.IDLE:
            self.transport.write(TIMED_OUT)
        self.transport.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Use `websocket_protocol`. Holds no more for a client than it reads or than one message may be."""

    message_bytes: Mapping[str, int]  # of a path; others may have as many as uvicorn is told

    def handle_connect(self, event: Request) -> None:
        path = unquote(event.path.partition("?")[0])
        limit = "max_message_size" if hasattr(self.conn, "max_message_size") else "max_size"  # websockets before 16
        setattr(self.conn, limit, self.message_bytes.get(path, self.config.ws_max_size))
        super().handle_connect(event)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.disconnected:  # a closed transport waits for its reader, for ever if need be
            self.loop.call_later(UNREAD_S, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        # uvicorn 0.54 takes a handshake that was answered by HTTP for one that the app forgot, until the transport has
        # closed; with TLS that takes a while.
        self.handshake_complete |= self.close_sent

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # who reads nothing gets no pongs, which would pile up

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAMES:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {MAX_FRAMES} frames")
            self.handle_parser_exception()
        else:
            super().handle_cont(event)


def websocket_protocol(message_bytes: Mapping[str, int]) -> type[WebSocketProtocol]:
    """A class with the largest message of each path."""
    return type("LimitedWebSocketProtocol", (WebSocketProtocol,), {"message_bytes": message_bytes})


def http_protocol(header_s: float, most_connections: int) -> type[HttpProtocol]:
    """uvicorn makes a protocol for each connection, of a class that it is given."""
    return type("LimitedHttpProtocol", (HttpProtocol,), {"header_s": header_s, "most_connections": most_connections})
