"""A bounded buffer of samples, or of rows of features, addressed by their absolute index in the stream.

`append` never refuses: where the reader has not released enough, the oldest samples are overwritten and
the caller is told which, so that it can report the gap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RingBuffer:
    """Holds samples [start, end) of the stream; `end` counts all samples ever appended."""

    def __init__(self, capacity: int, initial: int = 16_384, width: int | None = None) -> None:
        """`initial` samples are reserved at first; the rest, by doubling, when it is needed: ten thousand idle
        streams must not hold a minute each. With a `width` each "sample" is a row of so many numbers."""
        if capacity < 1 or initial < 1:
            raise ValueError(f"Expected a capacity of at least 1 sample. Found: {min(capacity, initial)}")
        self.capacity = capacity
        self.start = 0  # oldest sample still held
        self.end = 0  # one past the newest
        shape = () if width is None else (width,)
        self._ring = np.zeros((min(capacity, initial), *shape), dtype=np.float32)  # sample s lies at s % len

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, samples: NDArray[np.float32]) -> tuple[int, int]:
        """Adds samples; returns the range [from, to) that was lost for want of room (empty: from == to)."""
        old_start, end = self.start, self.end + len(samples)
        start = max(old_start, end - self.capacity)
        self._reserve(end - start)
        self._write(max(start, self.end), samples[max(0, start - self.end) :])
        self.start, self.end = start, end
        return old_start, start

    def read(self, start: int, end: int) -> NDArray[np.float32]:
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

    def truncate(self, end: int) -> None:
        """Forgets the samples from `end` on; what is appended next takes their place."""
        self.end = max(self.start, min(self.end, end))

    def restart(self, start: int) -> None:
        """Forgets everything; what is appended next begins at `start`."""
        self.start = self.end = start

    def _reserve(self, n: int) -> None:
        """Makes room for `n` samples in all, `n` at most `capacity`."""
        size = len(self._ring)
        if n <= size:
            return
        while size < n:
            size *= 2
        held = self.read(self.start, self.end)
        self._ring = np.zeros((min(size, self.capacity), *self._ring.shape[1:]), dtype=np.float32)
        self._write(self.start, held)

    def _write(self, start: int, samples: NDArray[np.float32]) -> None:
        """Puts samples at [start, start + n), around the end of the ring; they fit."""
        first = start % len(self._ring)
        head = min(len(samples), len(self._ring) - first)
        self._ring[first : first + head] = samples[:head]
        self._ring[: len(samples) - head] = samples[head:]
