"""No model runs where nothing moves, and nothing is said differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted import PlantedModel, plant

from core.acoustic import AcousticModel
from core.audio import SAMPLE_RATE, Samples
from core.engine import Engine
from core.ring_buffer import RingBuffer
from core.silence import still_value
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
