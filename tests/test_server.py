"""The server over loopback: access, limits, health, and what broken clients do to others."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import PlantedModel, plant
from serving import Serving, serving
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from core.audio import Samples, encode_pcm16
from streamer.auth import Access, choose_subprotocol
from streamer.dialect import Dialect
from streamer.hub import Busy
from streamer.limits import Limits
from streamer.protocols.openai_realtime import Realtime
from streamer.protocols.vosk import Vosk
from streamer.recognizer import Recognizer
from streamer.serve import ServerError, check_exposure, gather_hosts, gather_keys, gather_origins, listen
from streamer.session import Session, SessionLimits

START = '{"type": "start"}'
SPEECH = encode_pcm16(plant("HELLO WORLD~~"))


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


async def messages(connection: ClientConnection) -> list[dict[str, Any]]:
    """All that comes until the close."""
    everything = []
    with contextlib.suppress(ConnectionClosed):
        async for text in connection:
            everything.append(json.loads(text))
    return everything


async def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read().decode()

    return await asyncio.to_thread(fetch)


async def refused(url: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    return caught.value.response.status_code, (caught.value.response.body or b"").decode()


async def transcribe(server: Serving, data: bytes = SPEECH, **options: Any) -> list[str]:
    async with connect(server.url, **options) as connection:
        await connection.send(START)
        await connection.send(data)
        await connection.send('{"type": "end"}')
        texts = [m["text"] for m in await messages(connection) if m["type"] == "final"]
        assert connection.close_code == 1000
        return texts


def test_a_session_as_a_plain_client_sees_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    async def test() -> None:
        async with serving() as server, connect(server.url) as connection:
            await connection.send('{"type": "start", "latency": "low"}')
            await connection.send(SPEECH[:1001])
            await connection.send(SPEECH[1001:])
            await connection.send('{"type": "flush"}')
            await connection.send("nonsense")
            await connection.send('{"type": "end"}')
            all_of_it = await messages(connection)
            assert connection.close_code == 1000
        ready, *rest = all_of_it
        assert ready["type"] == "ready"
        assert len(ready["session"]) >= 32
        assert (ready["latency"], ready["latency_ms"], ready["model"]) == ("low", 500, "planted")
        kinds = [m["type"] for m in rest if m["type"] not in ("partial", "lag", "error")]
        assert kinds == ["final", "flushed", "end"]
        (final,) = (m for m in rest if m["type"] == "final")
        assert final["text"] == "HELLO WORLD"
        assert [word["word"] for word in final["words"]] == ["HELLO", "WORLD"]
        assert [m["code"] for m in rest if m["type"] == "error"] == ["bad_json"]
        assert rest[-1]["audio_s"] == round(len(SPEECH) / 32000, 6)
        logged = [r.getMessage() for r in caplog.records if r.name.startswith(("streamer", "uvicorn"))]
        assert any("begins" in line for line in logged)
        assert not any("HELLO" in line or ready["session"] in line for line in logged)

    run(test())


def test_options_in_the_query() -> None:
    async def test() -> None:
        async with serving() as server:
            url = f"{server.url}?sample_rate=16000&partials=false&words=0"
            async with connect(url) as connection:
                await connection.send(SPEECH)
                await connection.send('{"type": "end"}')
                kinds = [m["type"] for m in await messages(connection)]
                assert set(kinds) - {"lag"} == {"ready", "final", "end"}
            async with connect(f"{server.url}?sample_rate=1") as connection:
                (error,) = await messages(connection)
                assert (error["code"], connection.close_code) == ("bad_option", 1008)

    run(test())


@pytest.mark.parametrize(
    ("first", "code"),
    [(b"\0\0", "not_started"), ('{"type": "end"}', "not_started"), ("x", "bad_json"), ("", "bad_json")],
)
def test_a_wrong_beginning(first: str | bytes, code: str) -> None:
    async def test() -> None:
        async with serving() as server, connect(server.url) as connection:
            await connection.send(first)
            (error,) = await messages(connection)
            assert error["code"] == code
            assert connection.close_code == 1008

    run(test())


def test_keys_in_every_carrier() -> None:
    async def test() -> None:
        async with serving(Access(keys=("k-1", "k-2"))) as server:
            for headers in ("Token k-1", "Bearer k-2", "bearer k-1", "k-2"):
                assert await transcribe(server, additional_headers={"Authorization": headers}) == ["HELLO WORLD"]
            for offered in (["token", "k-1"], ["bearer", "k-2"], ["realtime", "openai-insecure-api-key.k-1"]):
                async with connect(server.url, subprotocols=[Subprotocol(word) for word in offered]) as connection:
                    assert connection.subprotocol == offered[0]
            for query in ("token=k-1", "api_key=k-2"):
                async with connect(f"{server.url}?{query}") as connection:
                    await connection.send(START)
                    assert "ready" in str(await connection.recv())
            for headers in ("Bearer wrong", "Basic k-1", "Bearer "):
                status, body = await refused(server.url, additional_headers={"Authorization": headers})
                assert status == 401
                assert "expected an API key" in body
                assert "k-1" not in body
            http = server.url.replace("ws", "http").replace("/v1/stream", "")
            assert (await get(f"{http}/metrics"))[0] == 401
            assert (await get(f"{http}/metrics", {"Authorization": "Bearer k-1"}))[0] == 200
            assert (await get(f"{http}/health"))[0] == 200

    run(test())


@pytest.mark.parametrize(
    ("origin", "host", "is_loopback", "allowed"),
    [
        (None, "127.0.0.1:8000", True, True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True, True),
        ("http://localhost:3000", "127.0.0.1:8000", True, True),
        ("https://evil.example", "127.0.0.1:8000", True, False),
        ("null", "127.0.0.1:8000", True, False),
        ("http://[", "127.0.0.1:8000", True, False),
        ("http://evil.example", "evil.example", True, False),  # rebinding
        ("https://asr.example", "asr.example", False, True),
        ("https://asr.example", "ASR.example:443", False, True),
        ("https://asr.example:443", "asr.example", False, True),
        ("https://asr.example", "asr.example:80", False, False),
        ("https://friend.example:443", "asr.example", False, True),
        ("https://evil.example", "asr.example", False, False),
        ("https://friend.example", "asr.example", False, True),
        (None, None, True, False),
    ],
)
def test_origin_and_host(origin: str | None, host: str | None, is_loopback: bool, allowed: bool) -> None:
    access = Access(is_loopback=is_loopback, origins=("https://friend.example",))
    assert (access.check_host(host) and access.check_origin(origin, host)) == allowed


def test_origin_and_host_over_http(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            assert (await refused(server.url, origin="https://evil.example"))[0] == 403
            http = server.url.replace("ws", "http").replace("/v1/stream", "")
            status, body = await get(f"{http}/", {"Host": "evil.example"})
            assert status == 403
            assert "evil.example" in body

    run(test())
    assert caplog.text == ""


def test_subprotocols_never_name_the_key() -> None:
    assert choose_subprotocol(["realtime", "openai-insecure-api-key.k"]) == "realtime"
    assert choose_subprotocol(["k"]) is None


def test_a_full_server_says_so() -> None:
    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server:
            http = server.url.replace("ws", "http").replace("/v1/stream", "")
            assert (await get(f"{http}/ready"))[0] == 200
            async with connect(server.url) as first:
                await first.send(START)
                await first.recv()
                assert (await get(f"{http}/ready"))[0] == 503
                assert (await refused(f"{server.url}?sample_rate=8000"))[0] == 503
                async with connect(server.url) as second:
                    await second.send(START)
                    (error,) = await messages(second)
                    assert (error["code"], second.close_code) == ("busy", 1013)
                await first.send('{"type": "end"}')
                await messages(first)
            assert await transcribe(server) == ["HELLO WORLD"]  # finished sessions take no room

    run(test())


def test_sessions_of_one_client_are_bounded() -> None:
    async def test() -> None:
        async with serving(limits=Limits(sessions_per_client=1)) as server, connect(server.url) as first:
            await first.send(START)
            await first.recv()
            async with connect(server.url) as second:
                await second.send(START)
                (error,) = await messages(second)
                assert "has 1 sessions already" in error["message"]

    run(test())


def test_idle_and_silent_clients_are_let_go() -> None:
    async def test() -> None:
        async with serving(limits=Limits(idle_s=0.01, start_s=0.01)) as server:
            async with connect(server.url) as silent:
                assert [m["code"] for m in await messages(silent)] == ["not_started"]
            async with connect(server.url) as idle:
                await idle.send(START)
                kinds = [m["type"] for m in await messages(idle)]
                assert kinds in (["ready", "error", "end"], ["error"])

    run(test())


def test_clients_of_vosk_and_realtime_may_be_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for session in (Session, Dialect):
        monkeypatch.setattr(session, "idle_s", 0.01)

    async def test() -> None:
        async with serving() as server, connect(f"ws://127.0.0.1:{server.port}/") as vosk:
            async with connect(f"ws://127.0.0.1:{server.port}/v1/realtime") as realtime:
                await realtime.recv()
                async with connect(server.url) as native:
                    await native.send(START)
                    assert [m["type"] for m in await messages(native)] == ["ready", "error", "end"]
                await vosk.send('{"eof" : 1}')
                assert json.loads(await vosk.recv()) == {"text": ""}
                await realtime.send("no json")
                assert json.loads(await realtime.recv())["error"]["code"] == "invalid_json"

    run(test())
    assert Vosk.idle_s == Realtime.idle_s == 3600.0


def test_messages_are_bounded() -> None:
    async def test() -> None:
        async with serving(limits=Limits(message_bytes=1000)) as server, connect(server.url) as connection:
            await connection.send(START)
            await connection.send(bytes(1001))
            with pytest.raises(ConnectionClosed):
                while True:
                    await connection.recv()
            assert connection.close_code == 1009

    run(test())


class FragileModel(PlantedModel):
    def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
        if any((np.rint(window[::320] * 64) == 27).any() for window in windows):
            raise RuntimeError("secret detail")
        return super().emit(windows)


def test_one_broken_session_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(model=FragileModel()) as server:
            good = asyncio.gather(*(transcribe(server) for _ in range(3)))
            async with connect(server.url) as connection:
                await connection.send(START)
                await connection.send(encode_pcm16(plant("ZOO~~")))
                *_, error = await messages(connection)
                assert (error["code"], connection.close_code) == ("internal", 1011)
                assert "secret" not in error["message"]
            assert await good == [["HELLO WORLD"]] * 3

    run(test())


def test_a_connection_that_breaks_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Session, data: bytes) -> list[Any]:
        raise KeyError("secret detail")

    async def test() -> None:
        async with serving(limits=Limits(sessions=1)) as server:
            with monkeypatch.context() as patch:
                patch.setattr(Session, "receive_bytes", broken)
                async with connect(server.url) as connection:
                    await connection.send(START)
                    await connection.send(SPEECH)
                    await messages(connection)
                    assert (connection.close_code, connection.close_reason) == (1011, "internal")
            assert not server.hub.live
            assert await transcribe(server) == ["HELLO WORLD"]

    run(test())
    assert "secret detail" in caplog.text


def test_a_session_that_breaks_at_shutdown_leaves_the_others_their_last_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Vosk) -> list[Any]:
        raise KeyError("secret detail")

    monkeypatch.setattr(Vosk, "shut_down", broken)

    async def test() -> None:
        async with serving() as server, connect(f"ws://127.0.0.1:{server.port}/") as other:
            await other.send(bytes(1000))
            await other.recv()
            async with connect(server.url) as connection:
                await connection.send('{"type": "start", "acks": true}')
                await connection.send(SPEECH)
                while "ack" not in str(await connection.recv()):
                    pass
                server.server.should_exit = True
                said = await messages(connection)
                assert "HELLO WORLD" in [m.get("text") for m in said] and said[-1]["type"] == "end"
            await messages(other)
            assert other.close_code == 1011

    run(test())
    assert "secret detail" in caplog.text


def test_abrupt_clients_and_slow_readers() -> None:
    async def test() -> None:
        limits = Limits(resume_s=0.0, session=SessionLimits(backlog_s=1.0))
        async with serving(limits=limits) as server:
            stalled = await connect(server.url, max_queue=1)
            await stalled.send(START)
            rng = np.random.default_rng(0)
            for _ in range(5):
                connection = await connect(server.url)
                await connection.send(START)
                await connection.send(rng.bytes(999))
                connection.transport.abort()
                connection = await connect(server.url)
                connection.transport.abort()
            assert await transcribe(server) == ["HELLO WORLD"]
            stalled.transport.abort()
            async with asyncio.timeout(10):
                while server.hub.live:
                    await asyncio.sleep(0.01)
            assert not server.hub.scheduler.active
            http = server.url.replace("ws", "http").replace("/v1/stream", "")
            metrics = (await get(f"{http}/metrics"))[1]
            assert "streamer_sessions 0.0" in metrics
            assert "streamer_step_seconds_count" in metrics

    run(test())


def test_public_addresses_need_keys() -> None:
    assert check_exposure("127.0.0.1", [], False)
    assert check_exposure("localhost", [], False)
    assert check_exposure("::1", [], False)
    assert not check_exposure("0.0.0.0", ["k"], False)
    assert not check_exposure("::", [], True)
    with pytest.raises(ServerError, match="--api-key KEY, or say --allow-public"):
        check_exposure("0.0.0.0", [], False)
    with pytest.raises(ServerError, match="is empty"):
        check_exposure("127.0.0.1", [" "], False)


def test_keys_come_from_three_places(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the kitchen\nk-3\n\n k-4 \n")
    assert gather_keys(["k-1"], str(file), "k-2") == ["k-1", "k-2", "k-3", "k-4"]
    assert gather_keys([], None, "") == []
    file.write_text("# none\n")
    with pytest.raises(ServerError, match="holds no key"):
        gather_keys([], str(file), "")
    with pytest.raises(ServerError, match="cannot read --api-key-file .*No such file"):
        gather_keys([], str(tmp_path / "missing"), "")


def test_origins_are_checked_before_the_server_starts() -> None:
    given = ["HTTPS://Example.org:443", "http://localhost:3000", "http://[::1]:80"]
    assert gather_origins(given) == ("https://example.org", "http://localhost:3000", "http://[::1]")
    for wrong in (
        "example.org",
        "https://example.org/",
        "https://example.org:x",
        "https://a@example.org",
        "*",
        "https://*.example.org",
        "ws://example.org",
    ):
        with pytest.raises(ServerError, match="must be like https://example.org"):
            gather_origins([wrong])


def test_hosts_are_checked_before_the_server_starts() -> None:
    assert gather_hosts(["ASR.Example", "[FD00::1]", "10.0.0.7"]) == ("asr.example", "fd00::1", "10.0.0.7")
    for wrong in ("asr.example:8000", "[fd00::1]:80", "http://asr.example", "*", ""):
        with pytest.raises(ServerError, match="must be a name without a port, like asr.example.org"):
            gather_hosts([wrong])


async def raw(server: Serving, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    return reader, writer


def test_a_websocket_outlives_the_time_for_headers() -> None:
    async def test() -> None:
        async with serving(limits=Limits(header_s=0.05)) as server, connect(server.url) as connection:
            await connection.send('{"type": "start"}')
            assert json.loads(await connection.recv())["type"] == "ready"
            await asyncio.sleep(0.5)
            await connection.send('{"type": "end"}')
            assert json.loads(await connection.recv())["type"] == "end"

    run(test())


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1\r\n", b"\x16\x03\x01"]
)
def test_a_request_that_does_not_come_to_its_end_is_cut(data: bytes) -> None:
    async def test() -> None:
        async with serving(limits=Limits(header_s=0.05)) as server:
            reader, writer = await raw(server, data)
            answer = await reader.read()
            assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))
            writer.close()
            # A second request on a connection that is kept open has no more time than the first.
            reader, writer = await raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")
            writer.write(b"GET /he")
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
            writer.close()
            assert await transcribe(server) == ["HELLO WORLD"]

    run(test())


def test_a_body_must_not_dribble() -> None:
    async def test() -> None:
        async with serving(limits=Limits(header_s=0.05)) as server:
            head = b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"
            reader, writer = await raw(server, head)
            await reader.read()
            writer.close()
            assert not server.server.server_state.connections

    run(test())


def test_connections_are_bounded() -> None:
    async def test() -> None:
        async with serving(limits=Limits(connections=3)) as server:
            silent = [await raw(server, b"GET") for _ in range(3)]
            reader, writer = await raw(server, b"")
            assert (await reader.read()).startswith(b"HTTP/1.1 503")
            writer.close()
            for _, one in silent:
                one.close()
            async with asyncio.timeout(20):
                while server.server.server_state.connections:
                    await asyncio.sleep(0)
            assert await transcribe(server) == ["HELLO WORLD"]

    run(test())


UPGRADE = b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"


def test_a_handshake_is_no_way_around_the_checks() -> None:
    async def test() -> None:
        async with serving(Access(keys=("k",)), limits=Limits(header_s=0.05)) as server:
            reader, writer = await raw(server, UPGRADE)
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
            writer.close()
            for rest, status in ((b"\r\n", b"400"), (KEY, b"401")):
                reader, writer = await raw(server, UPGRADE + rest)
                assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
                writer.close()
            reader, writer = await raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + bytes([65]) * 100_000)
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()

    run(test())


def frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A masked frame of a client."""
    assert len(payload) < 126
    return bytes([(fin << 7) | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"\xff\xfe"), 1007),  # no UTF-8
        (frame(2, b"", fin=False) + 5000 * frame(0, b"", fin=False), 1009),  # a message of endless frames
        (frame(3, b""), 1002),
        (b"\x82\x01a", 1002),  # not masked
    ],
)
def test_frames_that_are_none(data: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server:
            reader, writer = await raw(server, UPGRADE.replace(b"stream", b"stream?latency=low") + KEY)
            await reader.readuntil(b'"type": "ready"')
            writer.write(data)
            assert code.to_bytes(2, "big") in await reader.read()
            writer.close()
            assert await transcribe(server) == ["HELLO WORLD"]

    run(test())


def test_audio_faster_than_the_pace_is_held_back_and_not_lost() -> None:
    async def test() -> None:
        async with serving(limits=Limits(speed=2.5, messages_per_s=1e9)) as server:
            loop = asyncio.get_running_loop()
            began = loop.time()
            texts = await transcribe(server, SPEECH[:-160] * 11)
            assert len(SPEECH) * 11 / 32000 > 25 + 2.5
            assert " ".join(texts).split().count("HELLO") == 11
            assert loop.time() - began > 0.5
        async with serving(limits=Limits(messages_per_s=10.0)) as server, connect(server.url) as connection:
            await connection.send(START)
            began = loop.time()
            for _ in range(105):
                await connection.send('{"type": "flush"}')
            await connection.send('{"type": "end"}')
            assert [m["type"] for m in await messages(connection)].count("flushed") == 105
            assert loop.time() - began > 0.4

    run(test())


def test_models_by_name() -> None:
    async def test() -> None:
        second = PlantedModel(name="second")
        async with serving(others=[second]) as server:
            for start, model in (({}, "planted"), ({"model": "second"}, "second"), ({"model": "planted"}, "planted")):
                async with connect(server.url) as connection:
                    await connection.send(json.dumps({"type": "start", **start}))
                    assert json.loads(await connection.recv())["model"] == model
                    await connection.send(SPEECH)
                    await connection.send('{"type": "end"}')
                    assert "HELLO WORLD" in str(await messages(connection))
            n = len(second.lengths)
            assert n > 5
            async with connect(f"{server.url}?model=third") as connection:
                (error,) = await messages(connection)
                assert error["message"] == "model must be one of planted, second. Found: 'third'"
            http = server.url.replace("ws", "http").replace("/v1/stream", "")
            assert json.loads((await get(f"{http}/ready"))[1])["models"] == ["planted", "second"]

    run(test())


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_two_channels_apart_and_mixed(rate: int) -> None:
    left, right = plant("LEFT~~~"), plant("~~RIGHT~")
    n = max(len(left), len(right))
    sides = [np.pad(side, (0, n - len(side))) for side in (left, right)]
    both = np.stack(sides, 1)
    if rate == 48_000:  # the planted words do not live through a resampler: only the shape of the answer is looked at
        both = np.repeat(both, 3, 0)

    async def test() -> None:
        async with serving() as server:
            finals = {}
            for split in ("true", "false"):
                async with connect(f"{server.url}?channels=2&split={split}&sample_rate={rate}") as connection:
                    await connection.send(encode_pcm16(both.reshape(-1))[:20_001])
                    await connection.send(encode_pcm16(both.reshape(-1))[20_001:])
                    await connection.send('{"type": "flush"}')
                    await connection.send('{"type": "end"}')
                    answers = await messages(connection)
                kinds = [m["type"] for m in answers if m["type"] in ("flushed", "end")]
                assert kinds == ["flushed", "end"]
                assert answers[0]["split"] == (split == "true")
                assert answers[-1]["audio_s"] == round(n / 16_000, 6)
                finals[split] = {(m.get("channel"), m["text"]) for m in answers if m["type"] == "final"}
            if rate == 16_000:
                assert finals["true"] == {(0, "LEFT"), (1, "RIGHT")}
            assert all(channel is None for channel, _ in finals["false"])
            async with connect(f"{server.url}?split=true") as connection:
                (error,) = await messages(connection)
                assert error["message"] == "split needs channels: 2. Found: 1"

    run(test())


def test_log_lines_of_both_formats(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import logging, sys; from streamer.log import log_to_stderr; log_to_stderr(sys.argv[1], 'info')\n"
        "logging.getLogger('a').info('b %d', 1, extra={'session': 'x'})\n"
        "try: 1/0\nexcept ZeroDivisionError: logging.getLogger('a').exception('broke')"
    )

    def lines(format: str) -> list[str]:
        command = [sys.executable, "-c", program, format]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()

    first, second = map(json.loads, lines("json"))
    assert {"level": "info", "logger": "a", "message": "b 1", "session": "x"}.items() <= first.items()
    assert first["time"].endswith("+00:00")
    assert "ZeroDivisionError" in second["exception"]
    assert lines("text")[:2] == ["streamer: info: b 1", "streamer: error: broke"]


def test_a_server_at_its_limit_says_when_to_come_back() -> None:
    class Slow(PlantedModel):
        def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
            time.sleep(0.3 * len(windows))
            return super().emit(windows)

    async def test() -> None:
        async with serving(model=Slow()) as server, connect(server.url) as first:
            await first.send(START)
            await first.recv()
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"{server.url}?sample_rate=8000")
            response = caught.value.response
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            async with connect(server.url) as second:
                await second.send(START)
                (error,) = await messages(second)
                assert (error["code"], error["retry_after_s"], second.close_code) == ("busy", 5, 1013)
                assert "would make the others late" in error["message"]

    run(test())


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(ServerError, match="cannot listen on 127.0.0.1"):
        listen("127.0.0.1", listener.getsockname()[1])


