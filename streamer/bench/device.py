"""`streamer bench speed` on a GPU, or with `--slots` anywhere: what batches of sessions take there, by way of windows.

Streams are stepped together, as a scheduler that is never idle would: each hears the recording from another place, a
hop at a time, and all that are ready make one batch. The time of a step is from samples on the host to events, and
the streams that a device holds are those of a batch times hop / mean step; final passes run between and are told
apart. Batches grow by doubling up to `--slots`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy, deepcopy
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from core.acoustic import AcousticModel
from core.audio import HOP, SAMPLE_RATE, Samples, n_samples_for
from core.engine import Engine
from core.layout import FirstConv, FrameConv
from core.slots import Slots
from core.stitcher import LogProbs
from core.stream import Stream
from core.windows import LATENCIES, Pass, StreamConfig
from streamer.bench.arithmetic import Clock, best_of, ceilings, clock_of, flops, timed_parts
from streamer.bench.metrics import percentiles
from streamer.bench.steps import measure_steps

WARM_UPS = 3  # rounds before those that count
SPOKEN = 200  # frames before a flush
PLANS = {latency: StreamConfig.preset(latency) for latency in LATENCIES} | {
    "4/0.64/0.64": StreamConfig(left=200, hop=32, right=32, refresh=32)
}
WHOLE = 1000  # frames to refresh, of all windows
Emit = Callable[[Sequence[Samples]], object]
Work = Sequence[tuple[Stream, Pass]]


def ways(model: AcousticModel, config: StreamConfig, n: int) -> Iterator[tuple[str, Engine, StreamConfig]]:
    """Engines that send windows in different ways, the plainest first, and how their streams are cut."""
    without, whole = copy(model), replace(config, refresh=WHOLE)
    without.n_slots = without.n_local_features = 0
    yield "whole windows", Engine(without), whole
    kinds = [("slots", without, whole)]
    if model.n_local_features:
        kinds.append(("slots, features kept", model, whole))
    if model.n_local_features or not model.halo:
        kinds.append(("slots, tail", model, config))
    for name, kind, cut in kinds:
        for captures in (False, True) if model.model.device.type == "cuda" else (False,):
            resident = copy(kind)
            resident.n_slots = n
            engine = Engine(resident)
            slots = Slots(resident, n, cut.window, cut.hop, captures, engine.is_running(cut))
            engine.slots[engine.shape(cut)] = slots
            yield f"{name}, graphs" if captures else name, engine, cut


def listeners(engine: Engine, config: StreamConfig, n: int, samples: Samples) -> Iterator[list[Stream]]:
    """Streams that have heard another hop each time, of the recording from different places."""
    streams = [engine.new_stream(config) for _ in range(n)]
    heard = [np.roll(samples, -i * len(samples) // n) for i in range(n)]
    for turn in count():
        places = np.arange(turn * config.hop * HOP, (turn + 1) * config.hop * HOP)
        for stream, speech in zip(streams, heard, strict=True):
            stream.push(speech.take(places, mode="wrap"))
        yield streams


def measure_batch(
    engine: Engine, config: StreamConfig, n: int, samples: Samples, rounds: int, clock: Clock
) -> dict[str, Any]:
    """What a step of `n` streams takes once their windows are whole."""
    first = -(-config.window // config.hop) + WARM_UPS
    emit_s: list[float] = []
    apply_s: list[float] = []
    for turn, streams in zip(range(first + rounds), listeners(engine, config, n, samples), strict=False):
        while work := [(stream, task) for stream in streams if (task := stream.next_pass()) is not None]:
            finals = [(stream, task) for stream, task in work if task.cut is not None]
            began = clock()
            emitted = engine.emit(finals or work)
            done = clock()
            engine.apply_all(finals or work, emitted)
            if not finals and turn >= first and len(work) == n:
                emit_s.append(done - began)
                apply_s.append(clock() - done)
    steps = [a + b for a, b in zip(emit_s, apply_s, strict=True)]
    mean_s = float(np.mean(steps))
    return {
        "batch": n,
        "streams": round(n * config.hop * HOP / SAMPLE_RATE / mean_s, 1),
        "step_ms": percentiles([1000 * step for step in steps]),
        "emit_ms": percentiles([1000 * seconds for seconds in emit_s]),
        "stitch_decode_us": round(1e6 * float(np.mean(apply_s)) / n, 1),
    }


def measure_overlapped(
    engine: Engine, config: StreamConfig, n: int, samples: Samples, rounds: int, clock: Clock
) -> dict[str, Any]:
    """The same of two halves of the streams: while the device runs a batch of one, the host applies the other's."""
    first = -(-config.window // config.hop) + WARM_UPS
    step_s: list[float] = []
    apply_s: list[float] = []
    with ThreadPoolExecutor(2) as pool:
        sent: list[tuple[Work, Future[list[LogProbs]]]] = []

        def settle() -> float:
            """Applies what was sent first; the seconds that the host took for it."""
            work, future = sent.pop(0)
            emitted, began = future.result(), time.perf_counter()
            engine.apply_all(work, emitted)
            return time.perf_counter() - began

        rows = listeners(engine, config, n // 2, samples), listeners(engine, config, n - n // 2, samples[::-1].copy())
        for turn in range(first + rounds):
            began, n_steps, applied = time.perf_counter(), 0, 0.0
            for half in rows:
                streams = next(half)
                while finals := [(one, task) for one in streams if (task := one.next_pass()) and task.cut is not None]:
                    while sent:
                        applied += settle()
                    paused = clock()
                    engine.apply_all(finals, engine.emit(finals))
                    began += clock() - paused
                work = [(stream, task) for stream in streams if (task := stream.next_pass()) is not None]
                sent.append((work, pool.submit(engine.emit, work)))
                n_steps += len(work)
                if len(sent) > 1:
                    applied += settle()
            if turn >= first and n_steps == n:
                step_s.append(time.perf_counter() - began)
                apply_s.append(applied)
        while sent:
            settle()
    return {
        "batch": n,
        "streams": round(n * config.hop * HOP / SAMPLE_RATE / float(np.mean(step_s)), 1),
        "step_ms": percentiles([1000 * seconds for seconds in step_s]),
        "stitch_decode_us": round(1e6 * float(np.mean(apply_s)) / n, 1),
    }


def measure_flush(
    engine: Engine, config: StreamConfig, samples: Samples, repeat: int, clock: Clock
) -> dict[str, float]:
    """Milliseconds from a flush to its final, of one stream that spoke for four seconds."""
    speech, waits = np.resize(samples, n_samples_for(SPOKEN)), []
    for _ in range(repeat + 1):
        stream: Stream = engine.new_stream(config)
        stream.push(speech)
        engine.drain(stream)
        stream.flush()
        began = clock()
        engine.drain(stream)
        waits.append(1000 * (clock() - began))
    return percentiles(waits[1:])


def is_fused(layer: nn.Module) -> bool:
    """Whether it is run by a kernel of `core.fused`."""
    return isinstance(layer, FirstConv | FrameConv) and layer.fused is not None


def emit_apart(model: AcousticModel) -> Emit:
    """The model with PyTorch's kernels for norm and GELU in the place of `core.fused`."""
    plain = copy(model)
    plain.model = deepcopy(model.model)
    for layer in plain.model.modules():
        if isinstance(layer, FirstConv | FrameConv):
            layer.fused = None
    return plain.emit


def measure_device(
    models: dict[str, AcousticModel], peers: dict[str, Emit], samples: Samples, n_slots: int, repeat: int
) -> dict[str, Any]:
    """The object that `--json` prints. Streams and parts are of the last of `models`."""
    name, model = list(models.items())[-1]
    device = model.model.device
    clock = clock_of(device)
    windows = [np.roll(samples, i) for i in range(n_slots)]
    audio_s = n_slots * len(samples) / SAMPLE_RATE
    operations = {part: n_slots * count for part, count in flops(model.config, len(samples)).items()}
    systems: dict[str, Emit] = {of: model.emit for of, model in models.items()} | peers
    if any(is_fused(layer) for layer in model.model.modules()):
        systems[f"{name}, norms apart"] = emit_apart(model)
    for emit in systems.values():
        emit(windows)  # warms up
    seconds = {of: best_of(repeat, lambda emit=emit: emit(windows), clock) for of, emit in systems.items()}  # type: ignore[misc]
    with timed_parts(model.model) as parts:
        whole = best_of(1, lambda: model.emit(windows), clock)
    host = torch.from_numpy(np.stack(windows))
    parts["copies"] = best_of(repeat, lambda: host.to(device), clock)
    parts["other"] = whole - sum(parts.values())
    result: dict[str, Any] = {
        "model": model.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "dtype": name,
        "batch": n_slots,
        "window_s": round(len(samples) / SAMPLE_RATE, 3),
        "ceilings_per_s": ceilings(repeat, device),
        "flop_per_audio_s": sum(operations.values()) / audio_s,
        "offline": {
            of: {
                "audio_s_per_s": round(audio_s / taken, 2),
                "flop_per_s": sum(operations.values()) / taken,
                "times_float32": round(seconds["float32"] / taken, 3),
            }
            for of, taken in seconds.items()
        },
        "parts": {
            part: {"s_per_audio_s": taken / audio_s}
            | ({"flop_per_s": operations[part] / taken} if part in operations else {})
            for part, taken in parts.items()
        },
        "streams": {},
    }
    for latency, config in PLANS.items():
        of_latency: dict[str, Any] = {
            "hop_s": config.hop * HOP / SAMPLE_RATE,
            "latency_ms": config.algorithmic_latency_ms,
            "window_s": round(n_samples_for(config.window) / SAMPLE_RATE, 3),
            "ways": {},
        }
        sizes = [1 << i for i in range(n_slots.bit_length())]
        rounds, most = repeat * (10 if device.type == "cuda" else 1), 0.0
        for way, engine, cut in ways(model, config, n_slots):
            batches = [measure_batch(engine, cut, n, samples, rounds, clock) for n in sizes]
            flush_ms = measure_flush(engine, cut, samples, repeat, clock)
            of_latency["ways"][way] = {"batches": batches, "flush_ms": flush_ms}
            if best(batches)["streams"] > most:
                most, fastest = best(batches)["streams"], (engine, cut, flush_ms)
        if device.type == "cuda":
            engine, cut, flush_ms = fastest
            batches = [measure_overlapped(engine, cut, n, samples, rounds, clock) for n in sizes[1:]]
            of_latency["ways"]["fastest, overlapped"] = {"batches": batches, "flush_ms": flush_ms}
        result["streams"][latency] = of_latency
    result["step_us"] = {"greedy": measure_steps(Engine(model), samples, StreamConfig.preset("balanced"))}
    return result


def best(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch by which the device holds the most streams."""
    return max(batches, key=lambda batch: float(batch["streams"]))


def device_table(result: dict[str, Any]) -> str:
    """`measure_device`, for reading."""
    limits = ", ".join(
        f"{name} {value / 1e9:.0f} {'GB/s' if name in ('copy', 'from host') else 'GFLOP/s'}"
        for name, value in result["ceilings_per_s"].items()
    )
    most = result["ceilings_per_s"].get("bfloat16" if result["dtype"] == "bfloat16" else "float32", float("nan"))
    lines = [
        f"model {result['model']} on {result['device']}, {result['batch']} windows of {result['window_s']:.1f} s, "
        f"{result['flop_per_audio_s'] / 1e9:.1f} GFLOP a second of audio",
        f"at most: {limits}",
        "",
        f"{'offline':24} {'audio s / s':>12} {'GFLOP/s':>9} {'× float32':>10}",
    ]
    for name, of in result["offline"].items():
        speed = f"{of['audio_s_per_s']:12.1f} {of['flop_per_s'] / 1e9:9.0f} {of['times_float32']:10.2f}"
        lines.append(f"{name:24} {speed}")
    lines += ["", f"{'part, ' + result['dtype']:24} {'µs / audio s':>12} {'GFLOP/s':>9} {'of ceiling':>10}"]
    for name, of in result["parts"].items():
        pace = of.get("flop_per_s")
        share = "" if pace is None else f" {pace / 1e9:9.0f} {100 * pace / most:9.1f}%"
        lines.append(f"{name:24} {1e6 * of['s_per_audio_s']:12.1f}{share}")
    head = f"{'streams':>9} {'batch':>6} {'p50':>8} {'p99':>8} {'one: p50':>9} {'stitch+decode':>14} {'flush: p50':>11}"
    for latency, of in result["streams"].items():
        title = f"{latency}: hop {of['hop_s']:.2f} s, {of['latency_ms']} ms"
        lines += ["", f"{title:32} {head}"]
        for way, measured in of["ways"].items():
            most_streams, alone = best(measured["batches"]), measured["batches"][0]
            step = most_streams["step_ms"]
            lines.append(
                f"{way:32} {most_streams['streams']:9.1f} {most_streams['batch']:6} {step['p50']:8.2f} "
                f"{step['p99']:8.2f} {alone['step_ms']['p50']:9.2f} {most_streams['stitch_decode_us']:11.0f} µs "
                f"{measured['flush_ms']['p50']:11.2f}"
            )
    for decoder, parts in result["step_us"].items():
        lines += ["", f"{'µs a step, ' + decoder:24} {'mean':>8} {'p50':>8} {'p99':>8}"]
        for part, of in parts.items():
            lines.append(f"{part.replace('_', ' '):24} {of['mean']:8.0f} {of['p50']:8.0f} {of['p99']:8.0f}")
    return "\n".join(lines)
