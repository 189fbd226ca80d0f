"""`streamer connect`: a file, standard input or the microphone, transcribed by a running server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator

from clients.file import open_audio
from clients.websocket import Message, ServerError, StreamClient, StreamError
from core.audio import Samples, encode_pcm16
from core.transcript import Event, Gap, Transcript, Word
from streamer.output import Writer, opened_output
from streamer.transcribe import paced


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


async def microphone_blocks(args: argparse.Namespace) -> AsyncIterator[bytes]:
    """16-bit blocks until Ctrl-C."""
    from clients.microphone import Microphone

    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends everything at once there
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    with Microphone(args.input_device) as microphone:
        while not stopped.is_set():
            yield encode_pcm16(await asyncio.to_thread(microphone.read))
        yield encode_pcm16(await asyncio.to_thread(microphone.finish))


async def file_blocks(blocks: Iterator[Samples]) -> AsyncIterator[bytes]:
    """Floats, which keep a resampled file exact: the text is that of `streamer FILE`."""
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block.tobytes()


async def transcribe(args: argparse.Namespace, writer: Writer) -> None:
    if args.mic:
        blocks, encoding = microphone_blocks(args), "pcm_s16le"
    else:
        source = open_audio(args.file, args.sample_rate, args.encoding, args.channels)  # a missing file is told first
        blocks, encoding = file_blocks(iter(paced(source.blocks) if args.realtime else source.blocks)), "pcm_f32le"
    options = {"latency": args.latency, "partials": writer.partials}
    async with StreamClient(args.url, encoding=encoding, api_key=args.api_key, options=options) as client:

        async def feed() -> None:
            async for block in blocks:
                await client.send(block)
            await client.end()

        async with asyncio.TaskGroup() as group:
            feeder = group.create_task(feed())
            async for message in client:
                show(message, writer)
            feeder.cancel()
        writer.end(round(client.accepted_s, 3), str(client.ready["model"]))


def show(message: Message, writer: Writer) -> None:
    event = event_of(message)
    if event is not None:
        writer.event(event, message["audio_s"])
    elif message["type"] == "error":
        print(f"streamer: warning: {message['message']}", file=sys.stderr)


def run_connect(args: argparse.Namespace) -> int:
    """Prints the finals as `streamer FILE` does.

    Raises:
        ServerError: the server cannot be reached, refuses, or gives the session up.
        AudioError, MicrophoneError: there is nothing to send.
    """
    with opened_output(args.output) as write:
        writer = Writer(args.format, write, args.partials)
        try:
            asyncio.run(transcribe(args, writer))
        except ExceptionGroup as e:
            cause = e.exceptions[0]
            raise (ServerError(str(cause)) if isinstance(cause, StreamError) else cause) from e
        except StreamError as e:
            raise ServerError(str(e)) from e
    return 0
