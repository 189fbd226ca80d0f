"""Clients of vosk-server: in lockstep, pipelined, and single-shot; over loopback, and without any socket."""

import asyncio
import json
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
from streamer.job import Command, Finished, Flushed
from streamer.limits import Limits
from streamer.protocols.native import Start
from streamer.protocols.vosk import Vosk

CONFIG = '{"config" : {"sample_rate" : 16000.0}}'
EOF, RESET = '{"eof" : 1}', '{"reset" : 1}'
SPEECH = encode_pcm16(plant("HELLO WORLD~~GOOD DAY~")[:-80])  # whole frames of 20 ms: planted text is read on that grid
CHUNK = 6400  # bytes: 200 ms


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())


def url(server: Serving, path: str = "/") -> str:
    return f"ws://127.0.0.1:{server.port}{path}"


def chunks(data: bytes = SPEECH, size: int = CHUNK) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


async def ask(connection: ClientConnection, message: str | bytes) -> dict[str, Any]:
    """The lockstep of test.py: one message, one reply."""
    await connection.send(message)
    return json.loads(await connection.recv())  # type: ignore[no-any-return]


async def lockstep(connection: ClientConnection, data: bytes = SPEECH, size: int = CHUNK) -> list[dict[str, Any]]:
    replies = [await ask(connection, chunk) for chunk in chunks(data, size)]
    return [*replies, await ask(connection, EOF)]


def text(replies: list[dict[str, Any]]) -> str:
    return " ".join(reply["text"] for reply in replies if reply.get("text"))


def test_lockstep_client() -> None:
    async def test() -> None:
        async with serving() as server, connect(url(server)) as connection:
            await connection.send(CONFIG)
            replies = await lockstep(connection)
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1000
        assert text(replies) == "HELLO WORLD GOOD DAY"
        words = [word for reply in replies for word in reply.get("result", [])]
        assert [word["word"] for word in words] == ["HELLO", "WORLD", "GOOD", "DAY"]
        assert all(set(word) == {"conf", "start", "end", "word"} for word in words)
        assert [word["start"] for word in words] == sorted(word["start"] for word in words)
        assert words[2]["start"] > 2.5  # from the beginning of the connection, not of the utterance
        assert all(set(reply) in ({"partial"}, {"text"}, {"text", "result"}) for reply in replies)

    run(test())


def test_pipelined_client_gets_as_many_replies_as_it_sent_messages() -> None:
    async def test() -> None:
        async with serving() as server, connect(url(server, "/some/path?lang=en")) as connection:
            await connection.send(CONFIG)
            sent = [*chunks(), RESET, *chunks(), EOF]
            replies = []

            async def read() -> None:
                async for message in connection:
                    replies.append(json.loads(message))

            async with asyncio.TaskGroup() as group:
                group.create_task(read())
                for message in sent:
                    await connection.send(message)
            assert len(replies) == len(sent)
            assert text(replies) == "HELLO WORLD GOOD DAY HELLO WORLD GOOD DAY"
            assert "text" in replies[len(chunks())]
            assert connection.close_code == 1000

    run(test())


def test_single_shot_and_no_words() -> None:
    async def test() -> None:
        async with serving() as server:
            async with connect(url(server)) as connection:
                await connection.send('{"config": {"sample_rate": "16000", "words": 0, "phrase_list": ["hello"]}}')
                first, last = await lockstep(connection, size=len(SPEECH))
                assert set(first) == {"partial"}
                assert last == {"text": "HELLO WORLD GOOD DAY"}
            async with connect(url(server)) as connection:
                assert await ask(connection, EOF) == {"text": ""}
            async with connect(url(server)) as connection:
                assert await ask(connection, RESET) == {"text": ""}
                assert await ask(connection, b"") == {"partial": ""}
            async with connect(url(server)) as connection:
                await connection.send('{"config": {"sample_rate": 16000, "max_alternatives": 1}}')
                (alternative,) = (await lockstep(connection))[-1]["alternatives"]
                assert set(alternative["result"][0]) == {"start", "end", "word"}
                assert alternative["text"].endswith("GOOD DAY")
                assert 0 < alternative["confidence"] <= 1

    run(test())


