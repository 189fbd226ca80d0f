"""What the model's time is spent on: how long a step takes, how late it comes, and whether one more session fits.

Sans clock, and for one thread at a time: times are passed in. The cost of a batch is a line,
`base + slope * seconds that are computed of its windows`, fitted to the batches so far with slow forgetting: on a CPU
the slope counts, on a GPU the base.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from core.audio import FRAMES_PER_SECOND
from core.windows import StreamConfig

FORGET = 0.98  # weight of all batches so far when a new one is seen
RECENT_S = 10.0  # the quantiles are of this time
KEPT = 4096  # responses, at most
FULLEST = 0.85  # share of the model's time that sessions may need
ENOUGH = 20  # responses that tell something
FINAL_RATE = 1.7  # final passes compute so many seconds a second of speech: its segment, and context around it


@dataclass(frozen=True, slots=True)
class Response:
    """One step of a session that speaks in real time."""

    at_s: float
    seconds: float  # from when its audio was there until its result
    hop_s: float

    @property
    def share(self) -> float:
        """Of the hop; beyond 1 the session falls behind."""
        return self.seconds / self.hop_s


def step_s(config: StreamConfig, n_new: float, is_whole: bool) -> float:
    """Seconds that a step with so many new frames computes of its window: all, or what `core.tail` leaves."""
    n = config.window if is_whole else min(config.window, config.refresh + n_new)
    return n / FRAMES_PER_SECOND


def rate(config: StreamConfig, shows_all: bool, is_whole: bool) -> float:
    """Seconds to compute for a second of speech."""
    n_new = config.hop * (1.0 if shows_all else max(1.0, 0.8 * config.most_hops))
    return step_s(config, n_new, is_whole) * FRAMES_PER_SECOND / n_new + FINAL_RATE


class Cost:
    """Seconds of one model's batches."""

    def __init__(self) -> None:
        self.weight = self.x = self.y = self.xx = self.xy = 0.0  # forgetting sums

    def add(self, audio_s: float, step_s: float) -> None:
        """A batch that computed so many seconds of its windows took so long."""
        self.weight = FORGET * self.weight + 1
        self.x = FORGET * self.x + audio_s
        self.y = FORGET * self.y + step_s
        self.xx = FORGET * self.xx + audio_s * audio_s
        self.xy = FORGET * self.xy + audio_s * step_s

    def line(self) -> tuple[float, float]:
        """(base, slope) of a batch's seconds; both 0 before the first batch."""
        if not self.x:
            return 0.0, 0.0
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        variance = self.xx / self.weight - mean_x * mean_x
        slope = (self.xy / self.weight - mean_x * mean_y) / variance if variance > 1e-3 * mean_x * mean_x else 0.0
        if not 0 < slope < mean_y / mean_x:  # too alike to tell, or noise: all of it grows with the audio
            return 0.0, mean_y / mean_x
        return mean_y - slope * mean_x, slope

    def utilisation(self, rate: float) -> float:
        """Share of the time that computing so many seconds a second needs, however they are batched."""
        return self.line()[1] * rate

    def response_s(self, audio_s: float, utilisation: float) -> float:
        """From a step's audio to its result, where so much of the time is taken: its own, and those it waits for."""
        base, slope = self.line()
        return (base + slope * audio_s) / (1 - utilisation) if utilisation < FULLEST else math.inf


class Responses:
    """How late steps were, recently."""

    def __init__(self) -> None:
        self.kept: deque[Response] = deque(maxlen=KEPT)

    def add(self, response: Response) -> None:
        self.kept.append(response)

    def recent(self, now: float) -> list[Response]:
        while self.kept and self.kept[0].at_s < now - RECENT_S:
            self.kept.popleft()
        return list(self.kept)

    def quantile_s(self, q: float, now: float) -> float:
        """Seconds from audio to result; 0 without any."""
        return quantile([response.seconds for response in self.recent(now)], q)

    def lateness(self, now: float) -> float:
        """The share of its hop that 95 % of the steps do not exceed; 0 where there are too few to tell."""
        recent = self.recent(now)
        return quantile([response.share for response in recent], 0.95) if len(recent) >= ENOUGH else 0.0


def quantile(values: list[float], q: float) -> float:
    """The smallest value that a share `q` of the values does not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)] if values else 0.0


def window_s(config: StreamConfig) -> float:
    return config.window / FRAMES_PER_SECOND
