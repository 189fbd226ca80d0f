"""Batches that are made where the model is: clips lie there once, and each step only says which of them go where.

Decoding, gluing and filtering on the host cannot feed a GPU that trains on hours of audio a second. Here the host
plans: rows of one length, each of several clips in a row, at some speed, with pauses; `render` gathers their samples
in one go. What `core.training.scenes` then puts onto the rows is planned here, too. Which rows a step has depends on
the seed and on its number alone, so that a run that goes on from a checkpoint hears what it would have heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from core.audio import SAMPLE_RATE
from core.configuration import Wav2Vec2Config
from core.features import VARIANCE_FLOOR
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.augment import Augment
from core.training.corpus import BATCH, ORDER, Clip, usable
from core.training.scenes import Scene

SHORTEST = 5.0  # s: a row ends with the clip that passes a length drawn between this and the whole
WAVER = (0.97, 1.03)  # speed of a clip beside that of its row, half as often
FRAMES = 8  # a row's frames are a multiple of it, as rows of attention's mask are aligned
AHEAD = 4  # plans that are made before they are needed


@dataclass(frozen=True, slots=True)
class Placed:
    """A clip in a row."""

    clip: int
    start: int  # sample of the row
    length: int  # samples of the row
    speed: float  # samples of the clip for each


@dataclass(frozen=True, slots=True)
class Row:
    clips: tuple[Placed, ...]
    n_samples: int  # with the pause behind the last


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Of one batch; behind a row's clips are some of length 0 that begin behind the row."""

    starts: Tensor  # (row, clip) samples of the row, ascending
    sources: Tensor  # (row, clip) where each begins among the samples of all
    lengths: Tensor  # (row, clip) samples of the row
    speeds: Tensor  # (row, clip) float64
    n_samples: Tensor  # (row,) that count; behind them is nothing
    labels: Tensor  # (row, label), −100 behind the labels
    texts: tuple[str, ...]
    scene: Scene

    @property
    def seconds(self) -> float:
        return int(self.n_samples.sum()) / SAMPLE_RATE


def row_length(config: Wav2Vec2Config, seconds: float) -> int:
    """Samples of a row of about so many seconds, of which the model makes a multiple of `FRAMES` frames."""
    n_frames = max(1, round(seconds * SAMPLE_RATE / config.hop / FRAMES)) * FRAMES
    return config.receptive_field + (n_frames - 1) * config.hop


def render(reel: Tensor, plan: Plan, n_samples: int) -> Tensor:
    """(row, sample) float32 of a plan, on the device of `reel`, the int16 samples of all clips and one more."""
    starts, sources, lengths, speeds = (
        part.to(reel.device, non_blocking=True) for part in (plan.starts, plan.sources, plan.lengths, plan.speeds)
    )
    times = torch.arange(n_samples, device=reel.device).expand(len(starts), -1).contiguous()
    which = (torch.searchsorted(starts, times, right=True) - 1).clamp(min=0)  # (row, sample) the clip that began last
    passed = times - starts.gather(1, which)
    is_speech = (passed >= 0) & (passed < lengths.gather(1, which))
    places = passed * speeds.gather(1, which)  # float64: float32 would be half a sample off after minutes
    before = places.long()
    at = torch.where(is_speech, sources.gather(1, which) + before, 0)
    samples = torch.lerp(reel[at].float(), reel[at + 1].float(), (places - before).float())
    return samples * is_speech / 32768


def normalize_rows(samples: Tensor, n_samples: Tensor) -> Tensor:
    """As `core.features.normalize`, of the first `n_samples` (row,) of each row; the others are 0."""
    n = n_samples.to(samples.device)[:, None]
    is_heard = torch.arange(samples.shape[1], device=samples.device) < n
    centred = (samples - (samples * is_heard).sum(1, keepdim=True) / n) * is_heard
    return centred * (centred.square().sum(1, keepdim=True) / n + VARIANCE_FLOOR).rsqrt()


