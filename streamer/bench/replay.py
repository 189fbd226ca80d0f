"""Recordings played to a system as if they were live, on a simulated clock, and what it showed when.

The clock is the audio's: a block arrives when its last sample has been spoken. Computing is timed and comes on top,
one piece after the other, so that a system that is slower than the audio falls behind as it would live. Nothing
sleeps. Every change of the text is kept with both times: the audio that had been heard by then (the algorithm's
delay, the same on every machine), and when it was there with computing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.audio import SAMPLE_RATE, Samples
from core.engine import Engine
from core.transcript import Event, Transcript, Word
from core.windows import StreamConfig
from streamer.bench.metrics import common_prefix


@dataclass(frozen=True, slots=True)
class ShownWord:
    text: str
    start_s: float  # from the start of the recording
    end_s: float
    confidence: float  # in [0, 1]; NaN where the system has none


Shown = tuple[tuple[ShownWord, ...], int]  # all words so far, and how many of them are committed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was shown from a moment on: the text of the whole recording so far."""

    audio_s: float  # audio that had been heard
    at_s: float  # when it was shown, with computing; from the start of the recording
    words: tuple[ShownWord, ...]
    n_committed: int

    @property
    def texts(self) -> list[str]:
        return [word.text for word in self.words]


class Listener(Protocol):
    """One stream of a system. What lies between two items of an iterator is computing, and is timed."""

    takes_all: bool  # takes whatever has come while it was busy; else block after block

    def push(self, samples: Samples) -> Iterator[Shown]: ...

    def finish(self) -> Iterator[Shown]: ...


@dataclass(slots=True)
class Recorder:
    """The simulated clock of one replay."""

    clock: Callable[[], float]
    free_s: float = 0.0  # when the system has done all that it was given
    compute_s: float = 0.0
    snapshots: list[Snapshot] = field(default_factory=list)

    def listen(self, states: Iterator[Shown], audio_s: float) -> None:
        """Runs a system over audio that is there at `audio_s`."""
        self.free_s = max(self.free_s, audio_s)
        while True:
            began = self.clock()
            state = next(states, None)
            took = self.clock() - began
            self.free_s += took
            self.compute_s += took
            if state is None:
                return
            if not self.snapshots or state != (self.snapshots[-1].words, self.snapshots[-1].n_committed):
                self.snapshots.append(Snapshot(audio_s, self.free_s, *state))


def replay(
    listener: Listener, samples: Samples, block: int, clock: Callable[[], float] = time.perf_counter
) -> Recorder:
    """Plays 16 kHz samples to a system, `block` samples at a time, to their end."""
    recorder = Recorder(clock)
    sent = 0
    while sent < len(samples):
        waiting = round(recorder.free_s * SAMPLE_RATE) - sent if listener.takes_all else 0
        end = min(len(samples), sent + max(block, waiting))
        recorder.listen(listener.push(samples[sent:end]), end / SAMPLE_RATE)
        sent = end
    recorder.listen(listener.finish(), len(samples) / SAMPLE_RATE)
    return recorder


class OwnListener:
    """A stream of our engine."""

    takes_all = False

    def __init__(self, engine: Engine, config: StreamConfig) -> None:
        self.engine = engine
        self.stream = engine.new_stream(config)
        self.finals: tuple[ShownWord, ...] = ()

    def push(self, samples: Samples) -> Iterator[Shown]:
        self.stream.push(samples)
        return self.drain()

    def finish(self) -> Iterator[Shown]:
        self.stream.finish()
        return self.drain()

    def drain(self) -> Iterator[Shown]:
        while self.stream.is_ready:
            for event in self.engine.step([self.stream])[0]:
                yield self.shown(event)

    def shown(self, event: Event) -> Shown:
        if not isinstance(event, Transcript):
            raise ValueError(f"Expected audio that is processed as it comes. Found: {event}")
        words = self.finals + tuple(map(shown_word, event.words))
        n_committed = len(self.finals) + event.n_committed_words
        if event.is_final:
            self.finals = words
        return words, n_committed


def shown_word(word: Word) -> ShownWord:
    return ShownWord(word.text, word.start_s, word.end_s, word.confidence)


def committed(snapshots: Sequence[Snapshot]) -> list[int]:
    """For each committed word of the last text, the snapshot that committed it."""
    places: list[int] = []
    for number, snapshot in enumerate(snapshots):
        places += [number] * (snapshot.n_committed - len(places))
    return places


SAME_WORD_S = 0.5  # apart at most, middle to middle


def appearances(snapshots: Sequence[Snapshot]) -> Iterator[NDArray[np.bool_]]:
    """For each word of the last text, which snapshots have it within half a second of its place."""
    places: list[dict[str, list[float]]] = []  # of each snapshot: the middles of a text's words
    for snapshot in snapshots:
        places.append({})
        for word in snapshot.words:
            places[-1].setdefault(word.text, []).append((word.start_s + word.end_s) / 2)
    for word in snapshots[-1].words if snapshots else ():
        middle = (word.start_s + word.end_s) / 2
        near = [any(abs(other - middle) <= SAME_WORD_S for other in of.get(word.text, ())) for of in places]
        yield np.array(near)


def first_shown(snapshots: Sequence[Snapshot]) -> list[int]:
    """For each word of the last text, the first snapshot that has it."""
    return [int(has.argmax()) for has in appearances(snapshots)]


def settled(snapshots: Sequence[Snapshot]) -> list[int]:
    """For each word of the last text, the snapshot from which on every one has it."""
    return [int(np.flatnonzero(~has).max(initial=-1)) + 1 for has in appearances(snapshots)]


def revised_words(snapshots: Sequence[Snapshot]) -> int:
    """Committed words that a later snapshot took back or changed: 0 by contract."""
    return sum(
        before.n_committed - min(before.n_committed, common_prefix(before.texts, after.texts))
        for before, after in zip(snapshots, snapshots[1:], strict=False)
    )
