"""Windows in which nothing moves: a muted microphone, or a line that sends nothing.

Every sample is the same, so what the model says of one such window it says of all of that value and length, and need
not be asked again. Any other silence is noise, in which it may hear something: it is never left out.
"""

from __future__ import annotations

from core.ring_buffer import RingBuffer

GLANCE = 400  # newest samples, which nearly always tell that a window is not still


def still_value(samples: RingBuffer, start: int, end: int) -> float | None:
    """The value that all samples [start, end) have; None where they differ, or there are none."""
    newest = samples.read(max(start, end - GLANCE), end)
    if not len(newest) or newest[0] != newest[-1] or (newest != newest[0]).any():
        return None
    return float(newest[0]) if (samples.read(start, end) == newest[0]).all() else None