class Rows:
    """Endless plans of `n_rows` rows of `n_samples` samples; clips without a transcript are left out.

    Raises:
        ValueError: no clip is left.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        tokenizer: Wav2Vec2Tokenizer,
        augment: Augment,
        n_rows: int,
        n_samples: int,
        seed: int,
    ) -> None:
        self.clips = usable(clips, n_samples)
        self.tokenizer = tokenizer
        self.augment = augment
        self.n_rows = n_rows
        self.n_samples = n_samples
        self.seed = seed
        self.sources = np.cumsum([0, *(len(clip.samples) for clip in self.clips)])

    def reel(self) -> Tensor:
        """(sample,) int16: all clips one after another, and one sample more."""
        return torch.from_numpy(np.concatenate([*(clip.samples for clip in self.clips), np.zeros(1, np.int16)]))

    def epoch(self, number: int) -> Iterator[Row]:
        """The rows of one pass over the clips, in an order that the seed decides."""
        rng = np.random.default_rng((self.seed, ORDER, number))
        n_times = np.floor([clip.weight for clip in self.clips] + rng.random(len(self.clips))).astype(int)
        left = rng.permutation(np.repeat(np.arange(len(self.clips)), n_times)).tolist()[::-1]
        while left:
            yield self.fill(left, rng)

    def fill(self, left: list[int], rng: np.random.Generator) -> Row:
        """A row of the last of these clips, which it takes away."""

        def pause() -> int:
            seconds = rng.uniform(0, self.augment.silence_s) if rng.random() < self.augment.silence_chance else 0.0
            return int(seconds * SAMPLE_RATE)

        placed: list[Placed] = []
        at, enough = pause(), rng.uniform(min(SHORTEST * SAMPLE_RATE, self.n_samples), self.n_samples)
        pace = rng.uniform(*self.augment.speed) if rng.random() < self.augment.speed_chance else 1.0
        while left and (at < enough or not placed):
            speed = pace * (rng.uniform(*WAVER) if rng.random() < self.augment.speed_chance / 2 else 1.0)
            length = int((len(self.clips[left[-1]].samples) - 1) / speed) + 1
            if at + length > self.n_samples:
                if placed:
                    break
                at, speed, length = 0, 1.0, len(self.clips[left[-1]].samples)
            placed.append(Placed(left.pop(), at, length, speed))
            at += length + pause()
        return Row(tuple(placed), min(at, self.n_samples))

    def plan(self, step: int, rows: Sequence[Row]) -> Plan:
        n = max(len(row.clips) for row in rows)
        starts = torch.full((len(rows), n), self.n_samples)
        sources, lengths = torch.zeros_like(starts), torch.zeros_like(starts)
        speeds = torch.ones(starts.shape, dtype=torch.float64)
        for i, row in enumerate(rows):
            for k, clip in enumerate(row.clips):
                starts[i, k], lengths[i, k], speeds[i, k] = clip.start, clip.length, clip.speed
                sources[i, k] = int(self.sources[clip.clip])
        texts = tuple(" ".join(self.clips[clip.clip].transcript for clip in row.clips) for row in rows)
        ids = [torch.tensor(self.tokenizer.encode(text)) for text in texts]
        labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
        scene = Scene.draw(self.augment, len(rows), np.random.default_rng((self.seed, BATCH, step)))
        n_samples = torch.tensor([row.n_samples for row in rows])
        return Plan(starts, sources, lengths, speeds, n_samples, labels, texts, scene)

    def plans(self, first: int = 0) -> Iterator[Plan]:
        """Without end, from step `first` on, made ahead by a thread."""
        rows = islice((row for number in count() for row in self.epoch(number)), first * self.n_rows, None)
        source = (self.plan(step, list(islice(rows, self.n_rows))) for step in count(first))
        made: deque[Future[Plan]] = deque()
        with ThreadPoolExecutor(1) as pool:
            while True:
                while len(made) <= AHEAD:
                    made.append(pool.submit(next, source))
                yield made.popleft().result()
