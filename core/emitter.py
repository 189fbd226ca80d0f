"""Runs the next windows of streams on the model: on a device that keeps them, from features that are known, or whole.

Nothing of a stream is held here but its place on the device; the rest is in `core.stream.Stream`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from core.acoustic import AcousticModel
from core.audio import HOP, RECEPTIVE_FIELD, Samples, n_frames, n_samples_for
from core.decoder import reads_after
from core.feature_cache import Window, read_features
from core.features import normalize
from core.ring_buffer import RingBuffer
from core.silence import still_value
from core.slots import Resident, Slot, Slots
from core.statistics import Statistics
from core.stitcher import LogProbs
from core.stream import Stream
from core.tail import Memory, Step, emit_steps
from core.windows import Pass, StreamConfig

MOST_SHAPES = 4  # of windows that slots are made for; streams with others have none
MOST_STILL = 64  # windows without any change whose log-probabilities are kept


class Emitter:
    """What a model makes of windows.

    Raises:
        ValueError: the model has another hop or receptive field than windows are cut for.
    """

    def __init__(self, model: AcousticModel) -> None:
        if (model.hop, model.receptive_field) != (HOP, RECEPTIVE_FIELD):
            raise ValueError(
                f"Expected a model with a hop of {HOP} and a receptive field of {RECEPTIVE_FIELD} samples. "
                f"Found: {model.hop} and {model.receptive_field}"
            )
        self.model = model
        self.slots: dict[tuple[int, ...], Slots] = {}  # by window and hop; apart where statistics run
        self.lock = threading.Lock()  # of who takes one
        self.still = lru_cache(MOST_STILL)(self.emit_still)

    @property
    def is_whole(self) -> bool:
        """Whether steps compute all of their windows: no features are kept for `core.tail`, here or in slots."""
        if self.model.n_slots:
            return not self.model.n_local_features and bool(self.model.halo)
        return not self.model.n_features

    def is_running(self, config: StreamConfig) -> bool:
        """Whether slots keep features of streams that are cut so, by the statistics of each."""
        model = self.model
        return bool(model.n_slots) and config.refresh < config.window and not model.n_local_features and not model.halo

    def emit(self, work: Sequence[tuple[Stream, Pass]]) -> list[LogProbs]:
        """What the model makes of the window of each pass, which are the next ones of different streams."""
        results: dict[int, LogProbs] = {}
        plain: dict[int, Samples] = {}
        cached: dict[int, Window] = {}
        resident: dict[Slots, dict[int, Resident]] = defaultdict(dict)
        for i, (stream, task) in enumerate(work):
            n = task.end_sample - task.start_sample
            value = None if stream.statistics else still_value(stream.buffer, task.start_sample, task.end_sample)
            stream.is_still = value is not None
            if task.cut is not None:
                stream.states = None
            if task.cut is not None and stream.heard is not None and stream.heard.is_of(task):
                results[i], stream.states = stream.heard.log_probs, stream.heard.states
            elif value is not None:
                results[i] = self.still(value, n)
                stream.remember(task, Memory())
            elif (slot := self.slot(stream, task)) is not None:
                running = stream.statistics if slot.slots.is_running else None
                statistics = self.statistics(stream, task) if running is None else None
                moments = (0.0, 1.0) if statistics is None else statistics.moments
                is_tail = slot.slots.keeps_past and stream.config.refresh < stream.config.window
                memory = replace(stream.memory) if is_tail else None
                of_tail = memory, stream.config.refresh, not task.only_shows
                resident[slot.slots][i] = Resident(slot, stream.buffer, task.start_sample, moments, *of_tail, running)
            elif task.cut is not None or n < RECEPTIVE_FIELD or (stream.features is None and not self.model.halo):
                plain[i] = self.window(stream, task)  # of final passes: to the bit what an offline pass gives
            else:
                place = task.start_sample, task.end_sample
                features = stream.features
                if features is None:
                    features = RingBuffer(n_frames(n), 32, self.model.n_features)
                cached[i] = Window(stream.buffer, features, *place, stream.statistics, stream.config.hop)
        if plain:
            finals = [work[i][0] if work[i][1].cut is not None else None for i in plain]
            results |= zip(plain, self.hear(finals, list(plain.values())), strict=True)
        if cached:
            heard = dict(zip(cached, read_features(self.model, list(cached.values())), strict=True))
            steps = {}
            for i in cached:
                stream, task = work[i]
                is_step = task.cut is None and stream.features is not None
                if is_step and stream.config.refresh < stream.config.window:
                    memory = stream.memory_for(task)
                    steps[i] = Step(heard.pop(i), task.start_sample // HOP, memory, stream.config.refresh)
            results |= zip(heard, self.model.emit_features(list(heard.values())), strict=True)
            results |= zip(steps, emit_steps(self.model, list(steps.values())), strict=True)
            for i, step in steps.items():
                work[i][0].remember(work[i][1], step.memory)
        for slots, windows in resident.items():
            results |= zip(windows, slots.emit(list(windows.values())), strict=True)
            for i, window in windows.items():
                if window.memory is not None and window.writes:
                    work[i][0].remember(work[i][1], window.memory)
        return [results[i] for i in range(len(work))]

    def hear(self, finals: Sequence[Stream | None], windows: Sequence[Samples]) -> list[LogProbs]:
        """What the model makes of whole windows; the streams that this is a final pass of keep what decoders read."""
        n_blocks = [reads_after(stream.decode) if stream is not None else 0 for stream in finals]
        if not any(n_blocks):
            return self.model.emit(windows)
        heard = self.model.emit_with_states(windows, max(n_blocks))
        for stream, n, (_, states) in zip(finals, n_blocks, heard, strict=True):
            if stream is not None and n:
                stream.states = states
        return [log_probs for log_probs, _ in heard]

    def emit_still(self, value: float, n: int) -> LogProbs:
        """What the model makes of a window of `n` samples that are all the same."""
        log_probs = self.model.emit([np.full(n, value, np.float32)])[0]
        log_probs.flags.writeable = False  # many streams are given it
        return log_probs

    def slot(self, stream: Stream, task: Pass) -> Slot | None:
        """The stream's place on the device; None for windows of other lengths than a slot's, or where all are taken."""
        is_whole = task.end_sample - task.start_sample == n_samples_for(stream.config.window)
        if not self.model.n_slots or task.cut is not None or not is_whole:
            return None
        if stream.slot is None:
            with self.lock:  # several threads may emit
                slots = self.slots_for(stream.config)
                if slots is not None and slots.free:
                    stream.slot = slots.take(stream)
        return stream.slot

    def shape(self, config: StreamConfig) -> tuple[int, ...]:
        """What streams have in common that share slots."""
        return (config.window, config.hop, *([1] if self.is_running(config) else []))

    def slots_for(self, config: StreamConfig) -> Slots | None:
        """The slots of all streams that are cut so; None where there are none, or too many kinds of windows."""
        shape, is_running = self.shape(config), self.is_running(config)
        if shape not in self.slots and self.model.n_slots and len(self.slots) < MOST_SHAPES:
            self.slots[shape] = Slots(self.model, self.model.n_slots, config.window, config.hop, is_running=is_running)
        return self.slots.get(shape)

    def window(self, stream: Stream, task: Pass) -> Samples:
        """The samples of a pass, normalised where the model wants it: a final pass by itself, as an offline pass is."""
        samples = stream.buffer.read(task.start_sample, task.end_sample)
        statistics = self.statistics(stream, task) if len(samples) else None
        if statistics is None or not self.model.normalises:
            return samples
        return statistics.normalise(samples) if task.cut is None else normalize(samples)

    def statistics(self, stream: Stream, task: Pass) -> Statistics | None:
        """Of all that was heard up to the end of a pass, where the model wants them."""
        statistics = stream.statistics
        if statistics is None:
            return None
        if task.only_shows:
            statistics = replace(statistics)  # a step that may be left out leaves no trace
        statistics.hear(stream.buffer, task.end_sample)
        return statistics
