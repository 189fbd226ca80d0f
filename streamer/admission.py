"""What gives way when there is more to do than time: partials first, then whoever would come next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from core.audio import FRAMES_PER_SECOND
from core.engine import Engine
from core.windows import StreamConfig
from streamer.job import Job
from streamer.load import Cost, Responses, rate, step_s

LATE, CALM = 0.7, 0.35  # 95 % of the steps take this share of the hop: some are left out, and shown again
FULL, FREE = 0.8, 0.65  # the same for the share of the time that all steps would need
ADAPT_S = 0.2  # between two looks at it
CALM_S = 5.0  # they are left out for at least this long


class Admission:
    """Sans clock, and for one thread at a time.

    Args:
        costs: of each engine's batches; others add to them, as to `responses`.
    """

    def __init__(self, costs: Mapping[Engine, Cost], n_workers: int) -> None:
        self.costs = costs
        self.n_workers = n_workers
        self.responses = Responses()
        self.is_widened = False  # steps that only show partials are left out
        self.widened_at = self.adapted_at = 0.0

    def utilisation(self, jobs: Sequence[Job], shows_all: bool) -> float:
        """Share of the workers' time that these need in real time."""
        rates = ((job, rate(job.stream.config, shows_all and job.wants_partials, job.engine.is_whole)) for job in jobs)
        return sum(self.costs[job.engine].utilisation(seconds) for job, seconds in rates) / self.n_workers

    def has_room(self, jobs: Iterable[Job], config: StreamConfig, engine: Engine, channels: int, now: float) -> bool:
        """Whether one more session would leave 95 % of the steps of all done before the next hop of audio is there.

        Steps that may be left out are not counted: they give way.
        """
        busy = [job for job in jobs if job.is_at_work(now)]
        if not busy:
            return True
        cost, is_whole = self.costs[engine], engine.is_whole
        new = channels * cost.utilisation(rate(config, False, is_whole)) / self.n_workers
        needed = self.utilisation(busy, shows_all=False) + new
        if cost.response_s(step_s(config, config.hop, is_whole), needed) > config.hop / FRAMES_PER_SECOND:
            return False
        return self.responses.lateness(now) * (len(busy) + channels) <= len(busy)

    def adapt(self, jobs: Iterable[Job], now: float) -> None:
        """Widens the hop when 95 % of the steps are not done long before the next is due, or will not be."""
        if now - self.adapted_at < ADAPT_S:
            return
        self.adapted_at = now
        busy = [job for job in jobs if job.is_at_work(now)]
        needed, late = self.utilisation(busy, shows_all=True), self.responses.lateness(now)
        if late > LATE or needed > FULL:
            self.is_widened, self.widened_at = True, now
        elif self.is_widened and late < CALM and needed < FREE and now - self.widened_at > CALM_S:
            self.is_widened = False
