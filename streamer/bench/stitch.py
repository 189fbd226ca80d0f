"""`streamer bench stitch`: how near each way of joining windows comes to one pass of the same model.

Every window runs through the model once; all methods get its frames. Counted are edits of the greedy text against
that of one pass over the whole recording (the *induced* error, which needs no transcripts), and the word error rate
against the transcript. There is no second pass at the end of a segment: this is what partials are made of.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.audio import HOP, SAMPLE_RATE, Samples
from core.edit_distance import WordErrors
from core.engine import Engine
from core.features import normalize
from core.normalise import normalise
from core.offline import emit_long
from core.stitcher import Emission
from core.windows import LATENCIES, StreamConfig
from streamer.bench.metrics import edits
from streamer.bench.plots import plot_stitch, require_matplotlib
from streamer.bench.stitchers import METHODS, Method, Plan, Window, greedy_text, plan_windows
from streamer.bench.task import Task, add_set_arguments, task_of
from streamer.recognizer import load_recognizer

WINDOWS_PER_BATCH = 16


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a method made of one recording, against one pass over the whole and against the transcript."""

    words: WordErrors
    letters: WordErrors
    spoken: WordErrors


def run_windows(engine: Engine, samples: Samples, plan: Plan) -> list[Window]:
    """The frames of each window of a plan."""
    spans = plan_windows(len(samples), plan)
    windows: list[Window] = []
    for first in range(0, len(spans), WINDOWS_PER_BATCH):
        part = spans[first : first + WINDOWS_PER_BATCH]
        emitted = engine.model.emit([samples[span.start_sample : span.end_sample] for span in part])
        windows += [
            Window(Emission(log_probs, span.start_sample // HOP), span.stable_frame)
            for span, log_probs in zip(part, emitted, strict=True)
        ]
    return windows


def offline_text(engine: Engine, samples: Samples) -> str:
    """The greedy text of one pass over the whole recording."""
    return greedy_text(emit_long(engine, samples, engine.new_stream()), engine.alphabet)


def compare(text: str, whole: str, transcript: str) -> Comparison:
    """`transcript` is normalised, the others are as the model spells."""
    return Comparison(
        edits(whole.split(), text.split()),
        edits(list(whole), list(text)),
        edits(transcript.split(), normalise(text).split()),
    )


def measure(engine: Engine, task: Task, plans: Sequence[Plan]) -> dict[str, Any]:
    """The object that `--json` prints."""
    found: dict[tuple[Plan, Method], list[Comparison]] = {(plan, m): [] for plan in plans for m in METHODS}
    offline: list[WordErrors] = []
    n_samples = 0
    for manifest in task.manifests:
        for utterance in task.utterances(manifest, "stitch"):
            samples, transcript = utterance.samples, normalise(utterance.transcript)
            whole = offline_text(engine, samples)
            offline.append(edits(transcript.split(), normalise(whole).split()))
            n_samples += len(samples)
            # One scale for the whole recording, as the offline pass has: only context differs between windows.
            heard = normalize(samples) if engine.model.normalises else samples
            for plan in plans:
                windows = run_windows(engine, heard, plan)
                for method in METHODS:
                    text = method.join(windows, plan, engine.alphabet)
                    found[plan, method].append(compare(text, whole, transcript))
    return {
        "model": engine.model.name,
        "condition": task.condition,
        "n_utterances": len(offline),
        "audio_s": round(n_samples / SAMPLE_RATE, 3),
        "offline_wer": round(total(offline).rate, 5),
        "plans": [
            {
                "left": plan.left,
                "hop": plan.hop,
                "right": plan.right,
                "methods": [row(method, plan, found[plan, method]) for method in METHODS],
            }
            for plan in plans
        ],
    }


def total(errors: Sequence[WordErrors]) -> WordErrors:
    return sum(errors, WordErrors())


def row(method: Method, plan: Plan, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    words, letters = total([c.words for c in comparisons]), total([c.letters for c in comparisons])
    return {
        "method": method.name,
        "latency_ms": method.latency_ms(plan),
        "word_edits": words.total,
        "word_edit_rate": round(words.change, 5),
        "letter_edits": letters.total,
        "letter_edit_rate": round(letters.change, 5),
        "n_equal": sum(c.letters.total == 0 for c in comparisons),
        "wer": round(total([c.spoken for c in comparisons]).rate, 5),
    }


def table(result: dict[str, Any]) -> str:
    """`measure`, for reading."""
    lines = [
        f"model {result['model']}, condition {result['condition']}, {result['n_utterances']} recordings, "
        f"{result['audio_s']:.1f} s, offline WER {100 * result['offline_wer']:.2f} %",
        "",
        f"{'left,hop,right':15} {'method':14} {'latency ms':>10} {'words %':>8} {'letters %':>10} {'equal':>6} "
        f"{'WER %':>7}",
    ]
    for of in result["plans"]:
        plan = Plan(of["left"], of["hop"], of["right"])
        for method in of["methods"]:
            rates = f"{100 * method['word_edit_rate']:8.2f} {100 * method['letter_edit_rate']:10.2f}"
            lines.append(
                f"{plan!s:15} {method['method']:14} {method['latency_ms']:10} {rates} {method['n_equal']:6} "
                f"{100 * method['wer']:7.2f}"
            )
    lines += ["", "words, letters: edits against one pass over the whole; equal: recordings without any"]
    return "\n".join(lines)


def parse_plan(text: str) -> Plan:
    """`150,25,25`."""
    try:
        left, hop, right = map(int, text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"expected LEFT,HOP,RIGHT in frames of 20 ms. Found: {text!r}") from e
    try:
        return Plan(left, hop, right)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def default_plans() -> list[Plan]:
    """The presets, and what is shorter on either side than they are."""
    presets = [StreamConfig.preset(latency) for latency in LATENCIES]
    return [Plan(50, 13, 6), *(Plan(config.left, config.hop, config.right) for config in presets)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_set_arguments(parser)
    default = " ".join(map(str, default_plans()))
    parser.add_argument(
        "--plan",
        action="append",
        type=parse_plan,
        metavar="LEFT,HOP,RIGHT",
        help=f"in frames of 20 ms; repeat for several; default: {default}",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw edits over latency there (needs matplotlib)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    task = task_of(args, parser)
    if args.plot is not None:
        require_matplotlib()  # before minutes of work
    recognizer = load_recognizer(args)
    result = measure(recognizer.engine, task, args.plan or default_plans())
    print(json.dumps(result) if args.json else table(result))
    if args.plot is not None:
        plot_stitch(result, args.plot)
    return 0
