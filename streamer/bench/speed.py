"""`streamer bench speed`: processor seconds of the model and of all around it, in every precision, in one run.

All that is compared runs in turn, `--repeat` times, and the fastest run of each counts. Times are the processor's,
with all threads, so that other programs on the machine disturb little. `--config base` and `large` are the published
sizes with random weights: time does not depend on them. A hop is one step of a session; windows are those of the
presets of `--latency`, and streams per core are hop / time of a step. On a GPU: see `streamer.bench.device`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clients.file import open_audio
from core.acoustic import AcousticModel, choose_device, choose_dtype, fit
from core.audio import HOP, SAMPLE_RATE, Samples, n_samples_for
from core.beam import make_decoder
from core.checkpoint import resolve
from core.configuration import Wav2Vec2Config
from core.engine import Engine
from core.tokenizer import Wav2Vec2Tokenizer
from core.windows import LATENCIES, StreamConfig
from streamer.bench.agreement import PRECISIONS, has
from streamer.bench.arithmetic import ceilings, flops, timed_parts
from streamer.bench.device import Emit, device_table, measure_device
from streamer.bench.plots import plot_device, plot_speed, require_matplotlib
from streamer.bench.sizes import CONFIGS, random_model
from streamer.bench.steps import measure_steps, session_s
from streamer.bench.wer import peak_memory_mb

SAMPLE = Path(__file__).parents[2] / "core" / "assets" / "sample.wav"
GPU_SLOTS = 128
START = """
import sys, time
from streamer.recognizer import Recognizer
imported = time.process_time()
Recognizer.load(sys.argv[1])
print(imported, time.process_time() - imported)
"""
# What is changed of the presets: nothing, and that steps compute whole windows.
VARIANTS: dict[str, dict[str, Any]] = {"sessions_per_core": {}, "whole_sessions_per_core": {"refresh": 1000}}


def load_precision(name: str, config: str | None, directory: Path, device: torch.device) -> AcousticModel:
    """The checkpoint, or random weights of a published size with its tokenizer, in one precision of the device."""
    if config is None:
        return AcousticModel.load(directory, str(device), name)
    model = fit(random_model(config), device, name)
    return AcousticModel(model, Wav2Vec2Tokenizer.from_pretrained(directory), config)


def load_transformers(config: Wav2Vec2Config, dtype: torch.dtype, device: torch.device) -> Emit:
    """transformers' model of the same size with random weights, as a function of windows of one length.

    Without the sinusoids that it does not know, which are one sum.
    """
    import transformers

    settings = {key: value for key, value in config.to_dict().items() if key not in ("dtype", "torch_dtype")}
    model: Any = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**settings))
    model = model.eval().to(device, dtype)

    def emit(windows: Sequence[Samples]) -> object:
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.stack(windows)).to(device, dtype)).logits
            return logits.log_softmax(-1, dtype=torch.float32).cpu().numpy()

    return emit


def load_peers(config: Wav2Vec2Config, device: torch.device) -> dict[str, Emit]:
    """transformers in both precisions, where it is installed and knows the model; its extractors all have norms."""
    if find_spec("transformers") is None or config.feat_extract_norm not in ("group", "layer"):
        return {}
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {f"transformers {name}": load_transformers(config, dtype, device) for name, dtype in kinds.items()}


def start_s(model: str) -> dict[str, float]:
    """Processor seconds of a first start, in a process with one thread: what is imported, and what is loaded."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", START, model], env=environment, stdout=subprocess.PIPE, check=True)
    imports, loading = map(float, done.stdout.split()[-2:])
    return {"imports": round(imports, 2), "loading": round(loading, 2)}


