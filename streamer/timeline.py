"""The clock of a live session: it goes on where sound was lost, so that all times fit a recording. Sans I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from clients.microphone import Heard
from core.audio import SAMPLE_RATE, Samples, to_seconds
from core.transcript import Event, Gap

SHORT_LOSS_S = 1.0  # is recognised as silence; a longer one ends the segment


class EventStream(Protocol):
    """`RecognizerStream`, or a server's session. Events may come late: `push` with no samples asks for them."""

    def push(self, samples: Samples) -> list[Event]: ...

    def flush(self) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class Timeline:
    """A stream whose clock goes on where sound was lost. Sans I/O; times are seconds since the first sample."""

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self.n_samples = 0  # given to the stream
        self._losses: list[tuple[float, float]] = []  # (the stream's time, seconds that it does not know of)

    @property
    def audio_s(self) -> float:
        return round(to_seconds(self.n_samples) + sum(lost for _, lost in self._losses), 3)

    def push(self, heard: Heard) -> list[Event]:
        """A loss is told as a `Gap`. A short one is silence to the stream; a longer one ends the segment."""
        events: list[Event] = []
        if heard.lost_s > 0:
            start = self.audio_s
            gap = Gap(start, round(start + heard.lost_s, 3), heard.reason)
            if heard.lost_s <= SHORT_LOSS_S:
                events += [gap, *self._give(np.zeros(round(heard.lost_s * SAMPLE_RATE), np.float32))]
            else:
                events += [*self.flush(), gap]
                self._losses.append((to_seconds(self.n_samples), heard.lost_s))
        return events + self._give(heard.samples)

    def flush(self) -> list[Event]:
        return [self._moved(event) for event in self.stream.flush()]

    def finish(self) -> list[Event]:
        return [self._moved(event) for event in self.stream.finish()]

    def _give(self, samples: Samples) -> list[Event]:
        self.n_samples += len(samples)
        return [self._moved(event) for event in self.stream.push(samples)]

    def _moved(self, event: Event) -> Event:
        """The stream's times as the clock's."""
        by = sum(lost for at, lost in self._losses if at <= event.start_s)
        if not by:
            return event
        start_s, end_s = round(event.start_s + by, 3), round(event.end_s + by, 3)
        if isinstance(event, Gap):
            return replace(event, start_s=start_s, end_s=end_s)
        words = tuple(replace(w, start_s=round(w.start_s + by, 3), end_s=round(w.end_s + by, 3)) for w in event.words)
        return replace(event, start_s=start_s, end_s=end_s, words=words)


class Delay:
    """Seconds from the end of the newest committed word to its being shown."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._segment, self._n = -1, 0

    def see(self, event: Event, now_s: float) -> None:
        """`now_s`: the sound's time."""
        if isinstance(event, Gap):
            return
        if event.segment != self._segment:
            self._segment, self._n = event.segment, 0
        if event.n_committed_words > self._n:
            self._n = event.n_committed_words
            self.seconds = max(0.0, now_s - event.words[self._n - 1].end_s)
