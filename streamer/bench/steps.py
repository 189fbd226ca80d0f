"""What a step of a session costs beside the model: stitching, decoding, and all else until its events are there."""

from __future__ import annotations

import gc
import time
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from core.audio import HOP, SAMPLE_RATE, Samples
from core.decoder import Decode, GreedyDecoder, WordSpan
from core.engine import Engine
from core.stitcher import LogProbs
from core.stream import Stream
from core.windows import StreamConfig
from streamer.bench.metrics import percentiles

LEAST_S = 12  # of audio; shorter recordings are repeated
SESSIONS = 1000  # that are stepped together
ROUNDS = 4  # of those, the first of which does not count


@dataclass(frozen=True, slots=True)
class TimedDecode:
    """A decoder, and the processor seconds of its calls."""

    decode: Decode
    seconds: list[float] = field(default_factory=list)

    def __call__(self, log_probs: LogProbs, start_frame: int) -> list[WordSpan]:
        began = time.process_time()
        spans = self.decode(log_probs, start_frame)
        self.seconds.append(time.process_time() - began)
        return spans


def session_s(engine: Engine, samples: Samples, config: StreamConfig) -> float:
    """Processor seconds of a whole session, final passes and all."""
    stream = engine.new_stream(config)
    began = time.process_time()
    for start in range(0, len(samples), HOP * config.hop):
        stream.push(samples[start : start + HOP * config.hop])
        engine.drain(stream)
    stream.finish()
    engine.drain(stream)
    return time.process_time() - began


def measure_steps(engine: Engine, samples: Samples, config: StreamConfig) -> dict[str, dict[str, float]]:
    """Percentiles in µs a step of one session, right after the model: `stitch`, `decode`, `other` and the `whole`.

    `again` is the whole of the same step of another session, which finds in the caches what it needs. With the greedy
    decoder `of_1000` is that of so many sessions, in other places of the recording, which are stepped together.
    """
    samples = np.resize(samples, max(len(samples), LEAST_S * SAMPLE_RATE))
    is_greedy = isinstance(engine.decode, GreedyDecoder)
    decode = TimedDecode(engine.decode)
    stream = engine.new_stream(config) if is_greedy else engine.new_stream(config, decode)
    twin = engine.new_stream(config)
    micros: dict[str, list[float]] = {"stitch": [], "decode": [], "other": [], "whole": [], "again": []}
    emitted: list[LogProbs] = []
    twins: list[Stream] = []  # as they are before each pass
    samples = samples[: stream.room]
    stream.push(samples)
    twin.push(samples)
    while (task := stream.next_pass()) is not None:
        emitted += engine.model.emit([engine.window(stream, task)])
        decode.seconds.clear()
        times = [time.process_time()]
        frames = engine.stitch([(stream, task)], emitted[-1:])
        times.append(time.process_time())
        joined = engine.look([(stream, task)], frames)  # decodes greedily, or leaves it to `apply`
        times.append(time.process_time())
        engine.apply(stream, task, emitted[-1], *joined)
        times.append(time.process_time())
        twins.append(fork(twin))
        times.append(time.process_time())
        engine.apply(twin, task, emitted[-1])
        times.append(time.process_time())
        if task.cut is None:
            stitch, spell, rest, _, again = np.diff(times).tolist()
            decoded = sum(decode.seconds)
            parts = {"stitch": stitch, "decode": spell + decoded, "other": rest - decoded}
            parts |= {"whole": stitch + spell + rest, "again": again}
            for name, seconds in parts.items():
                micros[name].append(1e6 * seconds)
    if is_greedy:
        micros[f"of_{SESSIONS}"] = steps_at_once(engine, twins, emitted)
    return {name: percentiles(values, 1) for name, values in micros.items()}


def fork(stream: Stream) -> Stream:
    """A stream with the same past."""
    twin = copy(stream)
    twin.buffer = copy(stream.buffer)
    return twin


def steps_at_once(engine: Engine, streams: list[Stream], emitted: list[LogProbs]) -> list[float]:
    """µs a step of `SESSIONS` streams, in each of a few rounds.

    Args:
        streams: one before each pass of a recording.
        emitted: what the model made of each pass's window.
    """
    n_places = max(1, len(streams) - ROUNDS)
    places = [i % n_places for i in range(SESSIONS)]
    forks = [fork(streams[place]) for place in places]
    gc.collect()
    gc.freeze()  # as `streamer serve` does
    micros = []
    for turn in range(min(ROUNDS, len(streams))):
        tasks = [(stream, task) for stream in forks if (task := stream.next_pass()) is not None]
        rows = [emitted[place + turn] for place in places]
        steps = [i for i, (_, task) in enumerate(tasks) if task.cut is None]
        work, heard = [tasks[i] for i in steps], [rows[i] for i in steps]
        began = time.process_time()
        engine.apply_all(work, heard)
        micros.append(1e6 * (time.process_time() - began) / max(1, len(steps)))
        for (stream, task), log_probs in zip(tasks, rows, strict=True):
            if task.cut is not None:
                engine.finalize(stream, task, log_probs)
    gc.unfreeze()
    return micros[1:]
