"""Streams whose last window lives on the model's device: a step sends the new samples and gets log-probabilities.

A stream that has a slot keeps there, in a ring of one window, the samples that it was last heard with; of models whose
frames have features that depend on nothing else these features, so that each sample is convolved once
(`core.feature_cache` is the same on the host). Of such models the keys and values of the window's frames may stay, too,
and a step computes the newest frames alone (`core.tail` on the host). Rings are written and read for all streams of a
batch by index. A ring needs not be cleared: who takes a slot fills all of it first.

Models that normalise over time keep features, too, where streams are normed by their running statistics: each hop's
frames by what had been heard up to their end, whichever step computes them.

Steps that can end a segment go on from one another, and write what they compute. Those that only show go on from the
last of these and write no keys and values, and so leave no trace.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.acoustic import MAX_BATCH_SAMPLES, AcousticModel
from core.audio import HOP, Samples, n_samples_for
from core.graphs import Graphs
from core.ring_buffer import RingBuffer
from core.statistics import Statistics
from core.stitcher import LogProbs
from core.tail import Memory

PARTS = 8  # of a GPU's memory, one of which the keys and values of streams that are cut alike may take

# Slot and first row, samples, and of what norms of channels follow from.
Piece = tuple[list[int], Samples, NDArray[np.float64] | None]


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
    # Of the last window that wrote its keys and values, `past` aside; None computes all of this one, and writes none.
    memory: Memory | None = None
    refresh: int = 0  # frames that are computed again then, besides the new ones
    writes: bool = True
    statistics: Statistics | None = None  # of the stream, where its features are kept by them

    @property
    def first_frame(self) -> int:
        return self.start_sample // HOP


class Slots:
    """Places for `n` streams whose windows have `window` frames and move by `hop` frames, mostly.

    Rows are frames of features, or samples. All memory is reserved at once, because graphs know where it lies.
    """

    def __init__(
        self, model: AcousticModel, n: int, window: int, hop: int, captures: bool = True, is_running: bool = False
    ) -> None:
        """`captures`: see `Graphs`; `is_running`: of a model that normalises over time, by running statistics."""
        if min(n, window, hop) < 1:
            raise ValueError(f"Expected at least 1 slot, window and hop. Found: {n}, {window} and {hop}")
        self.model, self.n, self.window, self.hop = model, n, window, hop
        self.device = model.model.device
        width = model.n_features if is_running else model.n_local_features
        self.is_running = is_running
        self.unit = HOP if width else 1  # samples from a row to the next
        self.halo = model.halo if width else 0  # rows next to a window's end that know too little to be kept
        self.n_rows = window if width else n_samples_for(window)
        self.most_new = hop if width else hop * HOP
        self.rings = torch.zeros((n, self.n_rows, *([width] if width else [])), device=self.device)
        self.n_lead = model.config.num_conv_pos_embeddings // 2  # frames that the positional convolution looks back
        # Keys and values (layer, slot, 2, head, frame, hidden / head), reserved when the first are written; with one
        # slot more than there are, for those that shall leave no trace.
        self.past: Tensor | None = None
        self.free = list(range(n))[::-1]
        # As many as a batch may be long, rounded down to a size that is run as it is.
        self.most = 1 << (max(1, MAX_BATCH_SAMPLES // n_samples_for(window)).bit_length() - 1)
        self.graphs = Graphs(self.device, captures)
        self.lock = threading.Lock()  # of who sends a batch

    def take(self, stream: object) -> Slot:
        """A place for a stream, until it is released or the stream is no more.

        Raises:
            RuntimeError: all are taken.
        """
        if not self.free:
            raise RuntimeError(f"Expected a free slot. Found: all {self.n} taken")
        index = self.free.pop()
        return Slot(self, index, weakref.finalize(stream, self.free.append, index))

    @cached_property
    def keeps_past(self) -> bool:
        """Whether keys and values can stay: of frames that keep their features, where the device has room for them."""
        if self.unit != HOP or self.device.type != "cuda":
            return self.unit == HOP
        config, itemsize = self.model.config, self.model.model.dtype.itemsize
        n = 2 * config.num_hidden_layers * (self.n + 1) * self.window * config.hidden_size
        return n * itemsize <= torch.cuda.get_device_properties(self.device).total_memory // PARTS

    def warm_up(self, most: int, refresh: int | None = None, most_hops: int = 1) -> None:
        """Runs the batches of up to `most` streams, while none has a slot: the first of each size is slow.

        Args:
            refresh: of streams that compute the newest frames alone; None where they compute their windows.
            most_hops: from one of their steps that write to the next.
        """
        is_tail = refresh is not None and refresh < self.window and self.keeps_past
        n_hops = most_hops if is_tail else 1
        samples = RingBuffer(n_samples_for(self.window + n_hops * self.hop))
        samples.append(np.zeros(samples.capacity, np.float32))
        for n in (1 << i for i in range(min(most, self.most, self.n).bit_length())):
            slots = [Slot(self, i, bool) for i in range(n)]
            memories = [Memory() if is_tail else None for _ in slots]
            heard = [self.model.statistics(True) if self.is_running else None for _ in slots]
            for i in range(n_hops + 1):  # a whole window, and so many hops
                window = Resident(slots[0], samples, HOP * self.hop * i, refresh=refresh or 0, writes=not i)
                of_slots = zip(slots, memories, heard, strict=True)
                self.emit([replace(window, slot=s, memory=m, statistics=h) for s, m, h in of_slots])

    @torch.inference_mode()
    def emit(self, windows: Sequence[Resident]) -> list[LogProbs]:
        """(n_frames, n_vocab) float32 log-probabilities of each window, which must be of different slots.

        The memories of those that write are brought up to date. While the device computes, another thread may send its
        batch, which comes after this one there.
        """
        pending: list[tuple[list[Resident], int, Tensor]] = []
        with self.lock:
            for first in range(0, len(windows), self.most):
                part = windows[first : first + self.most]
                self.fill(part)
                groups: dict[int, list[Resident]] = defaultdict(list)
                for window in part:
                    groups[self.n_computed(window)].append(window)
                for n, members in groups.items():
                    rows = self.run_tail(members, n) if n else self.run_whole(members)
                    pending.append((members, n, self.reserve(rows.shape, rows.dtype).copy_(rows, non_blocking=True)))
            done = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        if done is not None:
            done.synchronize()
        results: dict[int, LogProbs] = {}
        for members, n, rows in pending:
            for window, new in zip(members, rows.numpy(), strict=True):
                results[window.slot.index] = self.remember(window, n, new) if n else new
        return [results[window.slot.index] for window in windows]

    def run_whole(self, windows: Sequence[Resident]) -> Tensor:
        places = self.pinned([[window.slot.index, window.start_sample // self.unit] for window in windows])
        moments = self.pinned([window.moments for window in windows], torch.float64)
        return self.graphs(self.emission, places, moments)

    def n_computed(self, window: Resident) -> int:
        """Frames at a window's end to compute, with so many whole hops among them that few sizes occur; 0 where there
        is no memory to go on from, or to write."""
        memory, first = window.memory, window.first_frame
        if memory is None:
            return 0
        n_new = self.window - memory.n_known(first, first + self.window, window.refresh) - window.refresh
        n = max(1, -(-n_new // self.hop)) * self.hop + window.refresh
        return n if n + self.n_lead < self.window else self.window

    def run_tail(self, windows: Sequence[Resident], n: int) -> Tensor:
        """(batch, n, vocab) of the last `n` frames of each window."""
        places = []
        for window in windows:
            index, memory = window.slot.index, window.memory
            assert memory is not None
            origin = memory.origin if n < self.window else window.first_frame
            places.append([index, index if window.writes else self.n, origin])
        n_heard = n if n == self.window else n + self.n_lead
        firsts = torch.tensor([[self.end(window) - n_heard] for window in windows])
        frames = self.reserve((len(windows), n_heard), torch.int64).copy_(firsts + torch.arange(n_heard))
        return self.graphs(self.tail, self.pinned(places), frames)

    def remember(self, window: Resident, n: int, new: LogProbs) -> LogProbs:
        """All of a window whose last `n` frames were computed; what it leaves to the next is noted."""
        memory, first = window.memory, window.first_frame
        assert memory is not None
        # What is alone is copied, or it would keep the rest of its batch alive.
        log_probs = memory.joined(first, self.window - n, new) if n < self.window else new.copy()
        if window.writes:
            memory.origin = memory.origin if n < self.window else first
            memory.first_frame, memory.log_probs = first, log_probs
        return log_probs

    def fill(self, windows: Sequence[Resident]) -> None:
        """Sends what the rings lack of each window."""
        groups: dict[tuple[int, int], list[Piece]] = defaultdict(list)
        for window in windows:
            for first, n in self.missing(window):
                lead = self.halo if (first - self.halo) * self.unit >= window.samples.start else 0
                groups[n, lead].append(self.piece(window, first, n, lead))
        for (_, lead), pieces in groups.items():
            places, samples, moments = zip(*pieces, strict=True)
            batch = self.reserve((len(samples), len(samples[0])), torch.float32)
            np.stack(samples, out=batch.numpy())
            inputs = [batch, self.pinned(places)]
            if moments[0] is not None:
                of_channels = self.reserve((len(moments), len(moments[0])), torch.float64)
                np.stack(moments, out=of_channels.numpy())
                self.graphs(self.put_normed, *inputs, of_channels)
            else:
                self.graphs(self.put_after if lead else self.put, *inputs)
        for window in windows:
            window.slot.end = self.end(window) - self.halo

    def missing(self, window: Resident) -> Iterator[tuple[int, int]]:
        """The first row, and how many follow, of each piece to send: by running statistics a hop, or less at first."""
        end, n = self.end(window), self.n_missing(window)
        while n:
            size = n if window.statistics is None else (n - 1) % self.hop + 1
            yield end - n, size
            n -= size

    def piece(self, window: Resident, first: int, n: int, lead: int) -> Piece:
        """Of `n` rows from `first` on."""
        sample, end = (first - lead) * self.unit, (first + n) * self.unit
        samples = window.samples.read(sample, n_samples_for(first + n) if self.unit == HOP else end)
        place, statistics = [window.slot.index, first], window.statistics
        if statistics is None:
            return place, samples, None
        statistics.hear(window.samples, n_samples_for(first + n))
        if self.model.norms_channels:
            return place, samples, self.model.channel_moments(statistics)
        return place, statistics.normalise(samples), None

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

    def put_normed(self, samples: Tensor, places: Tensor, moments: Tensor) -> Tensor:
        """As `put`, with `AcousticModel.channel_moments` (batch, n) of the streams."""
        return self.put(samples, places, norms=self.model.norms_of(moments))

    def put(self, samples: Tensor, places: Tensor, lead: int = 0, norms: Tensor | None = None) -> Tensor:
        """Writes what is heard in samples (batch, sample) at `places` (batch, 2): slot, first row."""
        rows = self.model.model.embed(samples, norms).float()[:, lead:] if self.unit == HOP else samples
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

    def tail(self, places: Tensor, frames: Tensor) -> Tensor:
        """(batch, frame, vocab) of the newest frames of windows, or of all.

        Args:
            places: (batch, 3): the slots to read and to write, and the frame at position 0.
            frames: (batch, n_lead + frame); of whole windows those alone.
        """
        slot, to, origin = places[:, 0], places[:, 1:2], places[:, 2:]
        is_whole = frames.shape[1] == self.window
        n_lead, turns = 0 if is_whole else self.n_lead, frames % self.window
        new = turns[:, n_lead:]

        def recall(layer: int, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
            if self.past is None:
                heads, d = k.shape[1], k.shape[3]
                self.past = k.new_zeros(self.model.config.num_hidden_layers, self.n + 1, 2, heads, self.window, d)
            rows, past = torch.stack([k, v], 1), self.past[layer]  # (batch, 2, head, frame, d)
            past[to, :, :, new] = rows.permute(0, 3, 1, 2, 4)
            if is_whole:
                return [(k, v)]
            # As they lie in the ring: the new ones are where the oldest were.
            whole = past[slot].scatter_(3, new[:, None, None, :, None].expand_as(rows), rows)
            return [(whole[:, 0], whole[:, 1])]

        heard = self.rings[places[:, :1], turns]
        return self.model.model.resume(heard, n_lead, frames[:, n_lead:] - origin, recall)

    def turn(self, places: Tensor, n: int) -> Tensor:
        """(batch, n) indices within the rings of the rows that follow each first one."""
        return (places[:, 1:] + torch.arange(n, device=places.device)) % self.n_rows

    def reserve(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can copy from and to while the host goes on."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def pinned(self, values: Sequence[Sequence[float]], dtype: torch.dtype = torch.int64) -> Tensor:
        """A table in such memory."""
        return self.reserve((len(values), len(values[0])), dtype).copy_(torch.tensor(values, dtype=dtype))
