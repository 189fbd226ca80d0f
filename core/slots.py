"""Streams whose last window lives on the model's device: a step sends the new samples and gets log-probabilities.

A stream that has a slot keeps there, in a ring of one window, the samples that it was last heard with; of models whose
frames have features that depend on nothing else these features, so that each sample is convolved once
(`core.feature_cache` is the same on the host). Rings are written and read for all streams of a batch by index.
A ring needs not be cleared: who takes a slot fills all of it first.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.acoustic import MAX_BATCH_SAMPLES, AcousticModel
from core.audio import HOP, n_samples_for
from core.graphs import Graphs
from core.ring_buffer import RingBuffer
from core.stitcher import LogProbs


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one stream."""

    slots: Slots
    index: int
    release: Callable[[], object]  # gives it back; a second call does nothing
    end: int = 0  # one past the last row of the stream that is there


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """A window, as long as its slot is wide, of a stream that has one."""

    slot: Slot
    samples: RingBuffer
    start_sample: int  # a multiple of the hop
    moments: tuple[float, float] = (0.0, 1.0)  # mean and deviation, where the model wants them taken out


class Slots:
    """Places for `n` streams whose windows have `window` frames and move by `hop` frames, mostly.

    Rows are frames of features, or samples. All memory is reserved at once, because graphs know where it lies.
    """

    def __init__(self, model: AcousticModel, n: int, window: int, hop: int, captures: bool = True) -> None:
        if min(n, window, hop) < 1:
            raise ValueError(f"Expected at least 1 slot, window and hop. Found: {n}, {window} and {hop}")
        self.model, self.n, self.window, self.hop = model, n, window, hop
        self.device = model.model.device
        width = model.n_local_features
        self.unit = HOP if width else 1  # samples from a row to the next
        self.halo = model.halo if width else 0  # rows next to a window's end that know too little to be kept
        self.n_rows = window if width else n_samples_for(window)
        self.most_new = hop if width else hop * HOP
        self.rings = torch.zeros((n, self.n_rows, *([width] if width else [])), device=self.device)
        self.free = list(range(n))[::-1]
        # As many as a batch may be long, rounded down to a size that is run as it is.
        self.most = 1 << (max(1, MAX_BATCH_SAMPLES // n_samples_for(window)).bit_length() - 1)
        self.graphs = Graphs(self.device, captures)
        self.lock = threading.Lock()  # one batch at a time

    def take(self, stream: object) -> Slot:
        """A place for a stream, until it is released or the stream is no more.

        Raises:
            RuntimeError: all are taken.
        """
        if not self.free:
            raise RuntimeError(f"Expected a free slot. Found: all {self.n} taken")
        index = self.free.pop()
        return Slot(self, index, weakref.finalize(stream, self.free.append, index))

    def warm_up(self, most: int) -> None:
        """Runs the batches of up to `most` streams, while none has a slot: the first of each size is slow."""
        samples = RingBuffer(n_samples_for(2 * self.window))
        samples.append(np.zeros(samples.capacity, np.float32))
        for n in (1 << i for i in range(min(most, self.most, self.n).bit_length())):
            slots = [Slot(self, i, bool) for i in range(n)]
            for start in (0, HOP * self.hop):  # a whole window, and a hop
                self.emit([Resident(slot, samples, start) for slot in slots])

    @torch.inference_mode()
    def emit(self, windows: Sequence[Resident]) -> list[LogProbs]:
        """(n_frames, n_vocab) float32 log-probabilities of each window, which must be of different slots."""
        results = []
        with self.lock:
            for first in range(0, len(windows), self.most):
                part = windows[first : first + self.most]
                self.fill(part)
                places = self.pinned([[window.slot.index, window.start_sample // self.unit] for window in part])
                moments = self.pinned([window.moments for window in part], torch.float64)
                rows = self.graphs(self.emission, places, moments)
                results.append(self.reserve(rows.shape, rows.dtype).copy_(rows, non_blocking=True))
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
        return [log_probs for rows in results for log_probs in rows.numpy()]

    def fill(self, windows: Sequence[Resident]) -> None:
        """Sends what the rings lack of each window."""
        groups: dict[tuple[int, int], list[Resident]] = defaultdict(list)
        for window in windows:
            if n := self.n_missing(window):
                is_held = (self.end(window) - n - self.halo) * self.unit >= window.samples.start
                groups[n, self.halo if is_held else 0].append(window)
        for (n, lead), members in groups.items():
            rows = n_samples_for(n + lead) if self.unit == HOP else n
            samples = self.reserve((len(members), rows), torch.float32)
            places = []
            for row, window in zip(samples.numpy(), members, strict=True):
                first = self.end(window) - n
                sample = (first - lead) * self.unit
                window.samples.read_into(sample, row)
                places.append([window.slot.index, first])
            self.graphs(self.put_after if lead else self.put, samples, self.pinned(places))
            for window in members:
                window.slot.end = self.end(window) - self.halo

    def end(self, window: Resident) -> int:
        """One past the last row of a window."""
        return window.start_sample // self.unit + self.n_rows

    def n_missing(self, window: Resident) -> int:
        """Rows at a window's end that its slot lacks, rounded up to whole hops, so that few sizes occur."""
        end = self.end(window)
        n_new = end - window.slot.end if end - self.n_rows < window.slot.end <= end else self.n_rows
        return min(self.n_rows, -(-(n_new - self.halo) // self.most_new) * self.most_new + self.halo)

    def put_after(self, samples: Tensor, places: Tensor) -> Tensor:
        """As `put`, of samples that begin a halo before the first row."""
        return self.put(samples, places, self.halo)

    def put(self, samples: Tensor, places: Tensor, lead: int = 0) -> Tensor:
        """Writes what is heard in samples (batch, sample) at `places` (batch, 2): slot, first row."""
        rows = self.model.model.embed(samples).float()[:, lead:] if self.unit == HOP else samples
        self.rings[places[:, :1], self.turn(places, rows.shape[1])] = rows
        return rows

    def emission(self, places: Tensor, moments: Tensor) -> Tensor:
        """(batch, frame, vocab) of the windows that begin at `places`, less mean and by deviation: (batch, 2)."""
        rows = self.rings[places[:, :1], self.turn(places, self.n_rows)]
        if self.unit == HOP:
            return self.model.model.log_probs_of(rows)
        if self.model.normalises:  # as `Statistics.normalise` rounds
            rows = ((rows - moments[:, :1].float()).double() / moments[:, 1:]).float()
        return self.model.model.log_probs(rows)

    def turn(self, places: Tensor, n: int) -> Tensor:
        """(batch, n) indices within the rings of the rows that follow each first one."""
        return (places[:, 1:] + torch.arange(n, device=places.device)) % self.n_rows

    def reserve(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can copy from and to while the host goes on."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def pinned(self, values: Sequence[Sequence[float]], dtype: torch.dtype = torch.int64) -> Tensor:
        """A table in such memory."""
        return self.reserve((len(values), len(values[0])), dtype).copy_(torch.tensor(values, dtype=dtype))
