"""`streamer connect`: a file, standard input or the microphone, transcribed by a running server.

PyTorch is not needed for it, and not loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import queue
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import soundfile

from clients.file import AudioError, open_audio, open_sound, printable
from clients.websocket import Message, ServerError, StreamClient, StreamError
from core.audio import SAMPLE_RATE, Samples, encode_pcm16
from core.transcript import Event, Gap, Transcript, Word
from streamer.output import Writer, opened_output

logger = logging.getLogger(__name__)

LOST_S = 3.0  # without a connection, at the end: what is missing does not come any more


def event_of(message: Message) -> Event | None:
    """A message of the server as the engine's event; None where it is none."""
    if message["type"] == "gap":
        return Gap(message["start_s"], message["end_s"], message["reason"])
    if message["type"] not in ("partial", "final"):
        return None
    n_committed = message["n_committed_words"]
    words = tuple(
        Word(word["word"], word["start_s"], word["end_s"], word["confidence"], i < n_committed)
        for i, word in enumerate(message["words"])
    )
    bounds = message["start_s"], message["end_s"]
    return Transcript(message["segment"], message["type"] == "final", message["text"], n_committed, *bounds, words)


async def file_blocks(blocks: Iterator[Samples]) -> AsyncIterator[bytes]:
    """Floats, which keep a resampled file exact: the text is that of `streamer FILE`."""
    while (block := await next_block(blocks)) is not None:
        yield block.tobytes()


async def next_block(blocks: Iterator[Samples]) -> Samples | None:
    """None at the end. Whoever stops waiting leaves the thread behind: its input may stall for ever."""
    future: Future[Samples | None] = Future()

    def read() -> None:
        future.set_running_or_notify_cancel()  # it is not to be cancelled any more
        try:
            future.set_result(next(blocks, None))
        except Exception as e:
            future.set_exception(e)

    threading.Thread(target=read, name="input", daemon=True).start()
    return await asyncio.wrap_future(future)


