"""`streamer bench capacity`: how many sessions one server holds in real time.

The server runs in a process of its own; this process is the clients. They connect one after the other, each at a
random time and at another place of the speech, and send it as fast as it is spoken, without pauses between the
recordings. At each level two things are measured: what the server says of its steps (from a step's audio to its
result; ten seconds at a time, their mean and the slowest), and what the clients see (from the last sample that a
partial covers to the partial). The ramp ends where 95 % of the steps no longer come within one hop, where audio is
lost, or where the server takes no more. Left to itself a server takes somewhat fewer (`--admission`).

`--start N --max N --hold 1800` is a soak of N sessions: memory is told at its start, middle and end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import urllib.request
from array import array
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from clients.file import open_audio
from clients.websocket import StreamClient, StreamError, stream_url
from core.audio import FRAMES_PER_SECOND, HOP, RECEPTIVE_FIELD, SAMPLE_RATE, encode_pcm16
from core.windows import StreamConfig
from streamer.bench.sizes import CONFIGS, save_random
from streamer.load import RECENT_S, quantile

PACKET = SAMPLE_RATE // 10  # samples in one message
PERCENTILES = (50, 95, 99)
SETTLE_S = 60.0  # of a level, at most, before it counts


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured with this many sessions."""

    sessions: int
    step_ms: dict[str, float]  # by percentile, which are those of ten seconds each, in the mean
    worst_ms: float  # 95 % of the steps of the slowest ten seconds took no longer
    partial_ms: dict[str, float]
    cpu_cores: float  # of the server; -1 where it does not say
    memory_mb: tuple[float, float, float]  # at the start, in the middle and at the end
    is_widened: bool  # the server left out steps that only show partials
    gaps: int
    lags: int  # sessions that were told that they are behind
    n_partials: int
    n_finals: int


@dataclass(eq=False)
class Speaker:
    """One client, who speaks in real time from `offset` on and begins again at the end."""

    url: str
    speech: bytes  # pcm_s16le
    offset: int  # samples
    latency: str
    api_key: str | None = None
    sent_at: array[float] = field(default_factory=lambda: array("d"))  # of each packet
    delays_s: array[float] = field(default_factory=lambda: array("d"))
    n_finals: int = 0
    n_gaps: int = 0
    is_behind: bool = False
    is_talking: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until cancelled. Raises StreamError where the server refuses, or breaks off."""
        options = {"latency": self.latency, "words": False}
        async with StreamClient(self.url, api_key=self.api_key, options=options, retry_s=0.0) as client:
            self.is_talking.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.talk(client))
                await self.listen(client)

    async def talk(self, client: StreamClient) -> None:
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        at = self.offset
        n_samples = len(self.speech) // 2
        while True:
            end = min(at + PACKET, n_samples)
            packet = self.speech[2 * at : 2 * end]
            packet += self.speech[: 2 * (PACKET - (end - at))]
            at = (at + PACKET) % n_samples
            await asyncio.sleep(began + (len(self.sent_at) + 1) * PACKET / SAMPLE_RATE - loop.time())
            self.sent_at.append(loop.time())
            await client.send(packet)

    async def listen(self, client: StreamClient) -> None:
        loop = asyncio.get_running_loop()
        async for message in client:
            if message["type"] == "partial":
                packet = (round(message["end_s"] * SAMPLE_RATE) + RECEPTIVE_FIELD - HOP - 1) // PACKET
                self.delays_s.append(loop.time() - self.sent_at[min(packet, len(self.sent_at) - 1)])
            elif message["type"] == "final":
                self.n_finals += 1
            elif message["type"] == "gap":
                self.n_gaps += 1
            elif message["type"] == "lag":
                self.is_behind = message["lag_s"] > 0
        raise StreamError("the server ended a session")


@dataclass(eq=False)
class Server:
    """A running server, and the way to its metrics."""

    url: str
    api_key: str | None = None

    async def metrics(self) -> dict[str, float]:
        """Samples by name; with a label `name:value`."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        page = stream_url(self.url).replace("ws", "http", 1).replace("/v1/stream", "/metrics")

        def fetch() -> str:
            with urllib.request.urlopen(urllib.request.Request(page, headers=headers), timeout=30) as answer:
                return str(answer.read().decode())

        found = {}
        for family in text_string_to_metric_families(await asyncio.to_thread(fetch)):
            for sample in family.samples:
                found[":".join([sample.name, *sample.labels.values()])] = float(sample.value)
        return found


