"""Silence, of which the model need not be asked.

Where nothing moves, in a window of a muted microphone or a line that sends nothing, every sample is the same: what the
model says of one such window it says of all of that value and length.

Any other silence is noise, in which it may hear something, so that no segment ends and no word is final without it.
But a partial is not worth a step where the newest sound is no louder than that of the pause that the model has found
last: it would say what the one before said.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.ring_buffer import RingBuffer

GLANCE = 400  # newest samples, which nearly always tell that a window is not still
BLOCK = 5  # frames whose sound is told apart, about the length of the shortest words
LOUDER = 5.0  # energy of noise that is still the same, beside its mean


def still_value(samples: RingBuffer, start: int, end: int) -> float | None:
    """The value that all samples [start, end) have; None where they differ, or there are none."""
    newest = samples.read(max(start, end - GLANCE), end)
    if not len(newest) or newest[0] != newest[-1] or (newest != newest[0]).any():
        return None
    return float(newest[0]) if (samples.read(start, end) == newest[0]).all() else None


def hush_of(energy: NDArray[np.float32], has_letter: NDArray[np.bool_], cut: int, quiet_ratio: float) -> float:
    """The energy up to which sound is the silence of a segment that a pause has ended.

    Args:
        energy: (n_frames,) mean square of each frame of the segment and of the pause.
        has_letter: (n_frames,) of the same; there is one.
        cut: in the midst of the pause, which goes on to the end.
        quiet_ratio: as in `EndpointConfig`.
    """
    return float(min(LOUDER * energy[cut:].mean(), quiet_ratio * energy[has_letter].mean()))


def is_hushed(energy: NDArray[np.float32], hush: float) -> bool:
    """Whether no block of (n_frames,) is louder."""
    return bool((energy[len(energy) % BLOCK :].reshape(-1, BLOCK).mean(1) <= hush).all())
