"""Features of overlapping windows, computed once a frame.

With layer norm, and input that is taken as it is, what the extractor makes of a frame depends on its receptive field
alone, and all windows start on the frame grid: a window's features are those that earlier windows of its stream left
in a ring, and the new ones. Up to the rounding of products of other sizes nothing changes; final passes, which are to
be to the bit what an offline pass is, compute their own.

Where convolutions are padded, the frames next to either end of a window hear padding instead of what lies beyond (the
model's halo): a stream's windows are computed with what lies before them, and their last frames are not kept.

Models that normalise input or channels over time are given the statistics of the stream instead of a window's. Each
hop's frames are computed by what had been heard up to its end, whenever they are computed: steps that are left out
change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.acoustic import AcousticModel, ChannelNorm, Features
from core.audio import HOP, Samples, n_frames, n_samples_for
from core.ring_buffer import RingBuffer
from core.statistics import Statistics


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Samples [start_sample, end_sample) of a stream, with what it holds; at least one frame."""

    samples: RingBuffer
    features: RingBuffer  # a row a frame
    start_sample: int  # a multiple of the hop
    end_sample: int
    statistics: Statistics | None = None  # of the stream
    step: int = 1  # frames between the ends of windows, where there are statistics

    def missing(self) -> Iterator[tuple[int, int]]:
        """Frames [start, end) to compute, in order."""
        start, end = self.features.end, self.end_frame
        while start < end:
            n = end - start if self.statistics is None else (end - start - 1) % self.step + 1
            yield start, start + n
            start += n

    @property
    def first_frame(self) -> int:
        return self.start_sample // HOP

    @property
    def end_frame(self) -> int:
        return self.first_frame + n_frames(self.end_sample - self.start_sample)


def read_features(model: AcousticModel, windows: Sequence[Window]) -> list[Features]:
    """(n_frames, hidden) of each window, which must be of different streams; what was missing is kept."""
    pieces: list[tuple[Window, slice, Samples]] = []
    norms: list[ChannelNorm] = []
    for window in windows:
        if not window.features.start <= window.first_frame <= window.features.end:  # frames between were not asked for
            window.features.restart(window.first_frame)
        if model.halo:
            window.features.truncate(window.end_frame - model.halo)
        for start, end in window.missing():
            lead = model.halo if HOP * (start - model.halo) >= window.samples.start else 0
            samples = window.samples.read(HOP * (start - lead), window.end_sample if model.halo else n_samples_for(end))
            if window.statistics is not None:
                window.statistics.hear(window.samples, n_samples_for(end))
                if model.norms_channels:
                    norms.append(model.channel_norm(window.statistics))
                else:
                    samples = window.statistics.normalise(samples)
            pieces.append((window, slice(lead, lead + end - start), samples))
    computed = model.features([samples for *_, samples in pieces], norms or None)
    for (window, frames, _), features in zip(pieces, computed, strict=True):
        window.features.append(features[frames])
    results = [window.features.read(window.first_frame, window.end_frame) for window in windows]
    if model.halo:
        for window in windows:
            window.features.truncate(window.end_frame - model.halo)
    return results
