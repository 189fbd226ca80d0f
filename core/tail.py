"""Steps that compute the newest frames of their window alone.

A step's window repeats most of the one before. What its older frames are to the newer ones, their keys and values in
every layer, is kept from when they were last computed, and so is what was said of them: that they then knew a little
less of what follows is an approximation. It serves partials and the ends of segments; final passes run as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.acoustic import AcousticModel, Features
from core.stitcher import LogProbs

ROOM = 2  # windows whose keys and values a stream has room for, so that they are seldom moved
LONGEST = 1000  # frames that the positions of a sequence may reach; the next window is run as a whole


@dataclass(slots=True, eq=False)
class Memory:
    """What a stream keeps of its last window."""

    first_frame: int = 0
    origin: int = 0  # the frame at position 0
    past: Tensor | None = None  # (layer, 2, head, room, hidden / head) keys and values, unless a slot has them
    past_frame: int = 0  # the frame at the first place of those
    log_probs: LogProbs | None = None  # (frame, vocab)

    @property
    def end_frame(self) -> int:
        return self.first_frame + (0 if self.log_probs is None else len(self.log_probs))

    def n_known(self, start: int, end: int, refresh: int) -> int:
        """Of the window of frames [start, end) those at the beginning that stay as they were computed last.

        0 where all must be computed. `refresh` frames are computed again, besides the new ones.
        """
        is_near = self.first_frame <= start and end <= self.origin + LONGEST
        return max(0, min(self.end_frame, end) - refresh - start) if is_near else 0

    def make_room(self, start: int, n: int, n_known: int, n_layers: int, keys: Tensor) -> int:
        """The place in `past` of frame `start` of a window of `n` frames, which fits there from now on.

        What a copy of this memory knows stays where it is: steps of either write behind that alone.

        Args:
            keys: (batch, head, frame, hidden / head) of a block.
        """
        if n_known and self.past is not None and start - self.past_frame + n <= self.past.shape[3]:
            return start - self.past_frame
        room = max(ROOM * n, 0 if self.past is None else self.past.shape[3])  # windows at the beginning are shorter
        past = keys.new_empty(n_layers, 2, keys.shape[1], room, keys.shape[3])
        if n_known:
            assert self.past is not None
            first = start - self.past_frame
            past[:, :, :, :n_known] = self.past[:, :, :, first : first + n_known]
        self.past, self.past_frame = past, start
        return 0

    def joined(self, start: int, n_known: int, new: LogProbs) -> LogProbs:
        """(frame, vocab) of the window from frame `start` on, of which `new` was computed."""
        if not n_known:
            return new
        assert self.log_probs is not None
        first = start - self.first_frame
        return np.concatenate([self.log_probs[first : first + n_known], new])


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A window whose features are known: frames [start_frame, start_frame + len(features)) of a stream."""

    features: Features
    start_frame: int
    memory: Memory
    refresh: int  # frames that are computed again, besides the new ones

    @property
    def n_known(self) -> int:
        """As `Memory.n_known`."""
        return self.memory.n_known(self.start_frame, self.start_frame + len(self.features), self.refresh)


def emit_steps(model: AcousticModel, steps: Sequence[Step]) -> list[LogProbs]:
    """(n_frames, n_vocab) of each window, which must be of different streams; their memories are brought up to date."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        groups[step.n_known, len(step.features)].append(i)
    results: dict[int, LogProbs] = {}
    for (n_known, n), members in groups.items():
        results |= zip(members, run([steps[i] for i in members], n_known, n, model), strict=True)
    return [results[i] for i in range(len(steps))]


def run(steps: Sequence[Step], n_known: int, n: int, model: AcousticModel) -> list[LogProbs]:
    """Those that know and have as many frames, as one batch."""
    config, device = model.config, model.model.device
    n_lead = min(n_known, config.num_conv_pos_embeddings // 2)
    hidden = torch.from_numpy(np.stack([step.features[n_known - n_lead :] for step in steps])).to(device)
    for step in steps:
        if n_known == 0:
            step.memory.origin = step.start_frame
    starts = torch.tensor([step.start_frame + n_known - step.memory.origin for step in steps])
    positions = starts[:, None] + torch.arange(n - n_known)
    places: list[int] = []

    def recall(layer: int, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each stream's own, where they are kept: nothing of the past is copied."""
        known = []
        for row, step in enumerate(steps):
            if layer == 0:
                places.append(step.memory.make_room(step.start_frame, n, n_known, config.num_hidden_layers, k))
            assert step.memory.past is not None
            keys, values = step.memory.past[layer, :, None, :, places[row] : places[row] + n]
            keys[:, :, n_known:], values[:, :, n_known:] = k[row], v[row]
            known.append((keys, values))
        return known

    rows = model.model.resume(hidden, n_lead, positions.to(device), recall)
    results = []
    for step, new in zip(steps, rows.float().cpu().numpy(), strict=True):
        memory = step.memory
        log_probs = memory.joined(step.start_frame, n_known, new)
        memory.first_frame, memory.log_probs = step.start_frame, log_probs
        results.append(log_probs)
    return results
