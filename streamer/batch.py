"""Which of the streams that are ready run together."""

from __future__ import annotations

from collections.abc import Sequence

from streamer.job import Job
from streamer.load import Cost

SHARE_OF_HOP = 0.25  # time that one batch may take, where it holds more than one stream


def choose(ready: Sequence[Job], cost: Cost, max_batch: int) -> list[Job]:
    """The job with the earliest deadline, and those that can share its batch without making it long.

    Args:
        ready: in the order of their deadlines, at least one.
        cost: of the first one's engine.
    """
    first = ready[0]
    if first.is_final and not first.engine.slots:
        return [first]  # no final hangs on who else spoke: sums differ in their last bits from batch to batch
    base, slope = cost.line()
    room_s = SHARE_OF_HOP * first.hop_s - base
    n = max_batch if slope == 0 else int(min(max_batch, max(1.0, room_s / (slope * first.computed_s()))))
    alike = (job for job in ready if job.engine is first.engine and job.window_samples == first.window_samples)
    return [job for job in alike if job.is_final == first.is_final][:n]
