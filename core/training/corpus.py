"""Speech with transcripts: manifests, their audio, and batches for CTC training.

A manifest is a tab-separated file with the header `path, duration_s, speaker, transcript` (no quoting). Its
audio lies beside it, as files or in the tar shards `NAME-*.tar`. Decoded samples are kept as int16 in memory
(115 MB an hour).
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.audio import SAMPLE_RATE, from_int16
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.augment import Augment

MAX_SECONDS = 17.0  # longer utterances are left out; attention's cost grows with the square


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    samples: NDArray[np.int16]  # (n,) at 16 kHz
    transcript: str  # normalised: upper case letters, apostrophes and single spaces; empty if unknown


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    input_values: Tensor  # (batch, sample) float32, zeros behind the audio
    attention_mask: Tensor  # (batch, sample) 1 for audio
    labels: Tensor  # (batch, label), −100 behind the labels

    @property
    def seconds(self) -> float:
        return self.input_values.numel() / SAMPLE_RATE


def normalise(transcript: str) -> str | None:
    """Upper case letters and apostrophes; None where digits leave the spoken form unknown."""
    if re.search(r"\d", transcript):
        return None
    text = transcript.upper().replace("’", "'")
    return " ".join(re.sub(r"[^A-Z' ]+", " ", text).split())


def audio_files(manifest: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the audio beside a manifest: the tar shards of its name, else its folder's files."""
    shards = sorted(manifest.parent.glob(manifest.stem + "-*.tar"))
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
    if not shards:
        for row in read_rows(manifest):
            path = manifest.parent / row["path"]
            yield row["path"], path.read_bytes()


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if rows and not {"path", "transcript"} <= set(rows[0]):
        raise ValueError(f"Expected the columns path and transcript in {manifest}. Found: {', '.join(rows[0])}")
    return rows


def load_manifest(manifest: str | Path) -> list[Utterance]:
    """Every utterance of a manifest whose transcript can be normalised.

    Raises:
        ValueError: a column is missing, or audio is not 16 kHz mono.
    """
    manifest = Path(manifest)
    transcripts = {row["path"]: row["transcript"] for row in read_rows(manifest)}
    utterances = []
    for name, data in audio_files(manifest):
        transcript = transcripts.get(name, transcripts.get(Path(name).name))
        text = None if transcript is None else normalise(transcript)
        if text is None:
            continue
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        if rate != SAMPLE_RATE or samples.ndim != 1:
            raise ValueError(f"Expected 16 kHz mono in {manifest}. Found: {rate} Hz, {samples.ndim}-D in {name}")
        utterances.append(Utterance(samples, text))
    return utterances


class Corpus:
    """Endless batches of about `batch_s` seconds, in a random order that the seed decides.

    Short utterances are glued to spans of 3 to 15 s, so that every batch is full and sees pauses; spans of
    like length share a batch.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        tokenizer: Wav2Vec2Tokenizer,
        augment: Augment,
        batch_s: float,
        seed: int,
    ) -> None:
        limit = MAX_SECONDS * SAMPLE_RATE
        self.utterances = [u for u in utterances if u.transcript and 0.3 * SAMPLE_RATE <= len(u.samples) <= limit]
        if not self.utterances:
            raise ValueError(f"No utterance with a transcript of 0.3 to {MAX_SECONDS} s among {len(utterances)}")
        self.tokenizer = tokenizer
        self.augment = augment
        self.batch_s = batch_s
        self.rng = np.random.default_rng(seed)

    @property
    def hours(self) -> float:
        return sum(len(u.samples) for u in self.utterances) / SAMPLE_RATE / 3600

    def spans(self) -> list[list[Utterance]]:
        """One epoch's utterances in random order, glued to spans."""
        spans: list[list[Utterance]] = []
        room = 0.0
        for i in self.rng.permutation(len(self.utterances)):
            utterance = self.utterances[i]
            room -= len(utterance.samples)
            if room < 0:
                spans.append([])
                room = self.rng.uniform(3, 15) * SAMPLE_RATE - len(utterance.samples)
            spans[-1].append(utterance)
        return spans

    def epoch(self) -> Iterator[Batch]:
        def length(span: list[Utterance]) -> int:
            return sum(len(u.samples) for u in span)

        spans = sorted(self.spans(), key=length)
        groups: list[list[list[Utterance]]] = [[]]
        for span in spans:
            if groups[-1] and length(span) * (len(groups[-1]) + 1) > self.batch_s * SAMPLE_RATE:
                groups.append([])
            groups[-1].append(span)
        for i in self.rng.permutation(len(groups)):
            yield self.collate(groups[i])

    def batches(self) -> Iterator[Batch]:
        while True:
            yield from self.epoch()

    def collate(self, spans: list[list[Utterance]]) -> Batch:
        waves, labels = [], []
        for span in spans:
            waves.append(self.augment([from_int16(u.samples) for u in span], self.rng))
            labels.append(self.tokenizer.encode(" ".join(u.transcript for u in span)))
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

    def crops(self, n: int, seconds: float) -> Tensor:
        """(n, sample) random crops, across utterances, for training without text."""
        length = int(seconds * SAMPLE_RATE)
        rows = []
        for _ in range(n):
            parts: list[NDArray[np.float32]] = []
            while sum(map(len, parts)) < 2 * length:
                samples = self.utterances[self.rng.integers(len(self.utterances))].samples
                parts.append(from_int16(samples))
            wave = self.augment(parts, self.rng)
            first = int(self.rng.integers(0, max(1, len(wave) - length)))
            rows.append(np.resize(wave[first : first + length], length))
        return torch.from_numpy(np.stack(rows))
