"""Deepgram's own clients, sync and async, over loopback; and what they do not show, without any socket."""

import asyncio
import contextlib
import json
import sys
import threading
import warnings
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from planted import plant
from serving import Serving, serving
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from core.audio import encode_pcm16
from core.transcript import Transcript, Word
from streamer.auth import Access
from streamer.job import Command, Finished, Flushed, Progress
from streamer.limits import Limits
from streamer.protocols.deepgram import QueryError, parse
from streamer.protocols.deepgram_session import Deepgram
from streamer.protocols.native import Start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from deepgram import AsyncDeepgramClient, DeepgramClient
    from deepgram.core.api_error import ApiError
    from deepgram.core.events import EventType
    from deepgram.environment import DeepgramClientEnvironment

# The SDK uses the old client of websockets.
pytestmark = pytest.mark.filterwarnings("ignore:.*websockets:DeprecationWarning")
SPEECH = encode_pcm16(plant("HELLO WORLD~~GOOD DAY~")[:-80])  # whole frames of 20 ms: planted text is on that grid
LINEAR = {"model": "nova-3", "encoding": "linear16", "sample_rate": 16000}
RAW = "encoding=linear16&sample_rate=16000"
FINALIZE, CLOSE = '{"type": "Finalize"}', '{"type": "CloseStream"}'


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())


def environment(port: int) -> DeepgramClientEnvironment:
    http, ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
    return DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)


def url(server: Serving, query: str = RAW) -> str:
    return f"ws://127.0.0.1:{server.port}/v1/listen?{query}"


async def rest(connection: ClientConnection) -> list[dict[str, Any]]:
    everything = []
    with contextlib.suppress(ConnectionClosed):
        async for text in connection:
            everything.append(json.loads(text))
    return everything


def finals(messages: list[dict[str, Any]]) -> str:
    said = [m["channel"]["alternatives"][0]["transcript"] for m in messages if m["type"] == "Results" and m["is_final"]]
    return " ".join(text for text in said if text)


def check_spans(messages: list[dict[str, Any]]) -> None:
    """Final spans follow each other without a gap; interim ones begin where the last of them ended."""
    at: dict[int, float] = {}
    for message in messages:
        if message["type"] == "Results":
            channel = message["channel_index"][0]
            assert message["start"] == pytest.approx(at.get(channel, 0.0), abs=0.002)
            if message["is_final"]:
                at[channel] = message["start"] + message["duration"]


def test_async_sdk() -> None:
    async def test() -> None:
        async with serving() as server:
            client = AsyncDeepgramClient(api_key="x", environment=environment(server.port))
            heard: list[Any] = []
            async with client.listen.v1.connect(**LINEAR, interim_results=True, smart_format=True) as connection:
                connection.on(EventType.MESSAGE, heard.append)
                listening = asyncio.create_task(connection.start_listening())
                for start in range(0, len(SPEECH), 3200):
                    await connection.send_media(SPEECH[start : start + 3200])
                    while start == 12 * 3200 and not heard:  # all at once may be final at once
                        await asyncio.sleep(0.01)
                await connection.send_keep_alive()
                await connection.send_close_stream()
                await listening
        assert None not in heard
        results = [message for message in heard if message.type == "Results"]
        assert heard[-1].type == "Metadata"
        assert heard[-1].duration == pytest.approx(len(SPEECH) / 32000)
        final = [m for m in results if m.is_final and m.channel.alternatives[0].transcript]
        assert [m.channel.alternatives[0].transcript for m in final] == ["HELLO WORLD", "GOOD DAY"]
        assert final[0].speech_final
        word = final[1].channel.alternatives[0].words[0]
        assert (word.word, word.punctuated_word) == ("GOOD", "GOOD")
        assert word.start > 2.5
        assert final[0].metadata.model_info.name == "planted"
        assert any(not m.is_final for m in results)
        check_spans([m.model_dump() for m in results])

    run(test())


