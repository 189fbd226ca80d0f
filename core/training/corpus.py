"""Speech in memory: batches with labels for CTC, crops without.

Decoded samples are kept as int16 (115 MB an hour). What a batch holds depends on the seed and on its number alone,
so that a run that goes on from a checkpoint hears what it would have heard.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.audio import SAMPLE_RATE, Samples, from_int16
from core.features import normalize
from core.normalise import ENGLISH, foreign, is_english, normalise
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.augment import Augment
from core.training.manifest import read_set

MIN_SECONDS = 0.3
MAX_SECONDS = 17.0  # longer utterances are left out; attention's cost grows with the square
ORDER, BATCH, CROP, PASSAGE = range(4)  # what a random stream is for

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    samples: NDArray[np.int16]  # (n,) at 16 kHz
    transcript: str  # normalised: letters, in English upper case, apostrophes and single spaces; empty if unknown
    weight: float = 1.0  # how often one pass hears it, on average


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    input_values: Tensor  # (batch, sample) float32, zeros behind the audio
    attention_mask: Tensor  # (batch, sample) 1 for audio
    labels: Tensor  # (batch, label), −100 behind the labels

    @property
    def seconds(self) -> float:
        return self.input_values.numel() / SAMPLE_RATE


def spoken_form(transcript: str, letters: frozenset[str] = ENGLISH) -> str:
    """As labels spell it; empty where digits leave open what was said."""
    is_open = is_english(letters) and re.search(r"\d", transcript)
    return "" if is_open else normalise(transcript, letters)


def load_manifest(manifest: str | Path, weight: float = 1.0, letters: frozenset[str] = ENGLISH) -> list[Clip]:
    """Every utterance of a manifest, at any sample rate; without its text where that has other letters.

    Raises:
        ValueError: it is no manifest, or audio is missing or cannot be read.
    """
    clips: list[Clip] = []
    strange: list[set[str]] = []
    for utterance in read_set(Path(manifest)):
        samples = np.clip(np.rint(utterance.samples * 32768), -32768, 32767).astype(np.int16)
        transcript = spoken_form(utterance.transcript, letters)
        if found := foreign(transcript, letters):
            strange.append(found)
            transcript = ""
        clips.append(Clip(samples, transcript, weight))
    if strange:
        signs = " ".join(sorted(set().union(*strange)))
        logger.warning(
            "%s: %d of %d texts are left out, with what the vocabulary lacks: %s",
            manifest,
            len(strange),
            len(clips),
            signs,
        )
    return clips


def hours(clips: Sequence[Clip]) -> float:
    return sum(len(clip.samples) for clip in clips) / SAMPLE_RATE / 3600


def usable(clips: Sequence[Clip], n_most: int) -> list[Clip]:
    """Those with a transcript that are neither too short nor longer than `n_most` samples.

    Raises:
        ValueError: there is none.
    """
    found = [c for c in clips if c.transcript and MIN_SECONDS * SAMPLE_RATE <= len(c.samples) <= n_most]
    if not found:
        raise ValueError(
            f"Expected an utterance with a transcript, of {MIN_SECONDS} to {n_most / SAMPLE_RATE:.1f} s. "
            f"Found: none among {len(clips)}"
        )
    return found


class Corpus:
    """Endless batches of about `batch_s` seconds, in a random order that the seed decides.

    Short utterances are glued to spans of 3 to 15 s, so that every batch is full and sees pauses; spans of
    like length share a batch. Clips without a transcript are left out.

    Raises:
        ValueError: no clip is left.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        tokenizer: Wav2Vec2Tokenizer,
        augment: Augment,
        batch_s: float,
        seed: int,
    ) -> None:
        self.clips = usable(clips, int(MAX_SECONDS * SAMPLE_RATE))
        self.tokenizer = tokenizer
        self.augment = augment
        self.batch_s = batch_s
        self.seed = seed

    def spans(self, rng: np.random.Generator) -> list[list[Clip]]:
        """The clips of one pass in random order, glued to spans."""
        spans: list[list[Clip]] = []
        room = 0.0
        n_times = np.floor([clip.weight for clip in self.clips] + rng.random(len(self.clips))).astype(int)
        for i in rng.permutation(np.repeat(np.arange(len(self.clips)), n_times)):
            clip = self.clips[i]
            room -= len(clip.samples)
            if room < 0:
                spans.append([])
                room = rng.uniform(3, 15) * SAMPLE_RATE - len(clip.samples)
            spans[-1].append(clip)
        return spans

    def epoch(self, number: int) -> list[list[list[Clip]]]:
        """The spans of each batch of one pass over the clips."""

        def length(span: list[Clip]) -> int:
            return sum(len(clip.samples) for clip in span)

        rng = np.random.default_rng((self.seed, ORDER, number))
        groups: list[list[list[Clip]]] = []
        for span in sorted(self.spans(rng), key=length):
            if not groups or length(span) * (len(groups[-1]) + 1) > self.batch_s * SAMPLE_RATE:
                groups.append([])
            groups[-1].append(span)
        return [groups[i] for i in rng.permutation(len(groups))]

    def batches(self, first: int = 0, n_workers: int = 1) -> Iterator[Batch]:
        """Batches without end, from number `first` on, made ahead by threads."""
        made: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(n_workers) as pool:
            every = (spans for epoch in count() for spans in self.epoch(epoch))
            for number, spans in enumerate(every):
                if number >= first:
                    made.append(pool.submit(self.collate, spans, np.random.default_rng((self.seed, BATCH, number))))
                if len(made) > 2 * n_workers:
                    yield made.popleft().result()

    def collate(self, spans: list[list[Clip]], rng: np.random.Generator) -> Batch:
        waves, labels = [], []
        for span in spans:
            wave = self.augment([from_int16(clip.samples) for clip in span], rng)
            waves.append(normalize(wave) if self.tokenizer.do_normalize else wave)
            labels.append(self.tokenizer.encode(" ".join(clip.transcript for clip in span)))
        n_samples, n_labels = max(map(len, waves)), max(map(len, labels))
        batch = Batch(
            torch.zeros(len(spans), n_samples),
            torch.zeros(len(spans), n_samples, dtype=torch.long),
            torch.full((len(spans), n_labels), -100),
        )
        for row, (wave, ids) in enumerate(zip(waves, labels, strict=True)):
            batch.input_values[row, : len(wave)] = torch.from_numpy(wave)
            batch.attention_mask[row, : len(wave)] = 1
            batch.labels[row, : len(ids)] = torch.tensor(ids)
        return batch


