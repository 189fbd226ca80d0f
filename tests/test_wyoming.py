"""Wyoming's own client over loopback, and the framing without any socket."""

import asyncio
import contextlib
import json
import warnings
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planted import PlantedModel, plant
from serving import Serving, serving

from core.audio import encode_pcm16
from streamer.auth import Access
from streamer.limits import Limits
from streamer.models import language_of
from streamer.protocols.wyoming import FramingError, Reader, Told, Wyoming, to_int16

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports audioop
    from wyoming.asr import Transcribe, Transcript, TranscriptChunk
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncClient
    from wyoming.event import Event
    from wyoming.info import Describe, Info
    from wyoming.ping import Ping, Pong

PLANTED = plant("HELLO WORLD~~GOOD DAY~")[:-80]  # whole frames of 20 ms: planted text is on that grid
SPEECH = encode_pcm16(PLANTED)
FORMAT = {"rate": 16000, "width": 2, "channels": 1}


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def connected(server: Serving) -> AsyncIterator[AsyncClient]:
    client = AsyncClient.from_uri(f"tcp://127.0.0.1:{server.wyoming_port}")
    async with client:
        yield client


async def until(client: AsyncClient, kind: str) -> list[Event]:
    events = []
    while (event := await client.read_event()) is not None:
        events.append(event)
        if event.type == kind:
            return events
    raise AssertionError(f"no {kind}, but {events}")


async def utterance(client: AsyncClient, data: bytes = SPEECH, **audio: int) -> list[Event]:
    """As Home Assistant does it."""
    audio = {**FORMAT, **audio}
    await client.write_event(Transcribe(language="en").event())
    await client.write_event(AudioStart(**audio).event())
    for start in range(0, len(data), 2048):
        await client.write_event(AudioChunk(audio=data[start : start + 2048], **audio).event())
    await client.write_event(AudioStop().event())
    return await until(client, "transcript")


async def text(client: AsyncClient, data: bytes = SPEECH, **audio: int) -> str:
    return Transcript.from_event((await utterance(client, data, **audio))[-1]).text


def test_set_up() -> None:
    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server, connected(server) as client:
            await client.write_event(Describe().event())
            info = Info.from_event((await until(client, "info"))[-1])
            (model,) = info.asr[0].models
            assert (model.name, model.installed, model.languages) == ("planted", True, ["en"])
            assert info.asr[0].supports_transcript_streaming
            await client.write_event(Ping(text="a").event())
            assert Pong.from_event((await until(client, "pong"))[-1]).text == "a"
            await client.write_event(Event("select-program", {"name": "x"}))
            async with connected(server) as other:  # who only asks takes no place
                assert await text(other) == "HELLO WORLD GOOD DAY"

    run(test())


def test_models_are_offered_for_their_languages() -> None:
    async def test() -> None:
        german = PlantedModel(name="someone/wav2vec2-large-xlsr-53-german")
        french = PlantedModel(name="./mine", config=SimpleNamespace(extra={"language": "fr"}))
        async with serving(others=[german, french]) as server, connected(server) as client:
            await client.write_event(Describe().event())
            info = Info.from_event((await until(client, "info"))[-1])
            assert [model.languages for model in info.asr[0].models] == [["en"], ["de"], ["fr"]]
            await client.write_event(Transcribe(name=german.name).event())
            await client.write_event(AudioStop().event())
            assert Transcript.from_event((await until(client, "transcript"))[-1]).language == "de"

    run(test())


@pytest.mark.parametrize(
    ("name", "extra", "language"),
    [
        ("streamer-en", {}, "en"),
        ("facebook/wav2vec2-base-960h", {}, "en"),
        ("a/wav2vec2-xlsr-sv", {}, "sv"),
        ("a/wav2vec2-german", {"language": "Dutch"}, "nl"),
        ("a/b", {"language": "cy"}, "cy"),
        ("a/b", {"language": None}, "en"),
    ],
)
def test_languages_of_models(name: str, extra: dict[str, object], language: str) -> None:
    assert language_of(name, extra) == language


def test_utterances_of_one_connection() -> None:
    async def test() -> None:
        async with serving(access=Access(("secret",))) as server, connected(server) as client:
            for _ in range(2):
                events = await utterance(client)
                chunks = [
                    TranscriptChunk.from_event(event).text for event in events if event.type == "transcript-chunk"
                ]
                assert chunks == ["HELLO WORLD", " GOOD DAY"]
                assert Transcript.from_event(events[-1]).text == "".join(chunks)
                assert Transcript.from_event(events[-1]).language == "en"
                assert (await until(client, "transcript-stop"))[-1].type == "transcript-stop"
            await client.write_event(AudioStart(**FORMAT).event())
            await client.write_event(AudioChunk(audio=SPEECH, **FORMAT).event())
            assert await text(client) == "HELLO WORLD GOOD DAY"  # a new start gives up what was not ended
            await client.write_event(AudioStop().event())
            assert Transcript.from_event((await until(client, "transcript"))[-1]).text == ""

    run(test())


