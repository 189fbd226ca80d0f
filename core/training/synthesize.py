"""Sentences read aloud by many voices at many speeds, as a manifest with 16 kHz FLAC files.

Each sentence has its engine, voice, speed and pitch drawn from the seed and its place, so that a call that was cut off
goes on where it stopped.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from core.audio import SAMPLE_RATE
from core.normalise import normalise
from core.training.corpus import MAX_SECONDS, MIN_SECONDS
from core.training.manifest import Line, read_manifest, to_16k, write_line
from core.training.prepare import Prepared
from core.training.voices import Engine

PEAK = 0.7  # of what is written

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SynthesisConfig:
    output: Path
    name: str = "synthetic"
    speed: tuple[float, float] = (0.85, 1.2)
    pitch: tuple[float, float] = (0.85, 1.15)  # and formants: each voice becomes those of other throats
    seed: int = 1

    def __post_init__(self) -> None:
        for name, (least, most) in (("speed", self.speed), ("pitch", self.pitch)):
            if not 0 < least <= most:
                raise ValueError(f"Expected a {name} above 0, the lower one first. Found: {least}, {most}")


def read_sentences(path: Path, limit: int | None = None) -> list[str]:
    """A sentence a line; of tab-separated lines the last column."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [sentence for line in lines if (sentence := line.rpartition("\t")[2].strip())][:limit]


def as_read(sentence: str) -> str:
    """What engines are given: capitals would be spelled out, and digits have many readings.

    `CHAPTER ONE` -> `chapter one`, `Room 12, please.` -> `room twelve please`, others as they are.
    """
    if re.search(r"\d", sentence):
        return normalise(sentence).lower()
    return sentence.lower() if sentence.isupper() else sentence


def synthesize(sentences: Sequence[str], engines: Sequence[Engine], config: SynthesisConfig) -> Prepared:
    """Writes `output/NAME.tsv` and the audio in `output/NAME/`; sentences that are there already are kept.

    Every engine reads as many sentences as the others. What an engine cannot read is left out.

    Raises:
        ValueError: no engine.
    """
    if not engines:
        raise ValueError("Expected a speech synthesiser: install espeak-ng or flite, or name Kokoro or Piper models")
    manifest = config.output / f"{config.name}.tsv"
    (config.output / config.name).mkdir(parents=True, exist_ok=True)
    done = set(read_manifest(manifest)) if manifest.exists() else set()
    left_out: Counter[str] = Counter()
    n_samples = 0
    n_kept = 0
    for i, sentence in enumerate(sentences):
        path = f"{config.name}/{i:06}.flac"
        transcript = normalise(sentence)
        if path in done or not transcript:
            left_out["there already" if path in done else "text without words"] += 1
            continue
        rng = np.random.default_rng((config.seed, i))
        engine = engines[int(rng.integers(len(engines)))]
        voice = engine.voices[int(rng.integers(len(engine.voices)))]
        speed, pitch = rng.uniform(*config.speed), rng.uniform(*config.pitch)
        try:
            samples = to_16k(engine.speak(as_read(sentence), voice, speed / pitch), SAMPLE_RATE * pitch)
        except (ValueError, RuntimeError) as e:
            logger.warning("line %d: %s", i + 1, e)
            left_out["failed"] += 1
            continue
        if not MIN_SECONDS * SAMPLE_RATE <= len(samples) <= MAX_SECONDS * SAMPLE_RATE:
            left_out["too short" if len(samples) < MIN_SECONDS * SAMPLE_RATE else "too long"] += 1
            continue
        samples = samples * (PEAK / max(1e-3, float(np.abs(samples).max())))
        soundfile.write(config.output / path, samples, SAMPLE_RATE, subtype="PCM_16")
        write_line(manifest, Line(path, len(samples), f"{engine.name}:{voice}", transcript))
        n_kept, n_samples = n_kept + 1, n_samples + len(samples)
    return Prepared(n_kept, n_samples / SAMPLE_RATE / 3600, left_out)