def test_sync_sdk() -> None:
    def talk(port: int) -> list[Any]:
        client = DeepgramClient(api_key="x", environment=environment(port))
        heard: list[Any] = []
        with client.listen.v1.connect(**LINEAR) as connection:
            connection.on(EventType.MESSAGE, heard.append)
            listener = threading.Thread(target=connection.start_listening)
            listener.start()
            connection.send_media(SPEECH)
            connection.send_finalize()
            connection.send_close_stream()
            listener.join(30)
        return heard

    async def test() -> None:
        async with serving() as server:
            heard = await asyncio.to_thread(talk, server.port)
        assert finals([message.model_dump() for message in heard]) == "HELLO WORLD GOOD DAY"
        assert all(message.is_final for message in heard if message.type == "Results")
        assert [m.from_finalize for m in heard if m.type == "Results"].count(True) == 1
        assert heard[-1].type == "Metadata"

    run(test())


def test_a_wrong_key_is_told_as_the_sdk_expects() -> None:
    async def test() -> None:
        async with serving(access=Access(("secret",))) as server:
            client = AsyncDeepgramClient(api_key="wrong", environment=environment(server.port))
            with pytest.raises(ApiError) as caught:
                async with client.listen.v1.connect(**LINEAR):
                    pass
            assert caught.value.status_code == 401
            with pytest.raises(InvalidStatus) as refused:
                await connect(url(server))
            response = refused.value.response
            body = json.loads(response.body or b"")
            assert (body["err_code"], body["request_id"]) == ("INVALID_AUTH", response.headers["dg-request-id"])
            assert response.headers["dg-error"] == body["err_msg"]
            async with connect(url(server), subprotocols=["token", "secret"]) as connection:  # type: ignore[list-item]
                assert connection.subprotocol == "token"
                await connection.send(CLOSE)
                assert [message["type"] for message in await rest(connection)] == ["Results", "Metadata"]

    run(test())


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("encoding=linear16", "sample_rate"),
        ("encoding=linear16&sample_rate=fast", "fast"),
        ("encoding=linear16&sample_rate=1", "8000"),
        ("encoding=g729&sample_rate=8000", "g729"),
        (f"{RAW}&channels=9", "channels"),
        (f"{RAW}&interim_results=perhaps", "perhaps"),
        (f"{RAW}&utterance_end_ms=1000", "interim_results"),
        (f"{RAW}&utterance_end_ms=10&interim_results=true", "1000"),
        (f"{RAW}&endpointing=-1", "endpointing"),
    ],
)
def test_bad_parameters(query: str, found: str) -> None:
    pairs = [tuple(pair.split("=")) for pair in query.split("&")]
    with pytest.raises(QueryError, match=found):
        parse(pairs, Start())  # type: ignore[arg-type]


def test_a_bad_parameter_is_a_400_and_unknown_ones_are_nothing() -> None:
    async def test() -> None:
        async with serving() as server:
            with pytest.raises(InvalidStatus) as caught:
                await connect(url(server, "encoding=linear16"))
            assert caught.value.response.status_code == 400
            assert json.loads(caught.value.response.body or b"")["err_code"] == "INVALID_QUERY_PARAMETER"
            query = f"{RAW}&profanity_filter=True&diarize=false&numerals=false&keyterm=a&keyterm=b&tag=x&PUNCTUATE=TRUE"
            async with connect(url(server, query)) as connection:
                assert connection.response is not None
                assert connection.response.headers["dg-request-id"]
                await connection.send(SPEECH)
                await connection.send(b"")  # the older way to close
                messages = await rest(connection)
                assert finals(messages) == "HELLO WORLD GOOD DAY"
                assert messages[0]["channel"]["alternatives"][0]["words"][0]["punctuated_word"] == "HELLO"
                assert messages[0]["metadata"]["request_id"] == connection.response.headers["dg-request-id"]
                assert connection.close_code == 1000

    run(test())