def fastest(systems: dict[str, Emit], window: Samples, repeat: int) -> dict[str, float]:
    """Processor seconds of the fastest of `repeat` runs of each system, all in turn."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for emit in systems.values():
        emit([window])  # warms up caches and threads
    for _ in range(repeat):
        for name, emit in systems.items():
            began = time.process_time()
            emit([window])
            seconds[name].append(time.process_time() - began)
    return {name: min(values) for name, values in seconds.items()}


def measure_speed(
    models: dict[str, AcousticModel], peers: dict[str, Emit], samples: Samples, repeat: int
) -> dict[str, Any]:
    """The object that `--json` prints."""
    model = next(iter(models.values()))
    systems: dict[str, Emit] = {name: of.emit for name, of in models.items()} | peers
    audio_s = len(samples) / SAMPLE_RATE
    offline = fastest(systems, samples, repeat)
    most = sum(flops(model.config, len(samples)).values())
    result: dict[str, Any] = {
        "model": model.name,
        "audio_s": round(audio_s, 3),
        "threads": torch.get_num_threads(),
        "ceilings_per_s": ceilings(repeat, model.model.device),
        "flop_per_audio_s": most / audio_s,
        "systems": {
            name: {
                "cpu_s_per_audio_s": round(seconds / audio_s, 5),
                "flop_per_s": most / seconds,
                "times_float32": round(offline["float32"] / seconds, 3),
                "streams_per_core": {},
            }
            for name, seconds in offline.items()
        },
    }
    for latency in LATENCIES:
        config = StreamConfig.preset(latency)
        window = np.resize(samples, n_samples_for(config.window))
        for name, seconds in fastest(systems, window, repeat).items():
            hop_s = config.hop * HOP / SAMPLE_RATE
            of = {"hop_s": hop_s, "window_s": round(len(window) / SAMPLE_RATE, 3), "step_s": round(seconds, 5)}
            of["latency_ms"] = config.algorithmic_latency_ms
            result["systems"][name]["streams_per_core"][latency] = of | {"streams": round(hop_s / seconds, 2)}
    for name, of_name in models.items():
        engine = Engine(of_name)
        for key, changes in VARIANTS.items():
            plans = {latency: StreamConfig.preset(latency, **changes) for latency in LATENCIES}
            seconds_of = {
                latency: min(session_s(engine, samples, plan) for _ in range(repeat)) for latency, plan in plans.items()
            }
            sessions = {latency: round(audio_s / seconds, 2) for latency, seconds in seconds_of.items()}
            result["systems"][name][key] = sessions
    for name, of_name in models.items():
        with timed_parts(of_name.model) as parts:
            began = time.process_time()
            of_name.emit([samples])
            whole = time.process_time() - began
        parts["copies and other"] = whole - sum(parts.values())
        shares = {part: round(seconds / audio_s, 5) for part, seconds in parts.items()}
        result["systems"][name]["parts_s_per_audio_s"] = shares
    engine = Engine(model)
    result["step_us"] = {"greedy": measure_steps(engine, samples, StreamConfig.preset("balanced"))}
    if model.directory is not None:
        result["start_s"] = start_s(str(model.directory))
        engine = Engine(model, make_decoder(model, "auto", {}))
        result["step_us"]["model's own"] = measure_steps(engine, samples, StreamConfig.preset("balanced"))
    result["peak_memory_mb"] = round(peak_memory_mb(), 1)
    return result


def table(result: dict[str, Any]) -> str:
    """`measure_speed`, for reading."""
    limits = ", ".join(
        f"{name} {value / 1e9:.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
        for name, value in result["ceilings_per_s"].items()
    )
    lines = [
        f"model {result['model']}, {result['audio_s']:.1f} s of audio, {result['flop_per_audio_s'] / 1e9:.1f} GFLOP a "
        f"second of it, {result['threads']} threads, peak {result['peak_memory_mb']:.0f} MB",
        f"this machine at most: {limits}",
        "",
        f"{'system':22} {'CPU s / audio s':>16} {'GFLOP/s':>8} {'× float32':>9}   "
        + "   ".join(f"streams a core, {latency}" for latency in LATENCIES),
    ]
    for name, of in result["systems"].items():
        streams = "".join(f"{of['streams_per_core'][latency]['streams']:24.1f}" for latency in LATENCIES)
        speed = f"{of['cpu_s_per_audio_s']:16.4f} {of['flop_per_s'] / 1e9:8.0f} {of['times_float32']:9.2f}"
        lines.append(f"{name:22} {speed}{streams}")
    for key, title in (("sessions_per_core", ""), ("whole_sessions_per_core", ", --refresh-ms 60000")):
        lines += ["", f"sessions a core, features kept, final passes and decoding included{title}:"]
        for name, of in result["systems"].items():
            if key in of:
                streams = "".join(f"{of[key][latency]:24.1f}" for latency in LATENCIES)
                lines.append(f"{name:22} {'':35}{streams}")
    ours = {name: of["parts_s_per_audio_s"] for name, of in result["systems"].items() if "parts_s_per_audio_s" in of}
    lines += ["", f"{'CPU ms / audio s':24}" + "".join(f"{name:>12}" for name in ours)]
    for part in next(iter(ours.values())):
        lines.append(f"{part:24}" + "".join(f"{1000 * parts[part]:12.2f}" for parts in ours.values()))
    for decoder, parts in result["step_us"].items():
        lines += ["", f"{'µs a step, ' + decoder:24} {'mean':>8} {'p50':>8} {'p99':>8}"]
        for part, of in parts.items():
            lines.append(f"{part.replace('_', ' '):24} {of['mean']:8.0f} {of['p50']:8.0f} {of['p99']:8.0f}")
    if "start_s" in result:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in result["start_s"].items())
        lines += ["", f"CPU s of a first start: {parts}"]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default=SAMPLE, type=Path, metavar="FILE", help="default: a sample")
    parser.add_argument("--config", choices=CONFIGS, help="random weights of this size instead of --model's")
    text = f"sessions in one batch, at most: also what batches of them take; a GPU's default: {GPU_SLOTS}"
    parser.add_argument("--slots", type=int, metavar="N", help=text)
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs, of which the fastest counts")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw it there, as PNG, PDF or SVG")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    if args.repeat < 1:
        raise ValueError(f"Expected at least 1 repeat. Found: {args.repeat}")
    if args.plot is not None:
        require_matplotlib()
    if args.slots is not None and args.slots < 1:
        raise ValueError(f"Expected at least 1 slot. Found: {args.slots}")
    device = choose_device(args.device)
    is_batched = args.slots is not None or device.type == "cuda"
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Expected --device cpu or cuda. Found: {device}")
    torch.set_num_threads(args.threads or 1)
    samples = np.concatenate(list(open_audio(str(args.file)).blocks))
    directory = resolve(args.model)
    fast = "bfloat16" if choose_dtype("auto", device) == torch.bfloat16 else "float32"
    of_device = ("float32", fast if args.dtype == "auto" else args.dtype)
    names = dict.fromkeys(of_device if is_batched else (name for name in PRECISIONS if has(name)))
    models = {name: load_precision(name, args.config, directory, device) for name in names}
    peers = load_peers(models["float32"].config, device)
    if is_batched:
        result = measure_device(models, peers, samples, args.slots or GPU_SLOTS, args.repeat)
    else:
        result = measure_speed(models, peers, samples, args.repeat)
    print(json.dumps(result) if args.json else (device_table if is_batched else table)(result))
    if args.plot is not None:
        (plot_device if is_batched else plot_speed)(result, args.plot)
    return 0