def test_without_config_the_audio_has_8000_hz() -> None:
    async def test() -> None:
        async with serving() as server, connect(url(server)) as connection:
            await ask(connection, bytes(16000))
            (live,) = server.hub.live.values()
            assert live.session.accepted_s == 1.0
            assert (await ask(connection, EOF))["text"] == ""

    run(test())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("nonsense", 1007),
        ('{"config": {"sample_rate": "fast"}}', 1008),
        ('{"config": {"sample_rate": 1e300}}', 1008),
        ('{"config": {"sample_rate": 4000}}', 1008),
    ],
)
def test_what_is_wrong_ends_the_connection_and_the_server_goes_on(message: str, code: int) -> None:
    async def test() -> None:
        async with serving() as server:
            async with connect(url(server)) as connection:
                await connection.send(message)
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
                assert connection.close_code == code
            async with connect(url(server)) as connection:
                await connection.send('{"something": "else"}')
                await connection.send(CONFIG)
                assert text(await lockstep(connection)) == "HELLO WORLD GOOD DAY"

    run(test())


def test_early_close_gives_the_place_back_and_full_is_said_before_the_handshake() -> None:
    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server:
            async with connect(url(server)) as connection:
                await ask(connection, SPEECH[:CHUNK])
                with pytest.raises(InvalidStatus) as caught:
                    await connect(url(server))
                assert caught.value.response.status_code == 503
            while server.hub.live:
                await asyncio.sleep(0)
            async with connect(url(server)) as connection:
                await connection.send(CONFIG)
                assert text(await lockstep(connection)) == "HELLO WORLD GOOD DAY"

    run(test())


def test_key() -> None:
    async def test() -> None:
        async with serving(access=Access(("secret",))) as server:
            with pytest.raises(InvalidStatus) as caught:
                await connect(url(server))
            assert caught.value.response.status_code == 401
            async with connect(url(server, "/?token=secret")) as connection:
                assert await ask(connection, EOF) == {"text": ""}

    run(test())


def test_shutdown_brings_the_last_words() -> None:
    async def test() -> None:
        async with serving() as server, connect(url(server)) as connection:
            await connection.send(CONFIG)
            await ask(connection, SPEECH)
            server.server.should_exit = True
            assert json.loads(await connection.recv())["text"] == "HELLO WORLD GOOD DAY"
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1001

    run(test())


def transcript(segment: int, text: str, is_final: bool) -> Transcript:
    return Transcript(segment, is_final, text, 0, 0.0, 0.5, (Word(text, 0.0, 0.5, 0.9, is_final),))


def said(session: Vosk) -> list[Any]:
    replies = []
    while (frame := session.next_frame()) is not None:
        replies.append(json.loads(frame))
    return replies


def test_one_who_is_behind_answers_at_once_and_a_final_waits_for_its_message() -> None:
    session = Vosk("id", Start())
    samples = np.zeros(1600, np.int16).tobytes()
    session.receive_bytes(samples)
    assert said(session) == [{"partial": ""}]
    session.deliver([transcript(0, "ONE", False)])
    assert said(session) == []
    session.receive_bytes(samples)
    session.deliver([transcript(0, "ONE", True), transcript(1, "TWO", True), transcript(2, "THR", False)])
    for _ in range(3):
        session.receive_bytes(samples)
    first, second, third, fourth = said(session)
    assert (first, fourth) == ({"partial": "ONE"}, {"partial": "THR"})
    assert (second["text"], third["text"]) == ("ONE", "TWO")


def test_replies_keep_their_order_around_a_reset() -> None:
    session = Vosk("id", Start())
    samples = np.zeros(1600, np.int16).tobytes()
    session.receive_bytes(samples)
    assert session.receive_text(RESET) == [Command.FLUSH]
    session.receive_bytes(samples)
    assert session.receive_text(EOF)[-1] is Command.FINISH
    assert len(said(session)) == 1
    session.deliver([transcript(0, "ONE", True), Flushed()])
    one, partial = said(session)
    assert (one["text"], partial) == ("ONE", {"partial": ""})
    assert not session.is_over
    session.deliver([Finished()])
    assert said(session) == [{"text": ""}]
    assert session.close == (1000, "")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"sample_rate": "fast"}, "expected a number as sample_rate. Found: 'fast'"),
        ({"sample_rate": 4000.0}, "expected a sample_rate of 8000 to 48000. Found: 4000"),
        ({"max_alternatives": "many"}, "expected a number as max_alternatives. Found: 'many'"),
    ],
)
def test_the_wrong_setting_is_named(config: dict[str, object], reason: str) -> None:
    session = Vosk("id", Start())
    session.receive_text(json.dumps({"config": config}))
    assert session.close == (1008, reason)
