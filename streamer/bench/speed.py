"""`streamer bench speed`: how long one recording takes, whole and streamed, and in which part of the model.

Times are wall time of the best of `--repeat` runs; `CPU s` is the processor time of that run with all threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clients.file import open_audio
from core.audio import SAMPLE_RATE, Samples
from core.engine import LATENCIES
from streamer.bench.wer import peak_memory_mb
from streamer.recognizer import Recognizer, load_recognizer

PARTS = {
    "feature_extractor": "wav2vec2.feature_extractor",
    "feature_projection": "wav2vec2.feature_projection",
    "positional_convolution": "wav2vec2.encoder.pos_conv_embed",
    "lm_head": "lm_head",
}


@contextmanager
def timed_parts(recognizer: Recognizer) -> Iterator[dict[str, float]]:
    """Seconds spent in each part of the model while the block runs; `encoder_layers` is the sum of all."""
    model = recognizer.model.model
    modules = [(part, model.get_submodule(path)) for part, path in PARTS.items()]
    layers = model.get_submodule("wav2vec2.encoder.layers")
    modules += [("encoder_layers", layer) for layer in layers.children()]
    seconds: dict[str, float] = defaultdict(float)
    began: dict[int, float] = {}

    def before(module: object, _: object) -> None:
        began[id(module)] = time.perf_counter()

    def ender(part: str) -> Callable[[object, object, object], None]:
        def after(module: object, _: object, __: object) -> None:
            seconds[part] += time.perf_counter() - began[id(module)]

        return after

    hooks = [module.register_forward_pre_hook(before) for _, module in modules]
    hooks += [module.register_forward_hook(ender(part)) for part, module in modules]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def best_of(repeat: int, action: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of the fastest run."""
    runs = []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(runs)


def measure_speed(recognizer: Recognizer, samples: Samples, repeat: int) -> dict[str, Any]:
    """The object that `--json` prints; every time is divided by the recording's length."""
    audio_s = len(samples) / SAMPLE_RATE

    def per_second(offline: bool, latency: str) -> dict[str, float]:
        wall, cpu = best_of(repeat, lambda: recognizer.transcribe(samples, SAMPLE_RATE, latency, offline))
        return {"wall_s_per_audio_s": round(wall / audio_s, 5), "cpu_s_per_audio_s": round(cpu / audio_s, 5)}

    recognizer.transcribe(samples[: 5 * SAMPLE_RATE], SAMPLE_RATE, offline=True)  # warms up caches and threads
    paths = {"offline": per_second(True, "balanced")}
    paths |= {f"streaming {latency}": per_second(False, latency) for latency in LATENCIES}
    with timed_parts(recognizer) as seconds:
        recognizer.transcribe(samples, SAMPLE_RATE, offline=True)
    return {
        "model": recognizer.model.name,
        "audio_s": round(audio_s, 3),
        "paths": paths,
        "offline_parts_s_per_audio_s": {part: round(value / audio_s, 5) for part, value in seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def table(result: dict[str, Any]) -> str:
    """`measure_speed`, for reading."""
    lines = [
        f"model {result['model']}, {result['audio_s']:.1f} s of audio, peak {result['peak_memory_mb']:.0f} MB",
        "",
        f"{'path':22} {'wall s / audio s':>17} {'CPU s / audio s':>16} {'times real time':>16}",
    ]
    for path, of in result["paths"].items():
        wall, cpu = of["wall_s_per_audio_s"], of["cpu_s_per_audio_s"]
        lines.append(f"{path:22} {wall:17.4f} {cpu:16.4f} {1 / max(wall, 1e-9):16.1f}")
    parts = result["offline_parts_s_per_audio_s"]
    lines += ["", f"{'part (offline)':22} {'wall s / audio s':>17} {'share':>7}"]
    lines += [f"{part:22} {value:17.4f} {value / sum(parts.values()):7.1%}" for part, value in parts.items()]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="any recording; half a minute is enough")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs, of which the fastest counts")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    if args.repeat < 1:
        raise ValueError(f"Expected at least 1 repeat. Found: {args.repeat}")
    samples = np.concatenate(list(open_audio(str(args.file)).blocks))
    result = measure_speed(load_recognizer(args), samples, args.repeat)
    print(json.dumps(result) if args.json else table(result))
    return 0
