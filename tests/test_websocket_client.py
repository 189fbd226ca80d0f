"""The client against a real server over loopback: exact through cuts, clear when it cannot be."""

import asyncio
import json
import socket
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted import PlantedModel, plant
from serving import Serving, serving

from clients.websocket import StreamClient, StreamError, stream_url
from core.audio import encode_pcm16
from streamer.auth import Access
from streamer.cli import main
from streamer.connect import run_connect
from streamer.limits import Limits
from streamer.session import SessionLimits

ROOT = Path(__file__).parent.parent
TEXTS = ["ONE TWO", "THREE", "FOUR FIVE", "SIX"]
SPEECH = encode_pcm16(plant("~~".join(TEXTS) + "~~"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://h:1", "ws://h:1/v1/stream"),
        ("http://h:1/", "ws://h:1/v1/stream"),
        ("https://h/x?latency=low", "wss://h/x?latency=low"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert stream_url(url) == expected


@pytest.mark.parametrize("url", ["h:1", "ftp://h", "ws://", "ws://h:x", "talk.wav"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(StreamError, match="ws://HOST:PORT"):
        stream_url(url)


async def transcribe(client: StreamClient, cut_at: list[int]) -> list[dict[str, object]]:
    """All messages of one session whose connection is torn at these bytes."""
    messages = []
    async with asyncio.timeout(20), client:
        start = 0
        for cut in [*cut_at, len(SPEECH)]:
            await client.send(SPEECH[start:cut])
            if cut < len(SPEECH):
                while client.position < client.total:  # let it go out, then tear the connection
                    await asyncio.sleep(0)
                assert client.connection is not None
                client.connection.transport.abort()
            start = cut
        await client.flush()
        await client.end()
        async for message in client:
            messages.append(message)
    return messages


def lasting(messages: list[dict[str, object]]) -> list[object]:
    return [
        (m["text"], m["words"]) if m["type"] == "final" else m["type"]
        for m in messages
        if m["type"] not in ("partial", "lag")
    ]


def test_a_torn_connection_changes_nothing() -> None:
    async def run() -> None:
        async with serving() as server:
            whole = await transcribe(StreamClient(server.url), [])
            assert [m["text"] for m in whole if m["type"] == "final"] == TEXTS
            assert [m["type"] for m in whole][-2:] == ["flushed", "end"]
            client = StreamClient(server.url)
            torn = await transcribe(client, [1001, 50_001, 50_002, 120_000])
            assert client.n_resumes >= 3
            assert lasting(torn) == lasting(whole)
            seqs = [int(str(m["seq"])) for m in torn]
            assert seqs == sorted(set(seqs))
            assert client.kept == b""
            assert torn[-1]["audio_s"] == whole[-1]["audio_s"] == round(len(SPEECH) / 32000, 6)

    asyncio.run(run())


def test_who_asks_again_after_the_end_is_not_left_waiting() -> None:
    async def run() -> None:
        async with serving() as server, asyncio.timeout(20), StreamClient(server.url) as client:
            await client.end()
            assert [message["type"] async for message in client] == ["end"]
            assert [message async for message in client] == []

    asyncio.run(run())


def test_many_torn_sessions_at_once_do_not_mix() -> None:
    async def run() -> None:
        async with serving() as server:
            cuts = [[], [7, 90_000], [33_333], [64_000, 64_001], [150_001]]
            results = await asyncio.gather(*(transcribe(StreamClient(server.url), cut) for cut in cuts))
            assert all(lasting(result) == lasting(results[0]) for result in results)

    asyncio.run(run())


def test_a_session_that_is_no_longer_kept_is_an_error() -> None:
    async def run() -> None:
        async with serving(limits=Limits(resume_s=0.0)) as server:
            client = StreamClient(server.url)
            with pytest.raises(StreamError, match="no such session"):
                await transcribe(client, [50_000])

    asyncio.run(run())


def test_the_reasons_of_a_refusal_are_told() -> None:
    async def run() -> None:
        async with serving(Access(keys=("right",)), Limits(sessions=1)) as server:
            with pytest.raises(StreamError, match="HTTP 401: expected an API key"):
                await StreamClient(server.url, api_key="wrong").__aenter__()
            with pytest.raises(StreamError, match="low, balanced, accurate"):
                await StreamClient(server.url, api_key="right", options={"latency": "fast"}).__aenter__()
            async with StreamClient(server.url, api_key="right"):
                with pytest.raises(StreamError, match="all 1 sessions are taken"):
                    await StreamClient(server.url, api_key="right").__aenter__()

    asyncio.run(run())


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(StreamError, match="cannot connect"):
        asyncio.run(StreamClient(f"ws://127.0.0.1:{port}").__aenter__())


def test_shutdown_ends_with_the_last_words() -> None:
    async def run() -> None:
        messages = []
        async with serving() as server, asyncio.timeout(20):
            async with StreamClient(server.url) as client:
                await client.send(SPEECH)
                (live,) = server.hub.live.values()
                while live.session.intake.n_frames < len(SPEECH) // 2:
                    await asyncio.sleep(0)
                server.server.should_exit = True
                with pytest.raises(StreamError, match="shutting down"):
                    async for message in client:
                        messages.append(message)
        assert messages[-1]["type"] == "end"
        assert [m["text"] for m in messages if m["type"] == "final"] == TEXTS

    asyncio.run(run())


def test_input_that_stalls_keeps_no_error_back() -> None:
    """A producer that says nothing more, but stays: the session's end is told, and the program ends."""

    async def run() -> None:
        async with serving() as server, asyncio.timeout(60):
            command = [sys.executable, "-m", "streamer", "connect", server.url, "-"]
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
            try:
                assert process.stdin is not None and process.stderr is not None
                process.stdin.write(SPEECH)
                while sum(live.session.accepted_s for live in server.hub.live.values()) < len(SPEECH) // 32_000:
                    await asyncio.sleep(0.05)
                server.server.should_exit = True
                error = await process.stderr.read()
                assert await process.wait() == 1, error
                assert b"error: ws://" in error and b"shutting down" in error
            finally:
                process.stdin.close()

    asyncio.run(run())


def connect(server: Serving, *options: str) -> int:
    return main(["connect", server.url, *options])


def test_connect_has_the_options_of_a_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stereo, mono, words = tmp_path / "both.wav", tmp_path / "mono.wav", tmp_path / "words"
    left, right = np.frombuffer(SPEECH, "<i2"), np.frombuffer(encode_pcm16(plant("SOMEBODY ELSE")), "<i2")
    both = np.zeros((len(left), 2), np.int16)
    both[:, 0], both[: len(right), 1] = left, right
    soundfile.write(stereo, both, 16000)
    soundfile.write(mono, left, 16000)
    words.write_text("kat:5\n")

    async def run() -> None:
        async with serving(others=[PlantedModel(name="second")]) as server:

            async def told(*options: str) -> tuple[int, str, str]:
                code = await asyncio.to_thread(connect, server, *options)
                return code, *capsys.readouterr()

            code, out, _ = await told("--split", "--format", "json", str(stereo))
            results = [json.loads(line) for line in out.splitlines()]
            assert [(result["path"], result["text"]) for result in results] == [
                (f"{stereo}#0", " ".join(TEXTS)),
                (f"{stereo}#1", "SOMEBODY ELSE"),
            ]
            code, out, _ = await told("--model", "second", "--endpoint-ms", "3000", "--format", "json", str(mono))
            result = json.loads(out)
            assert (code, result["model"], len(result["segments"])) == (0, "second", 1)
            code, out, error = await told("--hotwords", str(words), str(mono))
            assert (code, out.split("\n")[0]) == (0, TEXTS[0])
            assert "hot words are ignored" in error
            code, _, error = await told("--model", "third", str(mono))
            assert (code, error.count("\n")) == (1, 1)
            assert "planted, second" in error
            code, _, error = await told("--split", str(mono))
            assert (code, "two channels. Found: 1" in error) == (1, True)
            with pytest.raises(SystemExit):
                await told("--split", "--format", "srt", str(stereo))

    asyncio.run(run())


def test_connect_prints_as_a_file_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.frombuffer(SPEECH, "<i2"), 16000)
    args = {
        "is_live": False,
        "sample_rate": 16000,
        "encoding": "pcm_s16le",
        "channels": 1,
        "realtime": False,
        "output": None,
    }
    args |= {"partials": False, "api_key": None, "latency": "balanced", "input_device": None}
    args |= {"split": False, "model": None, "endpoint_ms": None, "commit_ms": None, "hotwords": None}
    args |= {"steady": False}

    async def run(kind: str) -> int:
        async with serving(limits=Limits(session=SessionLimits(backlog_s=2.0))) as server:
            return await asyncio.to_thread(run_connect, Namespace(url=server.url, file=str(path), format=kind, **args))

    assert asyncio.run(run("text")) == 0
    assert capsys.readouterr().out == "".join(text + "\n" for text in TEXTS)
    assert asyncio.run(run("json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert [segment["text"] for segment in result["segments"]] == TEXTS
    assert result["model"] == "planted"
    assert result["duration_s"] == round(len(SPEECH) / 32000, 3)
