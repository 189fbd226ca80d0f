"""Features of overlapping windows, computed once a frame.

With layer norm, and input that is not normalised by its window, what the extractor makes of a frame depends on its
receptive field alone, and all windows start on the frame grid: a window's features are those that earlier windows of
its stream left in a ring, and the new ones. Up to the rounding of products of other sizes nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.acoustic import AcousticModel, Features
from core.audio import HOP, n_frames, n_samples_for
from core.ring_buffer import RingBuffer


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Samples [start_sample, end_sample) of a stream, with what it holds; at least one frame."""

    samples: RingBuffer
    features: RingBuffer  # a row a frame
    start_sample: int  # a multiple of the hop
    end_sample: int


def read_features(model: AcousticModel, windows: Sequence[Window]) -> list[Features]:
    """(n_frames, hidden) of each window, which must be of different streams; what was missing is kept."""
    places = []
    for window in windows:
        first = window.start_sample // HOP
        if not window.features.start <= first <= window.features.end:  # frames between were never asked for
            window.features.restart(first)
        places.append((first, first + n_frames(window.end_sample - window.start_sample)))
    missing = [
        window.samples.read(HOP * window.features.end, n_samples_for(end)) if window.features.end < end else None
        for window, (_, end) in zip(windows, places, strict=True)
    ]
    computed = iter(model.features([samples for samples in missing if samples is not None]))
    for window, samples in zip(windows, missing, strict=True):
        if samples is not None:
            window.features.append(next(computed))
    return [window.features.read(*place) for window, place in zip(windows, places, strict=True)]
