"""A real server process, and clients that are killed, cut off, stalled or mad: the others go on, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from clients.websocket import StreamClient
from core.audio import encode_pcm16
from streamer.bench.capacity import Server

pytestmark = pytest.mark.slow

KILLED = """
import asyncio, sys
from clients.websocket import StreamClient

async def main():
    async with StreamClient(sys.argv[1]) as client:
        print("ready", flush=True)
        while True:
            await client.send(bytes(3200))
            await asyncio.sleep(0.01)

asyncio.run(main())
"""

FIRST_HALF = """
import sys, time
from websockets.sync.client import connect

with connect(sys.argv[1]) as connection:
    connection.send('{"type": "start"}')
    print(connection.recv(), flush=True)
    data = sys.stdin.buffer.read()
    for start in range(0, len(data), 6400):
        connection.send(data[start : start + 6400])
    time.sleep(600)
"""


def noise(seconds: float, seed: int) -> bytes:
    """Bursts with pauses between them: the tiny model hears letters in the bursts."""
    rng = np.random.default_rng(seed)
    samples = 0.2 * rng.standard_normal(int(16_000 * seconds)).astype(np.float32)
    samples[(np.arange(len(samples)) // 16_000) % 4 >= 2] *= 0.001
    return encode_pcm16(samples)


class Process:
    """`streamer serve` with a random tiny model."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "streamer", "serve", "--port", "0", "--model", str(model), "--threads", "1"]
        command += ["--no-load-limit"]  # whatever else this machine has to do
        self.popen = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert self.popen.stderr is not None
        found = re.search(r" at (https?://\S+:\d+)", self.popen.stderr.readline())
        assert found is not None
        self.url = found[1]
        self.server = Server(self.url)

    async def metric(self, name: str) -> float:
        return (await self.server.metrics())[name]

    async def until(self, name: str, least: float, most: float) -> None:
        """Waits for a metric to come within bounds."""
        while not least <= await self.metric(name) <= most:
            await asyncio.sleep(0.05)

    def rss_mb(self) -> float:
        return float(psutil.Process(self.popen.pid).memory_info().rss) / 2**20

    def end(self) -> tuple[int, str]:
        """Exit code and the rest of the log."""
        self.popen.send_signal(signal.SIGTERM)
        try:
            log = self.popen.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            self.popen.kill()
            log = self.popen.communicate()[1]
        return self.popen.returncode, log


@contextlib.asynccontextmanager
async def process(model: Path, *options: str) -> AsyncIterator[Process]:
    server = await asyncio.to_thread(Process, model, *options)
    try:
        yield server
    finally:
        code, log = await asyncio.to_thread(server.end)
        assert (code, log) == (0, "")


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(240):
            await test

    asyncio.run(bounded())


async def transcript(url: str, data: bytes, packet: int = 6400) -> list[tuple[str, float]]:
    """Finals of a session through `StreamClient`, which resumes."""
    async with StreamClient(url) as client:

        async def feed() -> None:
            for start in range(0, len(data), packet):
                await client.send(data[start : start + packet])
            await client.end()

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            return [(m["text"], m["end_s"]) async for m in client if m["type"] == "final"]