def test_events_of_speech() -> None:
    async def test() -> None:
        async with serving() as server:
            query = f"{RAW}&interim_results=true&utterance_end_ms=1000&vad_events=true&endpointing=300"
            async with connect(url(server, query)) as connection:
                await connection.send(SPEECH)
                await connection.send(CLOSE)
                messages = await rest(connection)
        kinds = [m["type"] for m in messages if m["type"] != "Results" or m["is_final"]]
        assert kinds[:4] == ["SpeechStarted", "Results", "UtteranceEnd", "SpeechStarted"]
        started = [m["timestamp"] for m in messages if m["type"] == "SpeechStarted"]
        (first, *_) = (m for m in messages if m["type"] == "UtteranceEnd")
        words = [w for m in messages if m["type"] == "Results" and m["is_final"] for w in words_of(m)]
        assert started == [words[0]["start"], words[2]["start"]]
        assert first["last_word_end"] == words[1]["end"]
        check_spans(messages)

    run(test())


def words_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message["channel"]["alternatives"][0]["words"]  # type: ignore[no-any-return]


def test_two_channels() -> None:
    left, right = (plant(text)[:-80] for text in ("HELLO WORLD~~", "SOMEBODY ELSE"))
    both = np.zeros((max(len(left), len(right)), 2), np.float32)
    both[: len(left), 0], both[: len(right), 1] = left, right

    async def test() -> None:
        async with serving() as server, connect(url(server, f"{RAW}&channels=2&multichannel=true")) as connection:
            await connection.send(encode_pcm16(both.reshape(-1)))
            await connection.send(CLOSE)
            messages = await rest(connection)
        of = [[m for m in messages if m.get("channel_index") == [channel, 2]] for channel in (0, 1)]
        assert [finals(one) for one in of] == ["HELLO WORLD", "SOMEBODY ELSE"]
        assert (messages[-1]["type"], messages[-1]["channels"]) == ("Metadata", 2)
        check_spans(messages)

    run(test())


def test_nonsense_is_answered_and_the_connection_goes_on() -> None:
    async def test() -> None:
        async with serving() as server, connect(url(server)) as connection:
            for text in ("nonsense", "[1]", '{"type": "Sing"}', '{"type": "Configure", "keyterms": ["x"]}'):
                await connection.send(text)
            await connection.send('{"type": "Configure", "features": {"numerals": true}}')
            await connection.send(SPEECH)
            await connection.send(CLOSE)
            messages = await rest(connection)
        kinds = [m["type"] for m in messages]
        assert kinds[:5] == ["Error"] * 3 + ["ConfigureFailure", "ConfigureSuccess"]
        assert messages[2]["variant"] == "SchemaError"
        assert finals(messages) == "HELLO WORLD GOOD DAY"

    run(test())


def test_silence_of_the_client_ends_the_connection() -> None:
    async def test() -> None:
        async with serving(limits=Limits(idle_s=0.3)) as server, connect(url(server)) as connection:
            await connection.send(SPEECH)
            messages = await rest(connection)
            assert finals(messages) == "HELLO WORLD GOOD DAY"
            assert all(m["type"] == "Results" for m in messages)
            assert connection.close_code == 1011
            assert "net0001" in (connection.close_reason or "")

    run(test())


def test_containers_without_the_extra_are_refused_before_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    async def test() -> None:
        async with serving() as server:
            for query in ("model=nova-3", "encoding=flac"):
                with pytest.raises(InvalidStatus) as caught:
                    await connect(url(server, query))
                assert caught.value.response.status_code == 400
                assert "install streamer[media]" in caught.value.response.headers["dg-error"]
            async with connect(url(server)) as connection:
                await connection.send(SPEECH)
                await connection.send(CLOSE)
                assert finals(await rest(connection)) == "HELLO WORLD GOOD DAY"

    run(test())


def test_early_close_gives_the_place_back() -> None:
    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server:
            async with connect(url(server)) as connection:
                await connection.send(SPEECH)
                with pytest.raises(InvalidStatus) as caught:
                    await connect(url(server))
                assert caught.value.response.status_code == 503
                assert json.loads(caught.value.response.body or b"")["err_code"] == "TOO_MANY_REQUESTS"
            while server.hub.live:
                await asyncio.sleep(0)
            async with connect(url(server)) as connection:
                await connection.send(SPEECH)
                await connection.send(CLOSE)
                assert finals(await rest(connection)) == "HELLO WORLD GOOD DAY"

    run(test())


