"""Whole recordings without streaming: what streaming is measured against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, Samples, n_frames, n_samples_for
from core.decoder import Decode
from core.engine import Engine
from core.features import normalize
from core.stitcher import LogProbs
from core.stream import Stream
from core.transcript import Transcript
from core.windows import StreamConfig

AROUND = 200  # frames by which the windows of a long recording overlap


def transcribe_offline(
    engine: Engine, samples: Samples, config: StreamConfig | None = None, decode: Decode | None = None
) -> list[Transcript]:
    """The words of whole `samples` without streaming: what streaming is measured against.

    One pass over the recording tells where segments end, by the rules of a stream; each segment is then
    run once, with context on both sides, unless the recording is a single one.
    """
    stream = engine.new_stream(replace(config or StreamConfig.preset("balanced"), commit_after=10**9), decode)
    stream.shows_partials = False
    rows = emit_long(engine, samples, stream)
    states = stream.states
    finals: list[Transcript] = []
    for start in range(0, max(1, len(samples)), SAMPLE_RATE):
        stream.push(samples[start : start + SAMPLE_RATE])
        if start + SAMPLE_RATE >= len(samples):
            stream.finish()
        while (task := stream.next_pass()) is not None:
            is_whole = (task.start_sample, task.end_sample) == (0, len(samples))
            if task.cut is None or is_whole:
                stream.states, first = states, task.start_sample // HOP
                n = max(1, n_frames(task.end_sample - task.start_sample))
                events = engine.apply(stream, task, rows[first : first + n])
            else:
                events = engine.finalize(stream, task, engine.emit([(stream, task)])[0])
            finals += [event for event in events if isinstance(event, Transcript) and event.is_final]
    return finals


def emit_long(engine: Engine, samples: Samples, stream: Stream) -> LogProbs:
    """(n_frames, n_vocab) of a whole recording; beyond the longest segment in windows with generous context."""
    if engine.model.normalises and len(samples):
        samples = normalize(samples)
    config = stream.config
    total = n_frames(max(len(samples), RECEPTIVE_FIELD))
    longest, margin = config.endpoint.max_length + 2 * AROUND, AROUND
    rows = np.zeros((0, len(engine.alphabet.tokens)), np.float32)
    while len(rows) < total:
        start = max(0, len(rows) - margin)
        end = min(total, start + longest)
        is_last = end == total
        window = samples[HOP * start : len(samples) if is_last else n_samples_for(end)]
        until = total if is_last else end - margin
        # Of a recording that is one window, this may be the final pass.
        emitted = engine.hear([stream if start == 0 and is_last else None], [window])[0]
        rows = np.concatenate([rows, emitted[len(rows) - start : until - start]])
    return rows