class Scissors:
    """A TCP relay that cuts every connection after some bytes."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.rng = np.random.default_rng(seed)
        self.n_cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        left = int(self.rng.integers(50_000, 400_000))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal left
            while left > 0 and (data := await source.read(65536)):
                left -= len(data)
                sink.write(data[: max(0, len(data) + min(0, left))])
                await sink.drain()
            self.n_cuts += left <= 0

        tasks = [asyncio.create_task(pump(reader, up_writer)), asyncio.create_task(pump(up_reader, writer))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (writer, up_writer):
            end.transport.abort()


def test_cut_connections_lose_nothing(tiny_model_dir: Path) -> None:
    data = [noise(40, seed) for seed in range(3)]

    async def test() -> None:
        async with process(tiny_model_dir) as server:
            whole = [await transcript(server.url, some) for some in data]
            assert all(len(finals) > 1 for finals in whole), whole
            scissors = Scissors(int(server.url.rsplit(":", 1)[1]), 1)
            relay = await asyncio.start_server(scissors.serve, "127.0.0.1", 0)
            async with relay:
                url = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
                torn = await asyncio.gather(*(transcript(url, some) for some in data))
                assert scissors.n_cuts >= 5
                assert await server.metric("streamer_sessions_started_total") == 6
                assert await server.metric("streamer_gaps_total") == 0
                assert torn == whole

    run(test())


def test_twelve_at_once_say_what_each_says_alone(tiny_model_dir: Path) -> None:
    data = [noise(20, seed) for seed in range(12)]

    async def test() -> None:
        async with process(tiny_model_dir, "--dtype", "float32") as server:
            alone = [await transcript(server.url, some) for some in data]
            assert await asyncio.gather(*(transcript(server.url, some) for some in data)) == alone
            assert await server.metric("streamer_gaps_total") == 0

    run(test())


def test_killed_and_stalled_clients_leave_the_others_alone(tiny_model_dir: Path) -> None:
    data = noise(30, 7)

    async def test() -> None:
        async with process(tiny_model_dir, "--resume-seconds", "0.5") as server:
            alone = await transcript(server.url, data)
            stalled = await connect(server.url.replace("http", "ws") + "/v1/stream", max_queue=1)
            await stalled.send('{"type": "start", "acks": true}')
            sender = asyncio.create_task(flood(stalled))
            for _ in range(3):
                command = [sys.executable, "-c", KILLED, server.url]
                client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                assert client.stdout is not None
                assert await asyncio.to_thread(client.stdout.readline) == "ready\n"
                heard = await server.metric("streamer_audio_seconds_total")
                await server.until("streamer_audio_seconds_total", heard + 1, 1e9)
                client.kill()
                client.communicate()
                assert await transcript(server.url, data) == alone
            sender.cancel()
            stalled.transport.abort()
            await server.until("streamer_sessions", 0, 0)
            await server.until("streamer_sessions_lingering", 0, 0)

    async def flood(connection: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.send(bytes(32_000))
                await connection.send('{"type": "flush"}')

    run(test())


def test_a_killed_client_s_session_goes_on_in_another_process(tiny_model_dir: Path) -> None:
    """Kill -9 amid the speech; whoever has the session's id sends the rest, and the text is the uninterrupted one."""
    data = noise(30, 17)

    async def test() -> None:
        async with process(tiny_model_dir) as server:
            whole = await transcript(server.url, data)
            url = server.url.replace("http", "ws") + "/v1/stream"
            command = [sys.executable, "-c", FIRST_HALF, url]
            client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(data[: len(data) // 2 + 1])
            client.stdin.close()
            ready = json.loads(await asyncio.to_thread(client.stdout.readline))
            await server.until("streamer_audio_seconds_total", 30 + 14, 1e9)
            client.kill()
            client.wait()
            client.stdout.close()
            async with connect(url) as connection:
                resume = {"type": "resume", "session": ready["session"], "seq": ready["seq"]}
                await connection.send(json.dumps(resume))
                accepted = json.loads(await connection.recv())["samples"]
                assert 14 * 16_000 <= accepted <= len(data) // 4
                for start in range(2 * accepted, len(data), 6400):
                    await connection.send(data[start : start + 6400])
                await connection.send('{"type": "end"}')
                messages = []
                with contextlib.suppress(ConnectionClosed):
                    async for text in connection:
                        messages.append(json.loads(text))
            assert messages[-1]["type"] == "end"
            assert [(m["text"], m["end_s"]) for m in messages if m["type"] == "final"] == whole

    run(test())


def test_memory_returns(tiny_model_dir: Path) -> None:
    """Sessions that end well, badly or not at all: what they held is given back."""
    data = noise(4, 3)

    async def vanish(server: Process, seed: int) -> None:
        rng = np.random.default_rng(seed)
        connection = await connect(server.url.replace("http", "ws") + "/v1/stream")
        await connection.send('{"type": "start"}')
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20):
                await connection.send(rng.bytes(int(rng.integers(20_000))) if rng.random() < 0.7 else str(rng.random()))
        connection.transport.abort()

    async def crowd(server: Process, n: int) -> None:
        for first in range(0, n, 10):
            await asyncio.gather(
                *(transcript(server.url, data) for _ in range(5)), *(vanish(server, first + i) for i in range(5))
            )
        await server.until("streamer_sessions", 0, 0)
        await server.until("streamer_sessions_lingering", 0, 0)

    async def test() -> None:
        # float32: in other types each length of a window has kernels of its own, of which PyTorch keeps a thousand.
        async with process(tiny_model_dir, "--resume-seconds", "0.2", "--dtype", "float32") as server:
            await crowd(server, 40)
            before = server.rss_mb()
            await crowd(server, 120)
            assert server.rss_mb() < before + 25

    run(test())


def test_ten_thousand_mad_messages(tiny_model_dir: Path) -> None:
    data = noise(30, 5)

    async def mad(server: Process, seed: int) -> int:
        """Random frames, reconnecting where the server has had enough; the number sent."""
        rng = np.random.default_rng(seed)
        n = 0
        while n < 2500:
            async with connect(server.url.replace("http", "ws") + "/v1/stream", max_size=None) as connection:
                reader = asyncio.create_task(swallow(connection))
                with contextlib.suppress(ConnectionClosed):
                    for _ in range(500):
                        await connection.send(message(rng))
                        n += 1
                await connection.close()
                await reader
        return n

    def message(rng: np.random.Generator) -> bytes | str:
        kind = rng.integers(5)
        if kind == 0:
            return rng.bytes(int(rng.integers(200)))
        if kind == 1:
            return rng.bytes(int(rng.integers(200))).decode("latin-1")
        if kind == 2:
            word = str(rng.choice(["start", "flush", "end", "resume", "x"]))
            return json.dumps({"type": word, "seq": 1, "session": ""})
        start = {} if kind == 3 else {"sample_rate": int(rng.integers(99_999))}
        return json.dumps({"type": "start", **start})

    async def swallow(connection: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for _ in connection:
                pass

    async def test() -> None:
        async with process(tiny_model_dir, "--resume-seconds", "0.2", "--max-sessions", "500") as server:
            alone = await transcript(server.url, data)
            all_mad = asyncio.gather(*(mad(server, seed) for seed in range(4)))
            assert await transcript(server.url, data) == alone
            assert sum(await all_mad) >= 10_000
            assert await server.metric("streamer_sessions_failed_total") == 0

    run(test())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_with_a_key_from_a_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    cert, key, secrets = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "keys"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    secrets.write_text("sesame\n")
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--api-key-file", str(secrets)]

    async def test() -> None:
        async with process(tiny_model_dir, *options, "--log-format", "json") as server:
            url = server.url.replace("http", "ws") + "/v1/stream"
            assert url.startswith("wss://")
            context = ssl.create_default_context(cafile=str(cert))
            async with connect(url, ssl=context, additional_headers={"Authorization": "Bearer sesame"}) as connection:
                await connection.send('{"type": "start"}')
                assert "ready" in str(await connection.recv())
            with pytest.raises(InvalidStatus, match="401"):
                await connect(url, ssl=context)
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(url)

    run(test())


def test_sigterm_says_the_last_words(tiny_model_dir: Path) -> None:
    data = noise(6, 11)

    async def test() -> None:
        async with process(tiny_model_dir) as server:
            whole = await transcript(server.url, data)
            async with connect(server.url.replace("http", "ws") + "/v1/stream") as connection:
                await connection.send('{"type": "start", "acks": true}')
                await connection.send(data)
                answers = []
                async for text in connection:
                    answers.append(json.loads(text))
                    if answers[-1]["audio_s"] == 6.0 and server.popen.poll() is None:
                        server.popen.send_signal(signal.SIGTERM)
                        break
                with contextlib.suppress(ConnectionClosed):
                    async for text in connection:
                        answers.append(json.loads(text))
                assert connection.close_code == 1001
            assert [(m["text"], m["end_s"]) for m in answers if m["type"] == "final"] == whole
            assert answers[-1]["type"] == "end"
            assert await asyncio.to_thread(server.popen.wait, 60) == 0

    run(test())


MANY_LENGTHS = """
import sys
from streamer.cli import main
main(["models"])
import numpy as np, psutil, torch
torch.set_num_threads(1)
from core.acoustic import AcousticModel
model = AcousticModel.load("streamer-en", "cpu", "auto")
rss = psutil.Process().memory_info().rss
for n in range(20, 160):
    model.emit([np.zeros(320 * n + 80, np.float32)])
print((psutil.Process().memory_info().rss - rss) / 2**20, file=sys.stderr)
"""


def test_memory_does_not_grow_with_every_length_of_a_segment() -> None:
    result = subprocess.run([sys.executable, "-c", MANY_LENGTHS], capture_output=True, text=True, timeout=240)
    assert float(result.stderr) < 200, result.stderr  # 500 where kernels for each length are kept
