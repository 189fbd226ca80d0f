"""What was said in each recording, and when: transcripts with word times by forced alignment.

`model` aligns with the offline frames of the model that is measured (`core/aligner.py`): its words are somewhat
shorter than they were spoken, and alike for all systems. `pocketsphinx` is independent of it; it knows the words of
its dictionary alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.aligner import align_words
from core.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, Samples, encode_pcm16
from core.engine import Engine
from core.normalise import normalise
from core.offline import emit_long
from core.stitcher import LogProbs
from streamer.bench.listeners import decoded_words
from streamer.bench.systems import open_pocketsphinx
from streamer.bench.task import Task

ALIGNERS = ("model", "pocketsphinx")

Times = Sequence[tuple[float, float]]  # start and end of each word in seconds; empty where it cannot be aligned
Align = Callable[[Samples, LogProbs, Sequence[str]], Times]


@dataclass(frozen=True, slots=True)
class Reference:
    """What was said in a recording; no times where it could not be aligned."""

    path: str
    duration_s: float
    words: tuple[str, ...]
    starts_s: tuple[float, ...]
    ends_s: tuple[float, ...]
    offline: str  # one pass of our model, normalised


def references(engine: Engine, task: Task, aligner: str = "model") -> list[Reference]:
    """Raises ValueError: no such aligner, or it is not installed."""
    align = load_aligner(aligner, engine)
    found = []
    for manifest in task.manifests:
        for utterance in task.utterances(manifest, "alignment"):
            log_probs = emit_long(engine, utterance.samples, engine.new_stream())
            words = normalise(utterance.transcript).split()
            times = align(utterance.samples, log_probs, words)
            found.append(
                Reference(
                    utterance.path,
                    len(utterance.samples) / SAMPLE_RATE,
                    tuple(words),
                    tuple(start for start, _ in times),
                    tuple(end for _, end in times),
                    normalise(" ".join(word.text for word in engine.decode(log_probs, 0))),
                )
            )
    return found


def load_aligner(name: str, engine: Engine) -> Align:
    match name:
        case "model":
            return own_aligner(engine)
        case "pocketsphinx":
            return pocketsphinx_aligner()
    raise ValueError(f"Expected an aligner of {', '.join(ALIGNERS)}. Found: {name!r}")


def own_aligner(engine: Engine) -> Align:
    def align(samples: Samples, log_probs: LogProbs, words: Sequence[str]) -> Times:
        try:
            spans = align_words(log_probs, 0, " ".join(words), engine.alphabet)
        except ValueError:  # more letters than frames, or letters that the model does not have
            return []
        extra = RECEPTIVE_FIELD - HOP
        return [(HOP * span.start_frame / SAMPLE_RATE, (HOP * span.end_frame + extra) / SAMPLE_RATE) for span in spans]

    return align


def pocketsphinx_aligner() -> Align:
    decoder = open_pocketsphinx()

    def align(samples: Samples, log_probs: LogProbs, words: Sequence[str]) -> Times:
        lower = [word.lower() for word in words]
        if not lower or any(decoder.lookup_word(word) is None for word in lower):
            return []
        decoder.set_align_text(" ".join(lower))
        decoder.start_utt()
        decoder.process_raw(encode_pcm16(samples), full_utt=True)
        decoder.end_utt()
        found = decoded_words(decoder)
        return [(word.start_s, word.end_s) for word in found] if [word.text for word in found] == lower else []

    return align