def server_arguments(port: int) -> Namespace:
    """Of `streamer serve`."""
    args = {"host": "127.0.0.1", "port": port, "api_key": [], "tls_cert": None, "tls_key": None, "max_sessions": 4}
    args |= {"allow_public": False, "model": ["x"], "device": "cpu", "dtype": "auto", "threads": None}
    args |= {"lm": "none", "hotwords": None}
    args |= {"api_key_file": None, "allow_origin": [], "allow_host": [], "sessions_per_client": None}
    args |= {"resume_seconds": 30.0, "no_load_limit": False, "wyoming_port": None, "refresh_ms": None}
    return Namespace(**args, latency="balanced")


def planted_server(monkeypatch: pytest.MonkeyPatch) -> int:
    """`run_server` will have the planted model; its port."""
    from streamer import serve as module

    class Loaded:
        load = staticmethod(lambda *args: Recognizer(PlantedModel()))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Recognizer", Loaded)
    listener = listen("127.0.0.1", 0)
    monkeypatch.setattr(module, "listen", lambda host, port: listener)
    return int(listener.getsockname()[1])


def test_a_server_whose_recogniser_has_stopped_takes_nobody_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from streamer import serve as module
    from streamer.metrics import Metrics

    def broken(self: Metrics, report: Any) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(Metrics, "on_step", broken)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    port = planted_server(monkeypatch)
    results: list[str] = []

    async def client() -> None:
        async with connect(f"ws://127.0.0.1:{port}/v1/stream") as connection:
            await connection.send(START)
            await connection.send(SPEECH)
            results.extend(m["code"] for m in await messages(connection) if m["type"] == "error")

    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(client(), 20)))
    thread.start()
    with pytest.raises(ServerError, match="the recogniser has stopped"):
        module.run_server(server_arguments(port))
    thread.join()
    assert results == ["internal"]
    assert "secret detail" in caplog.text


