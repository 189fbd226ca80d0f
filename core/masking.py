"""Random span masks: SpecAugment over time and channels, and the masks of pre-training.

Every frame starts a span of `length` with a probability such that, spans not overlapping, `prob` of
all frames would be masked (Baevski et al. 2020, section 4.2; Park et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_spans(
    n_valid: list[int],
    n_total: int,
    prob: float,
    length: int,
    min_masks: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Bool (len(n_valid), n_total), True where masked; spans lie within the first `n_valid` places.

    Raises:
        ValueError: `length` is below 1 or above `n_total`.
    """
    if length < 1:
        raise ValueError(f"A span must have at least 1 place. Found: {length}")
    if length > n_total:
        raise ValueError(f"A span of {length} does not fit into {n_total} places")
    mask = torch.zeros(len(n_valid), n_total, dtype=torch.bool)
    for row, n in enumerate(n_valid):
        n_starts = n - length + 1
        if n_starts < 1:
            continue
        # The dither makes the expected number exact where prob * n / length is no integer.
        n_spans = int(prob * n / length + float(torch.rand((), generator=generator)))
        n_spans = min(max(n_spans, min_masks), n // length)  # together never longer than the row
        starts = torch.randperm(n_starts, generator=generator)[:n_spans]
        places = (starts[:, None] + torch.arange(length)).flatten()
        mask[row, places] = True
    return mask
