"""OpenAI's own SDK against a real server: realtime transcription with voice detection, manual, beta and G.711."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from planted import plant
from serving import Serving, serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from core.audio import HOP, encode_pcm16
from core.transcript import Transcript, Word
from streamer.auth import Access
from streamer.job import Command, Finished, Flushed
from streamer.protocols.native import Start
from streamer.protocols.openai_realtime import Realtime
from streamer.recognizer import Recognizer

TRANSCRIPTION = "conversation.item.input_audio_transcription"
PCM16K: dict[str, Any] = {"format": {"type": "audio/pcm", "rate": 16_000}}  # planted text stands no resampling
DONE = ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]
ADDED = ["conversation.item.added", "conversation.item.done"]


def with_connection(test: Callable[[Any], Awaitable[None]], beta: bool = False, **options: Any) -> None:
    async def main() -> None:
        async with serving(**options) as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            async with AsyncOpenAI(base_url=url, api_key="right", max_retries=0) as api, asyncio.timeout(120):
                headers = {"OpenAI-Beta": "realtime=v1"} if beta else {}
                query = {"intent": "transcription"}
                async with api.realtime.connect(extra_query=query, extra_headers=headers) as connection:
                    await test(connection)
            await gone(server)

    asyncio.run(main())


def on_grid(text: str) -> np.ndarray:
    """Planted samples that others may follow."""
    samples = plant(text)
    return samples[: len(samples) // HOP * HOP]


async def gone(server: Serving) -> None:
    async with asyncio.timeout(30):
        while server.hub.live:
            await asyncio.sleep(0.01)


async def update(connection: Any, **input: Any) -> Any:
    session = {"type": "transcription", "audio": {"input": {**PCM16K, **input}}}
    await connection.send({"type": "session.update", "session": session})
    return await until(connection, "session.updated")


async def until(connection: Any, *kinds: str) -> Any:
    """The next event of these kinds; an error is none that is passed over."""
    while True:
        event = await connection.recv()
        if event.type in kinds:
            return event
        assert event.type != "error", event


async def send(connection: Any, samples: np.ndarray, size: int = 3201) -> None:
    data = encode_pcm16(samples)
    for start in range(0, len(data), size):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + size]).decode())


async def item(connection: Any) -> tuple[list[str], str, str]:
    """The kinds of the events of one item, what its deltas add up to, and its transcript."""
    kinds, deltas, ids = [], "", set()
    while True:
        event = await connection.recv()
        assert event.type != "error", event
        kinds.append(event.type)
        if hasattr(event, "item_id") and event.item_id:
            ids.add(event.item_id)
        if event.type == f"{TRANSCRIPTION}.delta":
            deltas += event.delta
        if event.type == f"{TRANSCRIPTION}.completed":
            assert len(ids) == 1
            return kinds, deltas, event.transcript


def test_voice_detection() -> None:
    async def test(connection: Any) -> None:
        created = await connection.recv()
        assert created.type == "session.created" and created.session.type == "transcription"
        updated = await update(connection)
        assert updated.session.audio.input.turn_detection.silence_duration_ms == 500
        await send(connection, on_grid("HELLO THERE~~SECOND TURN~~"))
        kinds, deltas, transcript = await item(connection)
        assert (deltas, transcript) == ("HELLO THERE", "HELLO THERE")
        said = f"{TRANSCRIPTION}.delta"
        started = "input_audio_buffer.speech_started"
        assert [kind for kind in kinds if kind != said] == [started, *DONE, *ADDED, f"{TRANSCRIPTION}.completed"]
        assert (await item(connection))[2] == "SECOND TURN"

    with_connection(test)


def test_manual_commits() -> None:
    async def test(connection: Any) -> None:
        await update(connection, turn_detection=None)
        await send(connection, on_grid("ONE~~TWO "))
        await connection.input_audio_buffer.commit()
        kinds, deltas, transcript = await item(connection)
        assert deltas == transcript == "ONE TWO"
        assert kinds[:3] == ["input_audio_buffer.committed", *ADDED]
        await send(connection, on_grid("NOT THIS "))
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await connection.input_audio_buffer.commit()
        error = await connection.recv()
        assert error.error.code == "input_audio_buffer_commit_empty"
        await send(connection, on_grid("THIS "))
        await connection.input_audio_buffer.commit()
        assert (await item(connection))[2] == "THIS"
        await send(connection, np.zeros(16_000, np.float32))
        await connection.input_audio_buffer.commit()
        assert (await item(connection))[2] == ""

    with_connection(test)


def test_a_commit_amid_voice_detection_is_always_answered() -> None:
    async def test(connection: Any) -> None:
        await update(connection)
        await send(connection, on_grid("CUT SHORT "))
        await connection.input_audio_buffer.commit()
        assert (await item(connection))[2] == "CUT SHORT"
        await send(connection, np.zeros(8_000, np.float32))
        await connection.input_audio_buffer.commit()
        assert (await item(connection))[2] == ""

    with_connection(test)


def test_settings_may_change_amid_the_audio() -> None:
    async def test(connection: Any) -> None:
        await update(connection, turn_detection=None)
        await send(connection, on_grid("BEFORE "))
        await update(connection, turn_detection=None, transcription={"delay": "high"})
        await send(connection, on_grid("AFTER "))
        await connection.input_audio_buffer.commit()
        assert (await item(connection))[2] == "BEFORE AFTER"

    with_connection(test)


def test_a_shutdown_while_settings_change_brings_the_last_words() -> None:
    session = Realtime("x" * 20, Start(), ["planted"])
    append = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(9_600)).decode()}
    session.receive_text(json.dumps(append))
    change = {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}
    assert session.receive_text(json.dumps(change))[-1] is Command.FINISH
    assert session.shut_down() == [] and session.close is None
    session.deliver([Finished()])
    assert session.close == (1001, "shutdown")


def test_turn_detection_that_is_switched_on_while_a_commit_waits() -> None:
    session = Realtime("x" * 20, Start(), ["planted"])

    def tell(kind: str, **more: Any) -> None:
        session.receive_text(json.dumps({"type": kind, **more}))

    tell("session.update", session={"audio": {"input": {"turn_detection": None}}})
    tell("input_audio_buffer.append", audio=base64.b64encode(bytes(48_000)).decode())
    tell("input_audio_buffer.commit")
    tell("session.update", session={"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
    one = Transcript(0, True, "ONE", 1, 0.0, 0.5, (Word("ONE", 0.0, 0.5, 0.9, True),))
    session.deliver([one, Flushed(), Finished()])
    said = [json.loads(frame) for _, frame in session.unsent]
    kinds = [event["type"] for event in said if event["type"].startswith(("input", TRANSCRIPTION))]
    assert kinds == ["input_audio_buffer.committed", f"{TRANSCRIPTION}.delta", f"{TRANSCRIPTION}.completed"]
    assert said[-1]["transcript"] == "ONE"


@pytest.mark.parametrize("detection", [None, {"type": "server_vad"}])
def test_usage_is_the_duration_of_the_item(detection: dict[str, str] | None) -> None:
    session = Realtime("x" * 20, Start(), ["planted"])

    def tell(kind: str, **more: Any) -> None:
        session.receive_text(json.dumps({"type": kind, **more}))

    def final(segment: int, end_s: float) -> Transcript:
        return Transcript(segment, True, "ONE", 1, 0.0, end_s, (Word("ONE", 0.0, end_s, 0.9, True),))

    tell("session.update", session={"audio": {"input": {"turn_detection": detection}}})
    second = base64.b64encode(bytes(48_000)).decode()
    for kind in ("commit", "clear", "commit"):  # all of it comes before the engine says a word
        tell("input_audio_buffer.append", audio=second)
        if detection is None:
            tell(f"input_audio_buffer.{kind}")
    if detection is None:
        session.deliver([final(0, 0.5), Flushed(), Flushed(), Flushed()])
    else:
        session.deliver([final(0, 0.75), final(1, 2.25)])
    said = [json.loads(frame) for _, frame in session.unsent]
    seconds = [event["usage"]["seconds"] for event in said if event["type"] == f"{TRANSCRIPTION}.completed"]
    assert seconds == ([1.0, 1.0] if detection is None else [0.75, 1.5])


def test_beta_dialect() -> None:
    async def test(connection: Any) -> None:
        assert (await connection.recv()).type == "transcription_session.created"
        session = {"input_audio_format": "pcm16", "turn_detection": {"type": "server_vad", "silence_duration_ms": 350}}
        await connection.send({"type": "transcription_session.update", "session": session})
        updated = await until(connection, "transcription_session.updated")
        assert updated.session["turn_detection"]["prefix_padding_ms"] == 300
        await connection.send({"type": "input_audio_buffer.append", "audio": "AAAA" * 8000})
        await connection.input_audio_buffer.commit()
        kinds, _, transcript = await item(connection)
        assert "conversation.item.created" in kinds and transcript == ""

    with_connection(test, beta=True)


@pytest.mark.parametrize(
    "event, param",
    [
        ({"type": "response.create"}, "type"),
        ({"type": []}, "type"),
        ({"type": "transcription_session.update", "session": {"input_audio_format": []}}, "input_audio_format"),
        (
            {
                "type": "session.update",
                "session": {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": ["x"]}}}},
            },
            "session.audio.input.turn_detection.eagerness",
        ),
        ({"type": "input_audio_buffer.append", "audio": "not base64!"}, "audio"),
        ({"type": "input_audio_buffer.append"}, "audio"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
        ({"type": "session.update", "session": 7}, "session"),
        (
            {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/mp3"}}}}},
            "session.audio.input.format.type",
        ),
        (
            {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "x"}}}}},
            "session.audio.input.turn_detection.type",
        ),
        ({"type": "transcription_session.update", "session": {"input_audio_format": "wav"}}, "input_audio_format"),
    ],
)
def test_what_is_wrong_is_named_and_the_session_goes_on(event: dict[str, Any], param: str) -> None:
    async def test(connection: Any) -> None:
        await update(connection)
        await connection.send({**event, "event_id": "mine"})
        while (found := await connection.recv()).type != "error":
            pass
        assert (found.error.param, found.error.event_id) == (param, "mine")
        await send(connection, on_grid("STILL HERE~~"))
        assert (await item(connection))[2] == "STILL HERE"

    with_connection(test)


def test_half_a_surrogate_pair_is_shown_as_it_came() -> None:
    async def main() -> None:
        async with serving() as server:
            async with connect(f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription") as connection:
                await connection.recv()
                session = {"audio": {"input": {"transcription": {"prompt": "caf\ud83d"}}}}
                await connection.send(json.dumps({"type": "session.update", "session": session}))
                updated = json.loads(await connection.recv())
                assert updated["session"]["audio"]["input"]["transcription"]["prompt"] == "caf\ud83d"
            await gone(server)

    asyncio.run(main())


def test_access_and_subprotocols() -> None:
    async def main() -> None:
        async with serving(access=Access(keys=("right",))) as server:
            url = f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription"
            with pytest.raises(InvalidStatus, match="401"):
                await connect(url, additional_headers={"authorization": "Bearer wrong"})
            offered = ["realtime", "openai-insecure-api-key.right", "openai-beta.realtime-v1"]
            async with connect(url, subprotocols=offered) as connection:  # type: ignore[arg-type]
                assert connection.subprotocol == "realtime"
                assert json.loads(await connection.recv())["type"] == "transcription_session.created"
                await connection.send(b"\0\0")
                assert json.loads(await connection.recv())["type"] == "error"
                await connection.send("no json")
                assert json.loads(await connection.recv())["error"]["code"] == "invalid_json"
            await gone(server)

    asyncio.run(main())


def test_too_large_a_message_and_a_client_that_vanishes() -> None:
    async def main() -> None:
        async with serving() as server:
            url = f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription"
            append = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(15 << 20)).decode()}
            async with connect(url, max_size=None) as connection:
                with pytest.raises(ConnectionClosedError, match="1009"):
                    await connection.send(json.dumps({**append, "audio": append["audio"] * 2}))
                    while True:
                        await connection.recv()
            await gone(server)
            async with connect(url) as connection:
                await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 4000}))
                connection.transport.abort()
            await gone(server)
            async with connect(url) as connection:
                assert json.loads(await connection.recv())["type"] == "session.created"

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_real_speech(format: str) -> None:
    recognizer = Recognizer.load()
    samples, rate = soundfile.read("core/assets/sample.wav", dtype="float32")

    async def test(connection: Any) -> None:
        target = 24_000 if format == "audio/pcm" else 8_000
        await update(connection, format={"type": format}, turn_detection=None)
        file = io.BytesIO()
        subtype = {"audio/pcm": "PCM_16", "audio/pcmu": "ULAW", "audio/pcma": "ALAW"}[format]
        soundfile.write(file, soxr.resample(samples, rate, target), target, format="RAW", subtype=subtype)
        data = file.getvalue()
        for start in range(0, len(data), 9_999):
            await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + 9_999]).decode())
        await connection.input_audio_buffer.commit()
        said = (await item(connection))[2].split()
        wanted = recognizer.transcribe("core/assets/sample.wav").text.split()
        assert said == wanted if format == "audio/pcm" else len(set(said) & set(wanted)) >= len(set(wanted)) // 2

    with_connection(test, model=recognizer.model, decode=recognizer.engine.decode)


EVENTS = st.sampled_from(
    [
        {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(9_600)).decode()},
        {"type": "input_audio_buffer.append", "audio": "?"},
        {"type": "input_audio_buffer.commit"},
        {"type": "input_audio_buffer.clear"},
        {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}},
        {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}},
        {"type": "transcription_session.update", "session": {"input_audio_format": "g711_alaw"}},
        {"type": "nonsense"},
        [],
    ]
)


@settings(deadline=None, max_examples=200)
@given(events=st.lists(EVENTS, max_size=20))
def test_every_commit_is_completed_once_and_every_error_is_said(events: list[Any]) -> None:
    """Against a scheduler that hears nothing, but answers in order."""
    session = Realtime("x" * 20, Start(), ["planted"])
    for event in events:
        items = session.receive_text(json.dumps(event))
        answers = {Command.FLUSH: Flushed(), Command.FINISH: Finished()}
        session.deliver([answers[item] for item in items if isinstance(item, Command)])
        assert not session.is_behind and len(session.turns) == 1
    said = [json.loads(frame) for _, frame in session.unsent]
    committed = [event["item_id"] for event in said if event["type"] == "input_audio_buffer.committed"]
    completed = [event["item_id"] for event in said if event["type"] == f"{TRANSCRIPTION}.completed"]
    assert committed == completed and len(set(committed)) == len(committed)
    assert len({event["event_id"] for event in said}) == len(said)
    assert session.close is None