@contextlib.asynccontextmanager
async def own_server(options: Sequence[str]) -> AsyncIterator[Server]:
    """`streamer serve` in a process of its own, on a free port.

    Raises:
        RuntimeError: it does not start.
    """
    command = [sys.executable, "-m", "streamer", "serve", "--port", "0", "--max-sessions", "100000", *options]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    assert process.stderr is not None
    lines: list[str] = []
    async for line in process.stderr:
        lines.append(line.decode(errors="replace").strip())
        if found := re.search(r" at (http://\S+:\d+)", lines[-1]):
            drain = asyncio.create_task(copy(process.stderr))
            try:
                yield Server(found[1])
            finally:
                await stop(process)
                await drain
            return
    raise RuntimeError(f"the server did not start: {' '.join(lines[-3:])}")


async def copy(stream: asyncio.StreamReader) -> None:
    """Its warnings are shown, and its pipe never fills."""
    async for line in stream:
        print(line.decode(errors="replace").rstrip(), file=sys.stderr)


async def stop(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(30):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class Ramp:
    """Clients that become more and more."""

    def __init__(self, server: Server, speech: bytes, latency: str, seed: int = 0) -> None:
        self.server = server
        self.speech = speech
        self.latency = latency
        self.random = random.Random(seed)
        self.speakers: list[Speaker] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def grow(self, n: int) -> bool:
        """Adds speakers until there are `n`, within some seconds; False where one is refused or broken off."""
        while len(self.speakers) < n:
            offset = self.random.randrange(len(self.speech) // 2)
            speaker = Speaker(self.server.url, self.speech, offset, self.latency, self.server.api_key)
            await asyncio.sleep(self.random.random())  # a random phase
            task = asyncio.create_task(speaker.run())
            self.speakers.append(speaker)
            self.tasks.append(task)
            talks = asyncio.create_task(speaker.is_talking.wait())
            await asyncio.wait([task, talks], return_when=asyncio.FIRST_COMPLETED)
            talks.cancel()
            if task.done():
                return False
        return True

    async def measure(self, hold_s: float) -> Level:
        """At the present level, after some time to settle."""
        settle_s = min(hold_s / 2, SETTLE_S)
        await asyncio.sleep(settle_s)
        for speaker in self.speakers:
            speaker.delays_s = array("d")
        before = await self.server.metrics()
        began = asyncio.get_running_loop().time()
        finals = sum(speaker.n_finals for speaker in self.speakers)
        n_looks = max(2, round((hold_s - settle_s) / RECENT_S))
        looks = []
        for i in range(n_looks):
            await asyncio.sleep(began + (i + 1) * (hold_s - settle_s) / n_looks - asyncio.get_running_loop().time())
            looks.append(await self.server.metrics())
        after = looks[-1]
        passed_s = asyncio.get_running_loop().time() - began
        delays = [delay for speaker in self.speakers for delay in speaker.delays_s]
        cpu_s = after.get("process_cpu_seconds_total", 0.0) - before.get("process_cpu_seconds_total", passed_s)
        steps = {q: [1000 * look[f"streamer_step_latency_seconds:{q / 100}"] for look in looks] for q in PERCENTILES}
        start, middle, end = (
            round(look.get("process_resident_memory_bytes", 0.0) / 2**20, 1)
            for look in (before, looks[n_looks // 2 - 1], after)
        )
        return Level(
            sessions=len(self.speakers),
            step_ms={f"p{q}": round(fmean(times), 1) for q, times in steps.items()},
            worst_ms=round(max(steps[95]), 1),
            partial_ms={f"p{q}": round(1000 * quantile(delays, q / 100), 1) for q in PERCENTILES},
            cpu_cores=round(cpu_s / passed_s, 3),
            memory_mb=(start, middle, end),
            is_widened=any(look["streamer_widened"] > 0 for look in looks),
            gaps=int(after["streamer_gaps_total"]),
            lags=sum(speaker.is_behind for speaker in self.speakers),
            n_partials=len(delays),
            n_finals=sum(speaker.n_finals for speaker in self.speakers) - finals,
        )

    def failure(self) -> str:
        """Why a client has ended; empty where all go on."""
        for task in self.tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                return str(error)
        return ""

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def ramp(
    server: Server,
    speech: bytes,
    latency: str,
    start: int,
    add: int,
    most: int,
    hold_s: float,
    show: Callable[[str], None],
) -> dict[str, object]:
    """The object that `--json` prints. `show` is given a line for each level, as soon as it is measured."""
    hop_ms = 1000 * StreamConfig.preset(latency).hop / FRAMES_PER_SECOND
    clients = Ramp(server, speech, latency)
    levels: list[Level] = []
    held, reason = 0, f"--max {most} reached"
    try:
        for n in range(start, most + 1, add):
            took_all = await clients.grow(n)
            if not took_all:
                reason = f"session {len(clients.speakers)} was not taken: {clients.failure()}"
                break
            level = await clients.measure(hold_s)
            levels.append(level)
            show(row(level))
            if failure := clients.failure():
                reason = f"a session broke: {failure}"
                break
            if level.step_ms["p95"] > hop_ms:
                reason = f"95 % of the steps took {level.step_ms['p95']:.0f} ms, more than the hop of {hop_ms:.0f} ms"
                break
            if level.gaps or level.lags:
                reason = f"{level.gaps} gaps, {level.lags} sessions behind"
                break
            held = n
    finally:
        await clients.end()
    return {
        "sessions_held": held,
        "ended_because": reason,
        "latency": latency,
        "hop_ms": hop_ms,
        "speech_s": round(len(speech) / 2 / SAMPLE_RATE, 1),
        "hold_s": hold_s,
        "cores": os.cpu_count(),
        "levels": [asdict(level) for level in levels],
    }


HEADER = (
    f"{'sessions':>8} {'step p50':>9} {'p95':>6} {'p99':>6} {'worst':>6} {'partial p50':>12} {'p95':>6} {'p99':>6} "
    f"{'CPU cores':>10} {'memory MB: start, middle, end':>30} {'widened':>8} {'gaps':>5} {'behind':>7}"
)  # times in ms


def row(level: Level) -> str:
    step, partial = level.step_ms, level.partial_ms
    return (
        f"{level.sessions:8} {step['p50']:9.0f} {step['p95']:6.0f} {step['p99']:6.0f} {level.worst_ms:6.0f} "
        f"{partial['p50']:12.0f} "
        f"{partial['p95']:6.0f} {partial['p99']:6.0f} {level.cpu_cores:10.2f} "
        f"{', '.join(f'{memory:.0f}' for memory in level.memory_mb):>30} "
        f"{'yes' if level.is_widened else 'no':>8} {level.gaps:5} {level.lags:7}"
    )


def read_speech(paths: Sequence[Path]) -> bytes:
    """All recordings one after the other, as 16-bit samples at 16 kHz."""
    return b"".join(encode_pcm16(np.concatenate(list(open_audio(str(path)).blocks))) for path in paths)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recordings of speech")
    parser.add_argument("--url", metavar="ws://HOST:PORT", help="measure a running server instead of an own one")
    parser.add_argument("--api-key", metavar="KEY", help="of that server")
    parser.add_argument("--config", choices=CONFIGS, help="own server: random weights of this size")
    parser.add_argument("--admission", action="store_true", help="let the own server refuse sessions, as it would")
    parser.add_argument("--refresh-ms", type=int, metavar="MS", help="as of `streamer serve`, of the own server")
    parser.add_argument("--start", type=int, default=1, metavar="N", help="sessions at first")
    parser.add_argument("--add", type=int, default=1, metavar="N", help="more sessions at each level")
    parser.add_argument("--max", type=int, default=1000, metavar="N", help="sessions at most")
    parser.add_argument("--hold", type=float, default=20.0, metavar="S", help="seconds at each level")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Raises ValueError where the options make no ramp."""
    if args.start < 1 or args.add < 1 or args.max < args.start or args.hold < 1:
        raise ValueError(
            "Expected --start and --add of at least 1, --max of at least --start, --hold of at least 1 s. "
            f"Found: {args.start}, {args.add}, {args.max}, {args.hold}"
        )
    speech = read_speech(args.files)
    show = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    show(HEADER)
    result = asyncio.run(measured(args, speech, show))
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['sessions_held']} sessions held; ended because {result['ended_because']}")
    return 0


async def measured(args: argparse.Namespace, speech: bytes, show: Callable[[str], None]) -> dict[str, object]:
    plan = (speech, args.latency, args.start, args.add, args.max, args.hold, show)
    if args.url:
        return await ramp(Server(args.url, args.api_key), *plan)
    options = [] if args.admission else ["--no-load-limit"]
    options += ["--device", args.device, "--dtype", args.dtype, "--lm", args.lm]
    if args.hotwords is not None:
        options += ["--hotwords", args.hotwords]
    if args.threads is not None:
        options += ["--threads", str(args.threads)]
    if args.refresh_ms is not None:
        options += ["--refresh-ms", str(args.refresh_ms)]
    with TemporaryDirectory() as directory:
        if args.config:
            save_random(args.config, args.model, Path(directory))
        options += ["--model", directory if args.config else args.model]
        async with own_server(options) as server:
            return await ramp(server, *plan)
