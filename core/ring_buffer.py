"""A bounded buffer of samples addressed by their absolute index in the stream.

`append` never refuses: where the reader has not released enough, the oldest samples are overwritten and
the caller is told which, so that it can report the gap.
"""

from __future__ import annotations

import numpy as np

from core.audio import Samples


class RingBuffer:
    """Holds samples [start, end) of the stream; `end` counts all samples ever appended."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"Expected a capacity of at least 1 sample. Found: {capacity}")
        self.capacity = capacity
        self.start = 0  # oldest sample still held
        self.end = 0  # one past the newest
        # Grows by doubling up to `capacity`: ten thousand idle streams must not hold a minute each.
        self._ring = np.zeros(min(capacity, 16_384), dtype=np.float32)

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, samples: Samples) -> tuple[int, int]:
        """Adds samples; returns the range [from, to) that was lost for want of room (empty: from == to)."""
        n = len(samples)
        lost_from, lost_to = self.start, max(self.start, self.end + n - self.capacity)
        self._reserve(min(self.capacity, self.end + n - lost_to if lost_to <= self.end else n))
        kept = samples[max(0, n - self.capacity) :]
        size = len(self._ring)
        first = (self.end + n - len(kept)) % size
        head = min(len(kept), size - first)
        self._ring[first : first + head] = kept[:head]
        self._ring[: len(kept) - head] = kept[head:]
        self.end += n
        self.start = lost_to
        return lost_from, lost_to

    def read(self, start: int, end: int) -> Samples:
        """A copy of samples [start, end).

        Raises:
            ValueError: part of the range is no longer, or not yet, held.
        """
        if not self.start <= start <= end <= self.end:
            raise ValueError(f"Expected a range within [{self.start}, {self.end}). Found: [{start}, {end})")
        size = len(self._ring)
        first, n = start % size, end - start
        head = min(n, size - first)
        return np.concatenate([self._ring[first : first + head], self._ring[: n - head]])

    def release(self, start: int) -> None:
        """Gives up the samples before `start`."""
        self.start = max(self.start, min(start, self.end))

    def _reserve(self, n: int) -> None:
        if n <= len(self._ring):
            return
        size = len(self._ring)
        while size < n:
            size *= 2
        size = min(size, self.capacity)
        held = self.read(self.start, self.end)
        self._ring = np.zeros(size, dtype=np.float32)
        first = self.start % size
        head = min(len(held), size - first)
        self._ring[first : first + head] = held[:head]
        self._ring[: len(held) - head] = held[head:]