class Speech:
    """Audio for training without text.

    Raises:
        ValueError: no clip of at least `min_s`.
    """

    def __init__(self, clips: Sequence[Clip], augment: Augment, seed: int, min_s: float = MIN_SECONDS) -> None:
        self.clips = sorted((c for c in clips if len(c.samples) >= min_s * SAMPLE_RATE), key=lambda c: len(c.samples))
        if not self.clips:
            raise ValueError(f"Expected an utterance of at least {min_s} s. Found: none among {len(clips)}")
        self.lengths = np.array([len(clip.samples) for clip in self.clips])
        self.augment = augment
        self.seed = seed

    def crops(self, number: int, n: int, seconds: float) -> Tensor:
        """(n, sample) random crops, across utterances; `number` decides which."""
        rng = np.random.default_rng((self.seed, CROP, number))
        length = int(seconds * SAMPLE_RATE)
        rows = []
        for _ in range(n):
            parts: list[Samples] = []
            while sum(map(len, parts)) < 2 * length:
                parts.append(from_int16(self.clips[rng.integers(len(self.clips))].samples))
            wave = self.augment(parts, rng)
            first = int(rng.integers(0, max(1, len(wave) - length)))
            rows.append(np.resize(wave[first : first + length], length))
        return torch.from_numpy(np.stack(rows))

    def passages(self, number: int, batch_s: float, max_s: float) -> Tensor:
        """(batch, sample) crops of one utterance each, together at most `batch_s`; `number` decides which.

        Utterances of like length make a batch, cut to the shortest of them, so that nothing is padded. The longer
        an utterance, the oftener it is drawn.
        """
        rng = np.random.default_rng((self.seed, PASSAGE, number))
        i = int(np.searchsorted(self.lengths.cumsum(), rng.integers(self.lengths.sum()), side="right"))
        limit = int(max_s * SAMPLE_RATE)
        n = max(1, int(batch_s * SAMPLE_RATE) // min(limit, int(self.lengths[i])))
        first = max(0, min(i - int(rng.integers(n)), len(self.clips) - n))
        chosen = self.clips[first : first + n]
        length = min(limit, *(len(clip.samples) for clip in chosen))
        rows = []
        for clip in chosen:
            at = int(rng.integers(len(clip.samples) - length + 1))
            rows.append(from_int16(clip.samples[at : at + length]))
        return torch.from_numpy(np.stack(rows))
