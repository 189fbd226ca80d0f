"""No model runs where nothing moves, and nothing is said differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted import PlantedModel, plant

from core.acoustic import AcousticModel
from core.audio import HOP, SAMPLE_RATE, Samples
from core.engine import Engine
from core.ring_buffer import RingBuffer
from core.silence import BLOCK, LOUDER, hush_of, is_hushed, still_value
from core.stream import Stream
from core.transcript import Event, Transcript
from core.windows import StreamConfig
from streamer.job import Command
from streamer.scheduler import Scheduler, StepReport


def test_a_window_is_still_if_no_sample_differs() -> None:
    samples = RingBuffer(4000)
    samples.append(np.full(3000, 0.25, np.float32))
    assert still_value(samples, 0, 3000) == still_value(samples, 10, 20) == 0.25
    assert still_value(samples, 10, 10) is None
    samples.append(np.array([0.25000003], np.float32))
    assert still_value(samples, 0, 3001) is None and still_value(samples, 0, 3000) == 0.25


WHOLE = StreamConfig.preset("balanced", refresh=1000)  # else steps after silence have other frames to go on from


def listen(engine: Engine, samples: Samples, config: StreamConfig | None = None) -> list[Event]:
    stream, events = engine.new_stream(config), list[Event]()
    for start in range(0, len(samples), SAMPLE_RATE):
        stream.push(samples[start : start + SAMPLE_RATE])
        events += engine.drain(stream)
    stream.finish()
    return events + engine.drain(stream)


def finals(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Transcript) and event.is_final]


@pytest.mark.parametrize("gain_db", [0, -40])
def test_speech_around_silence_reads_the_same(sample: Path, gain_db: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also very soft speech, and an offset that never moves."""
    speech, _ = soundfile.read(sample, dtype="float32")
    speech = speech[: 4 * SAMPLE_RATE] * np.float32(10 ** (gain_db / 20))
    still = np.zeros(10 * SAMPLE_RATE, np.float32)
    samples = np.concatenate([speech, still, speech, still + 8 / 32768])
    model = AcousticModel.load("streamer-en", "cpu", "float32")
    engine = Engine(model)
    found, stepped = listen(engine, samples, WHOLE), listen(engine, samples)
    assert engine.still.cache_info().hits > 10
    monkeypatch.setattr("core.emitter.still_value", lambda *_: None)
    plain = Engine(model)
    assert listen(plain, samples, WHOLE) == found
    assert finals(listen(plain, samples)) == finals(stepped) == finals(found) and len(finals(found)) == 2
    assert plain.still.cache_info().misses == 0


def test_streams_share_what_is_said_of_silence(tiny_model_dir: Path) -> None:
    model = AcousticModel.load(tiny_model_dir, "cpu", "float32")
    engine = Engine(model)
    for _ in range(3):
        listen(engine, np.zeros(10 * SAMPLE_RATE, np.float32))
    assert engine.still.cache_info().misses == 0  # it wants input normalised by all that was heard
    model.normalises = False
    for _ in range(3):
        listen(engine, np.zeros(10 * SAMPLE_RATE, np.float32))
    info = engine.still.cache_info()
    assert info.misses == info.currsize < 12 < info.hits
    assert not engine.still(0.0, 4000).flags.writeable


def test_silence_does_not_count_as_time_that_speech_would_take() -> None:
    reports: list[StepReport] = []
    scheduler = Scheduler(Engine(PlantedModel()), on_step=reports.append)  # type: ignore[arg-type]
    job = scheduler.open(StreamConfig(left=150), lambda _: None)
    scheduler.submit(job, [np.zeros(5 * SAMPLE_RATE, np.float32), plant("SPEECH~"), Command.FINISH])
    while scheduler.active:
        scheduler.run_once()
    n_still = sum(report.n_still for report in reports)
    assert 5 < n_still < len(reports)
    assert scheduler.costs[scheduler.engine].weight <= len(reports) - n_still  # batches that tell what one costs


def test_the_silence_of_a_pause() -> None:
    has_letter = np.arange(100) < 50
    energy = np.where(has_letter, 1.0, 0.001).astype(np.float32)
    assert hush_of(energy, has_letter, 75, 0.1) == pytest.approx(LOUDER * 0.001)
    energy[75:] = 0.05
    assert hush_of(energy, has_letter, 75, 0.1) == pytest.approx(0.1), "in noise as loud as that speech may be softer"
    quiet = np.full(23, 0.001, np.float32)
    assert is_hushed(quiet, 0.002)
    quiet[-1] += 0.0009 * BLOCK
    assert is_hushed(quiet, 0.002)
    quiet[-1] += 0.0002 * BLOCK
    assert not is_hushed(quiet, 0.002)


def noisy(text: str, amplitude: float) -> Samples:
    samples = plant(text)
    noise = np.resize(np.array([amplitude, -amplitude], np.float32), len(samples))
    return np.where(np.arange(len(samples)) % HOP > 0, samples + noise, samples)  # the model reads the others


def test_no_partial_is_computed_while_nobody_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same partials and finals come of fewer steps, but where the noise gets louder."""

    def heard(samples: Samples) -> tuple[list[Event], int]:
        return listen(Engine(model := PlantedModel()), samples), len(model.lengths)

    parts = ["GOOD THINGS~~~~~~~~", "FIVE BOOKS~~~SEE~~~~~~~~~LLAMAS~~"]
    same = np.concatenate([noisy(part, 0.01) for part in parts])
    louder = np.concatenate([noisy(part, amplitude) for part, amplitude in zip(parts, (0.01, 0.03), strict=True)])
    saved = [heard(same), heard(louder)]
    monkeypatch.setattr(Stream, "shows_nothing_new", lambda *_: False)
    plain = [heard(same), heard(louder)]
    for (events, n), (expected, n_expected), most in zip(saved, plain, (0.8, 0.9), strict=True):
        assert events == expected
        assert n < most * n_expected
    assert len(finals(saved[0][0])) == 4
    assert saved[0][1] < saved[1][1]