def test_a_stopped_recogniser_has_no_room() -> None:
    async def test() -> None:
        async with serving() as server:
            server.hub.check_room("")
            server.hub.scheduler.is_closing = True
            with pytest.raises(Busy, match="the recogniser has stopped"):
                server.hub.check_room("")

    run(test())


def test_sigterm_drains_and_returns_zero(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`run_server` in the main thread, stopped by a real signal while a session waits."""
    from streamer import serve as module

    port = planted_server(monkeypatch)
    results: list[list[dict[str, Any]]] = []

    async def client() -> None:
        async with connect(f"ws://127.0.0.1:{port}/v1/stream") as connection:
            await connection.send('{"type": "start", "acks": true}')
            await connection.send(SPEECH)
            texts = []
            while '"ack"' not in (text := str(await connection.recv())):
                texts.append(text)
            os.kill(os.getpid(), signal.SIGTERM)
            results.append([json.loads(text) for text in texts] + await messages(connection))
            assert connection.close_code == 1001

    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(client(), 20)))
    thread.start()
    assert module.run_server(server_arguments(port)) == 0
    thread.join()
    (all_of_it,) = results
    assert [m["text"] for m in all_of_it if m["type"] == "final"] == ["HELLO WORLD"]
    assert all_of_it[-1]["type"] == "end"
    err = capsys.readouterr().err
    assert "Ctrl+C stops" in err
    assert "HELLO" not in err
