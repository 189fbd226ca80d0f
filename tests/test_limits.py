"""Clients that take their time, read nothing, or send too much: they are cut off, and hold nothing for ever."""

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from planted import plant
from serving import Serving, serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from core.audio import encode_pcm16
from streamer.hub import PIECE, frames_of
from streamer.limits import Limits

SPEECH = encode_pcm16(plant("HELLO WORLD~~")[:-80])
UPGRADE = b"GET /v1/stream?latency=low HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
RAW = "encoding=linear16&sample_rate=16000"


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await test

    asyncio.run(bounded())


def frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A masked frame of a client."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0xFE]) + len(payload).to_bytes(2, "big")
    return bytes([(fin << 7) | opcode]) + length + bytes(4) + payload


async def transcribe(url: str, data: bytes, **options: Any) -> str:
    """Of a client of Deepgram's protocol that sends all in one message."""
    async with connect(f"{url}/v1/listen?{RAW}", **options) as connection:
        await connection.send(data)
        await connection.send('{"type": "CloseStream"}')
        texts = []
        with contextlib.suppress(ConnectionClosed):
            async for text in connection:
                message = json.loads(text)
                if message["type"] == "Results":
                    texts.append(message["channel"]["alternatives"][0]["transcript"])
        assert connection.close_code == 1000
    return " ".join(text for text in texts if text)


def address(server: Serving, scheme: str = "ws") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def test_slow_clients_over_tls(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))

    async def test() -> None:
        # Longer than a handshake takes on a busy machine; asyncio itself would give it a minute.
        async with serving(limits=Limits(header_s=4.0), tls=certificate) as server:
            for start in (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):  # nothing, half a ClientHello
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(start)
                async with asyncio.timeout(30):
                    assert await reader.read() == b""
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
            writer.write(UPGRADE)  # whose headers do not end
            async with asyncio.timeout(30):
                assert (await reader.read()).startswith(b"HTTP/1.1 408")
            writer.close()
            assert await transcribe(address(server, "wss"), SPEECH, ssl=context) == "HELLO WORLD"

    run(test())


def narrow(server: Serving, port: int) -> socket.socket:
    """A connection whose buffers hold little."""
    for one in server.server.servers:
        one.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


@pytest.mark.parametrize("protocol", ["native", "wyoming"])
def test_who_reads_nothing_loses_the_place(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.http.UNREAD_S", 0.1)
    monkeypatch.setattr("streamer.tcp.UNREAD_S", 0.1)
    audio = b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1}}\n'
    beginning, flood = {
        "native": (UPGRADE + KEY, frame(1, b"x")),
        "wyoming": (audio, b'{"type": "describe"}\n'),
    }[protocol]

    async def test() -> None:
        limits = Limits(sessions=1, unread_s=0.3, resume_s=0.0, messages_per_s=1e9)
        async with serving(limits=limits) as server:
            loop = asyncio.get_running_loop()
            client = narrow(server, server.port if protocol == "native" else server.wyoming_port)
            await loop.sock_sendall(client, beginning)
            flooding = asyncio.create_task(loop.sock_sendall(client, flood * 200_000))
            async with asyncio.timeout(60):
                while b"streamer_sessions_started_total 1.0" not in server.hub.metrics.text():
                    await asyncio.sleep(0.01)
                while server.hub.live or server.server.server_state.connections:
                    await asyncio.sleep(0.01)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            client.close()
            assert await transcribe(address(server), SPEECH) == "HELLO WORLD"

    run(test())


def test_a_recording_in_one_message_and_no_more_than_that() -> None:
    async def test() -> None:
        async with serving(limits=Limits(message_bytes=PIECE, whole_bytes=1 << 20, speed=1e9)) as server:
            long = (SPEECH + bytes(640 - len(SPEECH) % 640)) * 5
            assert 2 * PIECE < len(long) < 1 << 20
            assert await transcribe(address(server), long) == " ".join(["HELLO WORLD"] * 5)
            for path, n in ((f"listen?{RAW}", (1 << 20) + 1), ("stream?latency=low", PIECE + 1)):
                async with connect(f"{address(server)}/v1/{path}") as connection:
                    await connection.send(bytes(n))
                    with pytest.raises(ConnectionClosed):
                        while True:
                            await connection.recv()
                    assert connection.close_code == 1009

    run(test())


def test_a_message_of_many_fragments_is_as_small_as_one_of_one() -> None:
    async def test() -> None:
        async with serving(limits=Limits(whole_bytes=1 << 20)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(UPGRADE.replace(b"stream?latency=low", f"listen?{RAW}".encode()) + KEY)
            await reader.readuntil(b"\r\n\r\n")
            piece = bytes(1 << 15)
            writer.write(frame(2, piece, fin=False) + frame(0, piece, fin=False) * 32)
            assert (1009).to_bytes(2, "big") in await reader.read()
            writer.close()
            assert await transcribe(address(server), SPEECH) == "HELLO WORLD"

    run(test())


def test_pieces() -> None:
    data = bytes(range(256)) * (PIECE // 100)
    assert b"".join(map(bytes, frames_of({"bytes": data}, True))) == data  # type: ignore[arg-type]
    assert max(len(piece) for piece in frames_of({"bytes": data}, True)) == PIECE
    assert list(frames_of({"bytes": data}, False)) == [data]
    assert list(frames_of({"bytes": b""}, True)) == [b""]  # which means something to Deepgram's clients
    assert list(frames_of({"text": "x"}, True)) == ["x"]
