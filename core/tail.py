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

LONGEST = 1000  # frames that the positions of a sequence may reach; the next window is run as a whole


@dataclass(slots=True, eq=False)
class Memory:
    """What a stream keeps of its last window."""

    first_frame: int = 0
    origin: int = 0  # the frame at position 0
    past: Tensor | None = None  # (layer, 2, head, frame, hidden / head) keys and values
    log_probs: LogProbs | None = None  # (frame, vocab)

    @property
    def end_frame(self) -> int:
        return self.first_frame + (0 if self.log_probs is None else len(self.log_probs))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A window whose features are known: frames [start_frame, start_frame + len(features)) of a stream."""

    features: Features
    start_frame: int
    memory: Memory
    refresh: int  # frames that are computed again, besides the new ones

    @property
    def n_known(self) -> int:
        """Frames at the window's beginning that stay as they were computed last; 0 where all must be computed."""
        memory, end = self.memory, self.start_frame + len(self.features)
        is_near = memory.first_frame <= self.start_frame and end <= memory.origin + LONGEST
        return max(0, min(memory.end_frame, end) - self.refresh - self.start_frame) if is_near else 0


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
    pasts: list[Tensor | None] = []
    starts = []
    for step in steps:
        memory, first = step.memory, step.start_frame - step.memory.first_frame
        if n_known == 0:
            memory.origin = step.start_frame
            pasts.append(None)
        else:
            assert memory.past is not None
            pasts.append(memory.past[:, :, :, first : first + n_known])
        starts.append(step.start_frame + n_known - memory.origin)
    positions = torch.tensor(starts)[:, None] + torch.arange(n - n_known)
    rows, present = model.model.resume(hidden, n_lead, positions.to(device), pasts)
    results = []
    for i, (step, new) in enumerate(zip(steps, rows.float().cpu().numpy(), strict=True)):
        memory, first = step.memory, step.start_frame - step.memory.first_frame
        if n_known:
            assert memory.log_probs is not None
            new = np.concatenate([memory.log_probs[first : first + n_known], new])
        # One of many is copied, or it would keep the others' alive.
        past = present[:, :, i].clone() if len(steps) > 1 else present[:, :, i]
        memory.first_frame, memory.past, memory.log_probs = step.start_frame, past, new
        results.append(new)
    return results