def test_what_is_no_audio() -> None:
    async def test() -> None:
        async with serving() as server:
            for sent in (b"no audio at all", b"\x1a\x45\xdf\xa3" + bytes(8000)):
                async with connect(url(server, "model=nova-3")) as connection:
                    await connection.send(sent)
                    await connection.send(CLOSE)
                    assert await rest(connection) == []
                    assert (connection.close_code, connection.close_reason) == (1008, "DATA-0000")
            async with connect(url(server)) as connection:
                with contextlib.suppress(ConnectionClosed):
                    await connection.send(bytes((24 << 20) + 1))
                await rest(connection)
                assert connection.close_code == 1009
            async with connect(url(server)) as connection:
                await connection.send(SPEECH)
                await connection.send(CLOSE)
                assert finals(await rest(connection)) == "HELLO WORLD GOOD DAY"

    run(test())


# Without a socket


def transcript(segment: int, text: str, is_final: bool, start_s: float = 0.0) -> Transcript:
    words = tuple(
        Word(word, start_s + i / 2, start_s + i / 2 + 0.4, 0.9, is_final) for i, word in enumerate(text.split())
    )
    end_s = words[-1].end_s if words else start_s
    return Transcript(segment, is_final, text, len(words) * is_final, start_s, end_s, words)


def opened(query: str = RAW) -> Deepgram:
    pairs = [tuple(pair.split("=")) for pair in query.split("&")]
    return Deepgram("id", parse(pairs, Start(model="m")), "2026-01-01T00:00:00.000Z")  # type: ignore[arg-type]


def said(session: Deepgram) -> list[Any]:
    messages = []
    while (frame := session.next_frame()) is not None:
        messages.append(json.loads(frame))
    return messages


def test_the_last_final_before_a_finalize_answers_it() -> None:
    session = opened()
    session.receive_bytes(bytes(64000))
    assert session.receive_text(FINALIZE) == [Command.FLUSH]
    session.deliver([transcript(0, "ONE", True), transcript(1, "TWO", True, 1.0)])
    (one,) = said(session)
    assert (finals([one]), one["from_finalize"], one["speech_final"]) == ("ONE", False, True)
    session.deliver([Flushed()])
    (two,) = said(session)
    assert (finals([two]), two["from_finalize"], two["is_final"]) == ("TWO", True, True)
    assert two["start"] + two["duration"] == 2.0
    session.receive_text(FINALIZE)
    session.deliver([Flushed()])
    (empty,) = said(session)
    assert (finals([empty]), empty["from_finalize"], empty["duration"]) == ("", True, 0.0)
    session.receive_text(CLOSE)
    session.deliver([Finished()])
    assert [m["type"] for m in said(session)] == ["Results", "Metadata"]
    assert session.close == (1000, "")


def test_a_segment_that_is_cut_by_its_length_is_no_end_of_speech() -> None:
    session = opened()
    session.receive_bytes(bytes(32000 * 21))
    assert session.opening is not None
    text = " ".join("WORD" for _ in range(40))
    session.deliver([transcript(0, text, False), Progress(16000 * 20), transcript(0, text[:100], True)])
    (final,) = said(session)
    assert (final["is_final"], final["speech_final"]) == (True, False)


def test_endpointing_can_be_off() -> None:
    session = opened(f"{RAW}&endpointing=false")
    session.receive_bytes(bytes(64000))
    session.deliver([transcript(0, "ONE", True)])
    assert not said(session)[0]["speech_final"]


def test_unread_interim_results_make_way() -> None:
    session = opened(f"{RAW}&interim_results=true")
    session.receive_bytes(bytes(64000))
    session.deliver([transcript(0, "ONE", False), transcript(0, "ONE TWO", False)])
    (interim,) = said(session)
    assert interim["channel"]["alternatives"][0]["transcript"] == "ONE TWO"