def test_formats() -> None:
    stereo = np.repeat(PLANTED, 2)
    wide = (PLANTED.astype(np.float64) * 2**31).astype("<i4")

    async def test() -> None:
        async with serving() as server, connected(server) as client:
            assert await text(client, encode_pcm16(stereo), channels=2) == "HELLO WORLD GOOD DAY"
            assert await text(client, wide.tobytes(), width=4) == "HELLO WORLD GOOD DAY"
            await client.write_event(AudioChunk(audio=SPEECH, **FORMAT).event())  # without a start
            await client.write_event(AudioStop().event())
            assert Transcript.from_event((await until(client, "transcript"))[-1]).text == "HELLO WORLD GOOD DAY"

    run(test())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"type": 1}\n',
        b'{"type": "ping", "payload_length": 99999999999}\n',
        b'{"type": "ping", "data_length": -1}\n',
        b'{"type": "audio-start", "data": {"rate": 1, "width": 2, "channels": 1}}\n',
        b'{"type": "audio-start"}\n',
        b"x" * 70_000,
    ],
)
def test_what_is_wrong_is_told_and_ends_the_connection(sent: bytes) -> None:
    async def test() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port)
            writer.write(sent)
            header, _, data = (await reader.read()).partition(b"\n")
            assert json.loads(header)["type"] == "error"
            assert json.loads(data)["text"]
            writer.close()
            await writer.wait_closed()
            async with connected(server) as client:
                assert await text(client) == "HELLO WORLD GOOD DAY"

    run(test())


def test_half_a_surrogate_pair_amid_an_utterance() -> None:
    async def test() -> None:
        async with serving() as server, connected(server) as client:
            await client.write_event(AudioStart(**FORMAT).event())
            await client.write_event(AudioChunk(audio=SPEECH, **FORMAT).event())
            client._writer.write(b'{"type": "transcribe", "data": {"language": "e\\ud83d"}}\n')  # type: ignore[union-attr]
            await client.write_event(AudioStop().event())
            transcript = Transcript.from_event((await until(client, "transcript"))[-1])
            assert (transcript.text, transcript.language) == ("HELLO WORLD GOOD DAY", "e\ud83d")

    run(test())


def test_what_cannot_be_told_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Wyoming) -> None:
        raise KeyError("secret detail")

    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server:
            with monkeypatch.context() as patch:
                patch.setattr(Wyoming, "conclude", broken)
                async with connected(server) as client:
                    await client.write_event(AudioStart(**FORMAT).event())
                    await client.write_event(AudioStop().event())
                    (*_, error) = await until(client, "error")
                    assert error.data["code"] == "internal"
                    assert await client.read_event() is None
            async with connected(server) as client:
                assert await text(client) == "HELLO WORLD GOOD DAY"

    run(test())
    assert "secret detail" in caplog.text


def test_no_room_and_early_close() -> None:
    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server:
            async with connected(server) as client:
                await client.write_event(AudioStart(**FORMAT).event())
                await until(client, "transcript-start")
                async with connected(server) as other:
                    await other.write_event(AudioStart(**FORMAT).event())
                    (*_, error) = await until(other, "error")
                    assert error.data["code"] == "busy"
                    assert await other.read_event() is None
            while server.hub.live:
                await asyncio.sleep(0)
            async with connected(server) as client:
                assert await text(client) == "HELLO WORLD GOOD DAY"

    run(test())


def test_shutdown_brings_the_last_words() -> None:
    async def test() -> None:
        async with serving() as server, connected(server) as client, connected(server) as idle:
            await idle.write_event(Ping().event())
            await until(idle, "pong")
            await client.write_event(AudioStart(**FORMAT).event())
            await client.write_event(AudioChunk(audio=SPEECH, **FORMAT).event())
            await client.write_event(Ping().event())
            await until(client, "pong")
            server.server.should_exit = True
            assert Transcript.from_event((await until(client, "transcript"))[-1]).text == "HELLO WORLD GOOD DAY"

    run(test())


def test_framing_does_not_depend_on_the_pieces() -> None:
    events = [Told("a", {"x": "ä"}, b"\n{}"), Told("b"), Told("c", {"y": 1})]
    data = b"".join(event.encode() for event in events) + b'{"type": "d", "data": {"z": 2}}\n'
    reader = Reader()
    got = [event for i in range(len(data)) for event in reader.push(data[i : i + 1])]
    assert got == [*events, Told("d", {"z": 2})]
    with pytest.raises(FramingError):
        reader.push(b"[]\n")


def test_widths() -> None:
    assert to_int16(bytes([128, 255, 0]), 1) == np.array([0, 127 << 8, -128 << 8], "<i2").tobytes()
    assert to_int16(bytes([9, 1, 2, 9, 3, 4, 5]), 3) == bytes([1, 2, 3, 4])
