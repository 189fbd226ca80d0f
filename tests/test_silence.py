"""No model runs where nothing moves, and nothing is said differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.acoustic import AcousticModel
from core.audio import SAMPLE_RATE, Samples
from core.engine import Engine
from core.ring_buffer import RingBuffer
from core.silence import still_value
from core.transcript import Event


def test_a_window_is_still_if_no_sample_differs() -> None:
    samples = RingBuffer(4000)
    samples.append(np.full(3000, 0.25, np.float32))
    assert still_value(samples, 0, 3000) == still_value(samples, 10, 20) == 0.25
    assert still_value(samples, 10, 10) is None
    samples.append(np.array([0.25000003], np.float32))
    assert still_value(samples, 0, 3001) is None and still_value(samples, 0, 3000) == 0.25


def listen(engine: Engine, samples: Samples) -> list[Event]:
    stream, events = engine.new_stream(), list[Event]()
    for start in range(0, len(samples), SAMPLE_RATE):
        stream.push(samples[start : start + SAMPLE_RATE])
        events += engine.drain(stream)
    stream.finish()
    return events + engine.drain(stream)


@pytest.mark.parametrize("gain_db", [0, -40])
def test_speech_around_silence_reads_the_same(sample: Path, gain_db: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also very soft speech, and an offset that never moves."""
    speech, _ = soundfile.read(sample, dtype="float32")
    speech = speech[: 4 * SAMPLE_RATE] * np.float32(10 ** (gain_db / 20))
    still = np.zeros(6 * SAMPLE_RATE, np.float32)
    samples = np.concatenate([speech, still, speech, still + 8 / 32768])
    model = AcousticModel.load("streamer-en", "cpu", "float32")
    engine = Engine(model)
    found = listen(engine, samples)
    assert engine.n_still > 8 * SAMPLE_RATE
    monkeypatch.setattr("core.engine.still_value", lambda *_: None)
    plain = Engine(model)
    assert listen(plain, samples) == found and plain.n_still == 0


def test_streams_share_what_is_said_of_silence(tiny_model_dir: Path) -> None:
    model = AcousticModel.load(tiny_model_dir, "cpu", "float32")
    engine = Engine(model)
    for _ in range(3):
        listen(engine, np.zeros(10 * SAMPLE_RATE, np.float32))
    assert engine.n_still == 0  # it wants input normalised by all that was heard
    model.tokenizer.do_normalize = False
    for _ in range(3):
        listen(engine, np.zeros(10 * SAMPLE_RATE, np.float32))
    assert engine.n_still > 0
    assert engine.still.cache_info().misses == engine.still.cache_info().currsize < 10
    assert not engine.still(0.0, 4000).flags.writeable