def session_options(args: argparse.Namespace) -> dict[str, object]:
    """What the session asks for; what is not given is the server's default."""
    words: Mapping[str, float] = {}
    if args.hotwords is not None:
        from streamer.recognizer import read_hotwords

        words = read_hotwords(args.hotwords)
    asked = {
        "latency": args.latency,
        "model": args.model,
        "endpoint_ms": args.endpoint_ms,
        "commit_ms": args.commit_ms,
        "steady": args.steady or None,
        "hotwords": [f"{word}:{weight}" for word, weight in words.items()] or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def open_channels(path: str) -> tuple[int, Iterator[Samples]]:
    """The rate of a file with two channels, and its interleaved samples at that rate.

    Raises:
        AudioError: it cannot be read, or has another number of channels.
    """
    try:
        sound = open_sound(path)
    except (soundfile.LibsndfileError, RuntimeError) as e:
        raise AudioError(f"{printable(path)}: --split needs a file that libsndfile reads: {e}") from e
    if sound.channels != 2:
        raise AudioError(f"{printable(path)}: --split needs two channels. Found: {sound.channels}")
    return sound.samplerate, (block.reshape(-1) for block in sound.blocks(sound.samplerate, dtype="float32"))


async def transcribe(args: argparse.Namespace, writers: Sequence[Writer]) -> None:
    """One writer, or with `--split` one a channel."""
    rate, options = SAMPLE_RATE, {**session_options(args), "partials": writers[0].partials}
    if args.split:
        options["split"] = True
        rate, samples = open_channels(args.file)
    else:
        samples = open_audio(args.file, args.sample_rate, args.encoding, args.channels).blocks  # or it is missing
    if args.realtime:
        from streamer.transcribe import paced

        samples = paced(samples)
    blocks = file_blocks(samples)
    async with StreamClient(args.url, rate, "pcm_f32le", len(writers), args.api_key, options) as client:

        async def feed() -> None:
            async for block in blocks:
                await client.send(block)
            await client.end()

        async with asyncio.TaskGroup() as group:
            feeder = group.create_task(feed())
            async for message in client:
                show(message, writers[message.get("channel", 0)])
            feeder.cancel()
        for writer in writers:
            writer.end(round(client.accepted_s, 3), str(client.ready["model"]))


def show(message: Message, writer: Writer) -> None:
    event = event_of(message)
    if event is not None:
        writer.event(event, message["audio_s"])
    elif message["type"] == "error":
        print(f"streamer: warning: {message['message']}", file=sys.stderr)


class RemoteStream:
    """A server's session behind the calls of a `RecognizerStream`; its messages are fetched by a thread.

    Raises:
        ServerError: the server cannot be reached or refuses, here; or the session broke for good, later: when all
            events that had come have been given.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="connection", daemon=True)
        self._client = StreamClient(args.url, encoding="pcm_s16le", api_key=args.api_key, options=session_options(args))
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._n_sent = 0  # samples
        self._failure: ServerError | None = None

    def push(self, samples: Samples) -> list[Event]:
        """Sends; the events that came meanwhile."""
        if self._failure is not None:
            raise self._failure
        with self._failing():
            if len(samples):
                self._n_sent += len(samples)
                self._wait(self._client.send(encode_pcm16(samples)))
            elif self._reader.done():
                self._wait(self._ended())
        return self._arrived()

    def flush(self) -> list[Event]:
        """Its finals come later."""
        with self._failing():
            self._wait(self._client.flush())
        return self._arrived()

    def finish(self) -> list[Event]:
        """Waits for the last finals; where the server has gone, not for long."""
        if self._failure is None:
            with self._failing():
                self._wait(self._client.end())
                self._wait(self._ended())
        return self._arrived()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A failure is kept for later; what had come before it is there."""
        try:
            yield
        except ServerError as e:
            self._failure = e
            with suppress(ServerError):
                if self._client.is_done:
                    self._wait(self._ended())

    @property
    def trouble(self) -> str:
        return "" if self._client.is_connected else f"no connection to {self._client.url}; trying again"

    @property
    def stream(self) -> Self:
        return self

    @property
    def model(self) -> str:
        return str(self._client.ready["model"])

    def lag_s(self) -> float:
        return max(0.0, self._n_sent / SAMPLE_RATE - self._client.accepted_s)

    def _arrived(self) -> list[Event]:
        return [self._events.get() for _ in range(self._events.qsize())]

    async def _read(self) -> None:
        complaint = ""  # if the session goes on after it; else it ends with it
        async for message in self._client:
            if complaint:
                logger.warning("%s", complaint)
            complaint = message["message"] if message["type"] == "error" else ""
            if (event := event_of(message)) is not None:
                self._events.put(event)

    async def _ended(self) -> None:
        while not self._reader.done():
            await asyncio.wait([self._reader], timeout=LOST_S)
            if not (self._reader.done() or self._client.is_connected):
                raise StreamError(
                    f"{self._client.url}: no connection; the last {self.lag_s():.1f} s are not transcribed"
                )
        await self._reader

    async def _open(self) -> None:
        await self._client.__aenter__()
        self._reader = asyncio.create_task(self._read())

    async def _close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._client.__aexit__(None, None, None)

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except StreamError as e:
            raise ServerError(str(e)) from e

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._open())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._close())
        finally:
            self._stop()
        if self._failure is not None and kind is None:
            raise self._failure


def run_connect(args: argparse.Namespace) -> int:
    """Prints the finals as `streamer FILE` does; a microphone's as `streamer --mic` does.

    Raises:
        ServerError: the server cannot be reached, refuses, or gives the session up.
        AudioError, MicrophoneError: there is nothing to send.
    """
    if args.is_live:
        from streamer.live import run_live

        return run_live(args, lambda: RemoteStream(args), lambda: None)
    with opened_output(args.output) as write:
        paths = [f"{printable(args.file)}#{channel}" for channel in (0, 1)] if args.split else [None]
        writers = [Writer(args.format, write, args.partials, path) for path in paths]
        try:
            asyncio.run(transcribe(args, writers))
        except ExceptionGroup as e:
            cause = e.exceptions[0]
            raise (ServerError(str(cause)) if isinstance(cause, StreamError) else cause) from e
        except StreamError as e:
            raise ServerError(str(e)) from e
    return 0
