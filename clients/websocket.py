"""A client of the native protocol that outlives its connection: audio in, messages out, nothing lost or doubled.

Audio is kept until the server acknowledges it. When the connection breaks, the client comes back with the
session's id and the last `seq` it saw; the server says how many samples it has, and the rest is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from core.audio import ENCODINGS

Message = dict[str, Any]

CHUNK = 1 << 15  # bytes in one binary message, at most
WINDOW_S = 10.0  # audio sent ahead of its acknowledgement
BUFFER_S = 60.0  # audio kept for a resume; `send` waits when it is full
OPEN_S = 10.0  # for a connection and its first message
RETRY_S = 60.0  # after a connection broke
ALIVE_S = 15.0  # without audio, such as a pause: the server hears that somebody is still there
ASK_S = 1.0  # the same, with audio unacknowledged: the server is asked what it has
FINAL_CODES = (1003, 1007, 1008, 1009, 1011, 1013, 4001)  # closes that a reconnect would only repeat


class StreamError(Exception):
    """The session cannot go on; the message is for the user."""


class ServerError(StreamError):
    """The server cannot be reached, or not now: another try may succeed."""


def stream_url(url: str) -> str:
    """`http://host:8000` or `ws://host:8000` to `ws://host:8000/v1/stream`; another path is kept.

    Raises:
        ServerError: it is not such an address.
    """
    try:
        parts = urlsplit(url)
        name, _ = parts.hostname, parts.port
    except ValueError as e:
        raise ServerError(f"expected a server's address like ws://HOST:PORT. Found: {url}") from e
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not name:
        raise ServerError(f"expected a server's address like ws://HOST:PORT. Found: {url}")
    path = parts.path if parts.path not in ("", "/") else "/v1/stream"
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


class StreamClient:
    """One session. `async with StreamClient(url) as client`, `send` audio, `end`, and iterate over the messages.

    Args:
        options: more of `start`, such as {"latency": "low"}.
        retry_s: how long to try again after the connection broke.
    """

    def __init__(
        self,
        url: str,
        sample_rate: int = 16_000,
        encoding: str = "pcm_s16le",
        channels: int = 1,
        api_key: str | None = None,
        options: Mapping[str, object] | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"Expected an encoding of {', '.join(ENCODINGS)}. Found: {encoding!r}")
        self.url = stream_url(url)
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        format = {"sample_rate": sample_rate, "encoding": encoding, "channels": channels}
        self.start: Message = {"type": "start", **(options or {}), **format, "acks": True}
        self.sample_rate = sample_rate
        self.frame_bytes = ENCODINGS[encoding] * channels
        self.retry_s = retry_s
        self.ready: Message = {}  # the server's answer
        self.seq = 0
        self.n_resumes = 0
        self.is_connected = False
        self.connection: ClientConnection | None = None
        # Byte positions in the stream of audio: acked <= position <= total.
        self.kept = bytearray()  # [acked, total)
        self.acked = self.position = self.total = 0
        self.flushes: list[int] = []  # where they belong
        self.n_flushes = 0  # of them, sent
        self.is_ending = self.has_sent_end = self.is_done = False
        self.wake = asyncio.Event()  # there may be something to send
        self.room = asyncio.Event()  # there may be room in `kept`
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Raises ServerError where the server cannot be reached or refuses."""
        connection = await self.open()
        self.task = asyncio.create_task(self.run(connection))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, StreamError):
                await self.task

    # For the user

    async def send(self, data: bytes) -> None:
        """Queues audio of any length; waits while too much is unacknowledged.

        Raises:
            StreamError: the session is over.
        """
        if self.is_ending:
            raise ValueError("Expected audio before end(). Found: audio after it")
        while len(self.kept) > BUFFER_S * self.sample_rate * self.frame_bytes and not self.is_done:
            self.room.clear()
            await self.room.wait()
        self.check()
        self.kept += data
        self.total += len(data)
        self.wake.set()

    async def flush(self) -> None:
        """Asks for the finals of all audio so far; `{"type": "flushed"}` follows them."""
        self.flushes.append(self.total)
        self.wake.set()

    async def end(self) -> None:
        """No more audio. The last message is `{"type": "end"}`."""
        self.is_ending = True
        self.wake.set()

    async def __aiter__(self) -> AsyncIterator[Message]:
        """The server's messages, each once, through reconnects.

        Raises:
            StreamError: the session broke for good.
        """
        while (message := await self.inbox.get()) is not None:
            yield message
        self.inbox.put_nowait(None)  # for whoever asks again
        self.check()

    @property
    def accepted_s(self) -> float:
        """Seconds of audio that the server has."""
        return self.acked / self.frame_bytes / self.sample_rate

    def check(self) -> None:
        """Raises what ended the session, if that was no orderly end."""
        if self.task is not None and self.task.done() and not self.task.cancelled():
            self.task.result()

    # Connections

    async def open(self) -> ClientConnection:
        """A connection on which the server has said `ready`."""
        try:
            connection = await connect(
                self.url,
                additional_headers=self.headers,
                compression=None,
                open_timeout=OPEN_S,
                ping_interval=10,
                ping_timeout=30,  # the server reads no faster than it transcribes
                close_timeout=5,
            )
        except InvalidStatus as e:
            status = e.response.status_code
            kind = ServerError if status >= 500 else StreamError
            raise kind(f"{self.url}: HTTP {status}{refusal_of(e.response.body)}") from e
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as e:
            raise ServerError(f"cannot connect to {self.url}: {str(e) or type(e).__name__}") from e
        try:
            hello = {"type": "resume", "session": self.ready["session"], "seq": self.seq} if self.ready else self.start
            await connection.send(json.dumps(hello))
            async with asyncio.timeout(OPEN_S):
                message = json.loads(await connection.recv())
            if message.get("code") == "busy":
                raise ServerError(f"{self.url}: {message.get('message')}")
            if message.get("type") != "ready":
                raise StreamError(f"{self.url}: {message.get('message', message)}")
        except (ConnectionClosed, TimeoutError, ValueError) as e:
            await connection.close()
            raise ServerError(f"{self.url}: the server does not answer as a streamer would") from e
        except BaseException:
            await connection.close()
            raise
        self.connection, self.is_connected = connection, True
        self.ready = message
        self.seq = max(self.seq, message["seq"])
        self.acknowledge(message["samples"])
        self.position = self.acked
        self.n_flushes = message["flushes"]
        self.has_sent_end = message["is_ended"]
        return connection

    async def run(self, connection: ClientConnection) -> None:
        """Keeps the session on some connection until it ends."""
        try:
            while not await self.exchange(connection):
                connection = await self.reopen()
        finally:
            self.is_done = True
            self.inbox.put_nowait(None)
            self.room.set()

    async def reopen(self) -> ClientConnection:
        """Comes back, with growing pauses. Raises StreamError where that fails for too long, or for good."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + self.retry_s, 0.1
        while True:
            try:
                connection = await self.open()
            except ServerError:
                if loop.time() + pause > until:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
            else:
                self.n_resumes += 1
                return connection

    async def exchange(self, connection: ClientConnection) -> bool:
        """Sends and receives until the session (True) or the connection (False) ends."""
        writer = asyncio.create_task(self.write(connection))
        error = ""
        try:
            async for text in connection:
                message = json.loads(text)
                if message["seq"] <= self.seq:
                    continue
                self.seq = message["seq"]
                self.acknowledge(round(message["audio_s"] * self.sample_rate))
                if message["type"] == "error":
                    error = message["message"]
                if message["type"] != "ack":
                    self.inbox.put_nowait(message)
                if message["type"] == "end":
                    if not self.has_sent_end:
                        raise StreamError(f"{self.url}: {error or 'the server ended the session'}")
                    return True
        except ConnectionClosed:
            pass
        finally:
            self.is_connected = False
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await connection.close()
        if connection.close_code in FINAL_CODES:
            raise StreamError(f"{self.url}: {error or connection.close_reason or connection.close_code}")
        return False

    async def write(self, connection: ClientConnection) -> None:
        window = int(WINDOW_S * self.sample_rate) * self.frame_bytes
        while True:
            border = self.flushes[self.n_flushes] if self.n_flushes < len(self.flushes) else self.total
            n = min(CHUNK, border - self.position, self.acked + window - self.position)
            if n > 0:
                first = self.position - self.acked
                await connection.send(bytes(self.kept[first : first + n]))
                self.position += n
            elif self.n_flushes < len(self.flushes) and self.position == border:
                await connection.send('{"type": "flush"}')
                self.n_flushes += 1
            elif self.is_ending and not self.has_sent_end and self.position == self.total:
                await connection.send('{"type": "end"}')
                self.has_sent_end = True
            else:
                self.wake.clear()
                try:
                    quiet_s = ALIVE_S if self.acked == self.total else ASK_S
                    async with asyncio.timeout(None if self.has_sent_end else quiet_s):
                        await self.wake.wait()
                except TimeoutError:
                    await connection.send(b"")

    def acknowledge(self, n_samples: int) -> None:
        """Forgets audio that the server has."""
        acked = n_samples * self.frame_bytes
        if acked > self.acked:
            del self.kept[: acked - self.acked]
            self.acked = acked
            self.room.set()
            self.wake.set()


def refusal_of(body: bytes | bytearray | None) -> str:
    """The server's words about a refused connection, if it had any."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return f": {json.loads(body or b'')['error']['message']}"
    return ""
