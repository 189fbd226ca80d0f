"""`streamer bench precision`: what faster arithmetic changes, against the plain float32 model on the same recordings.

Every recording is one pass of each precision, decoded greedily. Label agreement is the share of frames with the same
likeliest token. Times are the processor's, in turn for each recording, so that a busy machine is the same to all.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.acoustic import DTYPES, AcousticModel
from core.audio import SAMPLE_RATE, Samples
from core.decoder import decode_greedy
from core.edit_distance import WordErrors, word_errors
from core.features import normalize
from core.normalise import normalise
from core.precision import is_fast
from core.stitcher import LogProbs
from streamer.bench.task import Task, add_set_arguments, task_of

PRECISIONS = ("float32", "auto", "bfloat16", "int8")


@dataclass(slots=True)
class Count:
    """What one precision made of the recordings so far."""

    n_frames: int = 0
    n_equal: int = 0
    cpu_s: float = 0.0
    errors: WordErrors = field(default_factory=WordErrors)
    changes: WordErrors = field(default_factory=WordErrors)  # against the words of float32


def prepared(model: AcousticModel, samples: Samples) -> Samples:
    """As one pass hears them: normalised by themselves where the model wants it."""
    return normalize(samples) if model.normalises else samples


def has(precision: str) -> bool:
    return precision == "auto" or is_fast(DTYPES[precision]) or precision == "float32"


def words_of(model: AcousticModel, log_probs: LogProbs) -> list[str]:
    text = " ".join(span.text for span in decode_greedy(log_probs, 0, model.alphabet))
    return normalise(text).split()


def compare(models: dict[str, AcousticModel], task: Task) -> dict[str, Any]:
    """The object that `--json` prints; the first model is what the others are held against."""
    counts = {name: Count() for name in models}
    duration_s = 0.0
    for manifest in task.manifests:
        for utterance in task.utterances(manifest, "precision"):
            duration_s += len(utterance.samples) / SAMPLE_RATE
            said = normalise(utterance.transcript).split()
            reference = np.zeros(0, np.int64)
            plain: list[str] = []
            for i, (name, model) in enumerate(models.items()):
                count, window = counts[name], prepared(model, utterance.samples)
                began = time.process_time()
                log_probs = model.emit([window])[0]
                count.cpu_s += time.process_time() - began
                labels, words = log_probs.argmax(1), words_of(model, log_probs)
                if i == 0:
                    reference, plain = labels, words
                count.n_frames += len(labels)
                count.n_equal += int((labels == reference).sum())
                count.errors += word_errors(said, words)
                count.changes += word_errors(plain, words)
    first = next(iter(counts.values()))
    return {
        "model": next(iter(models.values())).name,
        "audio_s": round(duration_s, 3),
        "precisions": [
            {
                "precision": name,
                "label_agreement": round(count.n_equal / count.n_frames, 6),
                "wer": round(count.errors.rate, 5),
                "wer_change": round(count.errors.rate - first.errors.rate, 5),
                "words_changed": round(count.changes.change, 5),
                "cpu_s_per_audio_s": round(count.cpu_s / duration_s, 5),
                "times_float32": round(first.cpu_s / count.cpu_s, 3),
            }
            for name, count in counts.items()
        ],
    }


def table(result: dict[str, Any]) -> str:
    """`compare`, for reading."""
    heads = (
        f"{'equal labels %':>15} {'WER %':>7} {'change':>7} {'words changed %':>16} {'CPU s / audio s':>16} {'×':>6}"
    )
    lines = [f"model {result['model']}, {result['audio_s']:.1f} s of audio", "", f"{'precision':12} {heads}"]
    for of in result["precisions"]:
        lines.append(
            f"{of['precision']:12} {100 * of['label_agreement']:15.3f} {100 * of['wer']:7.2f} "
            f"{100 * of['wer_change']:+7.2f} {100 * of['words_changed']:16.2f} {of['cpu_s_per_audio_s']:16.4f} "
            f"{of['times_float32']:6.2f}"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_set_arguments(parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    task = task_of(args, parser)
    models = {name: AcousticModel.load(args.model, "cpu", name, args.threads) for name in PRECISIONS if has(name)}
    result = compare(models, task)
    print(json.dumps(result) if args.json else table(result))
    return 0
