"""`streamer bench latency`: what a listener sees and when, for every preset and for peers, on the same recordings.

Every recording is played in simulated real time (`streamer/bench/replay.py`). A word's *emission latency* is the time
from its end, by forced alignment of the transcript (`streamer/bench/references.py`), until it is shown: for the first
time (*provisional*), for good (*settled*), or committed. Only words that are right count.
The *induced* error is that of the last text against the same system's `--offline` text of the whole recording.
Two clocks: audio alone, which is the same on every machine, and with the computing of this one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.audio import SAMPLE_RATE, Samples
from core.engine import Engine
from core.normalise import normalise
from core.offline import transcribe_offline
from core.training.manifest import Utterance
from core.windows import LATENCIES, StreamConfig
from streamer.bench.latency_report import Heard, delays, report
from streamer.bench.latency_table import table
from streamer.bench.listeners import load_peer
from streamer.bench.plots import plot_latency, require_matplotlib
from streamer.bench.references import ALIGNERS, references
from streamer.bench.replay import Listener, OwnListener, ShownWord, Snapshot, replay
from streamer.bench.systems import ModelChoice, Transcribe, load_system
from streamer.bench.task import Task, add_peers_argument, add_set_arguments, peers_of, task_of
from streamer.recognizer import load_recognizer

WARM_UP_S = 3
VARIANTS: dict[str, dict[str, Any]] = {
    "steady": {"steady": True},
    "whole": {"refresh": 1000},
    "commit1": {"commit_after": 50},
    "commit2": {"commit_after": 100},
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How recordings are played."""

    block: int  # samples that arrive at once
    silence: int = 0  # samples of silence that follow each recording before the stream ends
    aligner: str = "model"


def utterances(task: Task, label: str) -> Iterator[Utterance]:
    for manifest in task.manifests:
        yield from task.utterances(manifest, label)


def listen(
    begin: Callable[[], Listener], offline: Transcribe | None, task: Task, setting: Setting, label: str
) -> list[Heard]:
    """Plays every recording to a new stream of one system.

    Args:
        offline: one pass of the system over a whole recording; None where the references know it.
    """
    heard: list[Heard] = []
    for utterance in utterances(task, label):
        if not heard:
            replay(begin(), utterance.samples[: WARM_UP_S * SAMPLE_RATE], setting.block)
        samples = np.concatenate([utterance.samples, np.zeros(setting.silence, np.float32)])
        recorder = replay(begin(), samples, setting.block)
        whole = None if offline is None else normalise(offline(utterance.samples))
        last = recorder.snapshots[-1].words if recorder.snapshots else ()
        text = normalise(" ".join(word.text for word in last))
        snapshots = tuple(map(spoken, recorder.snapshots))
        heard.append(Heard(snapshots, text, whole, recorder.compute_s, len(samples) / SAMPLE_RATE))
    return heard


@lru_cache(maxsize=4096)
def spoken_words(word: ShownWord) -> tuple[ShownWord, ...]:
    """A shown word as the words that are counted: `21%` is three, which share its time."""
    return tuple(ShownWord(text, word.start_s, word.end_s, word.confidence) for text in normalise(word.text).split())


def spoken(snapshot: Snapshot) -> Snapshot:
    parts = [spoken_words(word) for word in snapshot.words]
    words = tuple(word for part in parts for word in part)
    return Snapshot(snapshot.audio_s, snapshot.at_s, words, sum(map(len, parts[: snapshot.n_committed])))


def config_of(preset: str) -> StreamConfig:
    """`balanced`, `balanced-steady`, `balanced-steady-whole` …

    Raises:
        ValueError: no such preset.
    """
    latency, *variants = preset.split("-")
    if latency not in LATENCIES or set(variants) - VARIANTS.keys():
        known, others = ", ".join(LATENCIES), " or ".join(f"-{variant}" for variant in VARIANTS)
        raise ValueError(f"expected presets of {known}, or these with {others}. Found: {preset}")
    changes = {name: value for variant in variants for name, value in VARIANTS[variant].items()}
    return StreamConfig.preset(latency, **changes)


def listen_own(engine: Engine, latency: str, task: Task, setting: Setting) -> list[Heard]:
    config = config_of(latency)

    def offline(samples: Samples) -> str:
        return " ".join(final.text for final in transcribe_offline(engine, samples, config))

    return listen(lambda: OwnListener(engine, config), offline, task, setting, latency)


def listen_peer(name: str, threads: int | None, task: Task, setting: Setting) -> list[Heard]:
    return listen(load_peer(name, threads), load_system(name, ModelChoice(threads=threads)), task, setting, name)


def listen_apart(name: str, threads: int | None, task: Task, setting: Setting) -> list[Heard]:
    """A peer in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(listen_peer, name, threads, task, setting).result()


def measure(
    engine: Engine, presets: Sequence[str], peers: Sequence[str], task: Task, setting: Setting, threads: int | None
) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]]]:
    """The object that `--json` prints, and the delays of all words for the picture."""
    said = references(engine, task, setting.aligner)
    heard = {latency: listen_own(engine, latency, task, setting) for latency in presets}
    heard |= {name: listen_apart(name, threads, task, setting) for name in peers}
    result = {
        "model": engine.model.name,
        "condition": task.condition,
        "block_ms": 1000 * setting.block / SAMPLE_RATE,
        "silence_s": setting.silence / SAMPLE_RATE,
        "aligner": setting.aligner,
        "n_utterances": len(said),
        "n_not_aligned": sum(len(of.starts_s) < len(of.words) for of in said),
        "audio_s": round(sum(of.duration_s for of in said), 3),
        "systems": [report(name, said, of_system) for name, of_system in heard.items()],
    }
    of_words = {name: delays(said, of_system) for name, of_system in heard.items()}
    return result, {
        name: {kind: clocks["with_compute"] for kind, clocks in kinds.items()} for name, kinds in of_words.items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_set_arguments(parser)
    add_peers_argument(parser)
    parser.add_argument(
        "--presets",
        default=",".join(LATENCIES),
        metavar="NAME,…",
        help="of ours; also with -steady, or -whole (steps compute all of their windows); default: %(default)s",
    )
    parser.add_argument("--block-ms", type=int, default=20, metavar="MS", help="audio that arrives at once")
    parser.add_argument("--aligner", default="model", choices=ALIGNERS, help="which tells when words end")
    parser.add_argument("--silence", type=float, default=0, metavar="S", help="seconds after each recording")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw delays and word error rate (needs matplotlib)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    peers = peers_of(args, parser)
    presets = tuple(name for name in args.presets.split(",") if name)
    try:
        for name in presets:
            config_of(name)
    except ValueError as e:
        parser.error(str(e))
    if args.block_ms < 1 or args.silence < 0:
        parser.error(
            f"expected a block of at least 1 ms and no negative silence. Found: {args.block_ms}, {args.silence}"
        )
    setting = Setting(args.block_ms * SAMPLE_RATE // 1000, round(args.silence * SAMPLE_RATE), args.aligner)
    task = task_of(args, parser)
    if args.plot is not None:
        require_matplotlib()  # before minutes of work
    recognizer = load_recognizer(args)
    result, of_words = measure(recognizer.engine, presets, peers, task, setting, args.threads)
    print(json.dumps(result) if args.json else table(result))
    if args.plot is not None:
        plot_latency(result, of_words, args.plot)
    return 0
