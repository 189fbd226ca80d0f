"""Cached features are those that each window would have by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.acoustic import AcousticModel
from core.audio import HOP, SAMPLE_RATE, Samples, n_frames
from core.engine import Engine, Stream, StreamConfig
from core.feature_cache import Window, read_features
from core.ring_buffer import RingBuffer
from core.transcript import Event
from core.wav2vec2 import Wav2Vec2ForCTC


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AcousticModel:
    """Of layer norm, and input as it is."""
    directory = tmp_path_factory.mktemp("local") / "model"
    shutil.copytree(tiny_model_dir, directory)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": False}))
    return AcousticModel.load(directory, "cpu", "float32")


def speech(seconds: float, seed: int = 0) -> Samples:
    """Noise with pauses."""
    random = np.random.default_rng(seed)
    n = int(seconds * SAMPLE_RATE)
    loud = np.repeat(random.random(n // 8000 + 1) < 0.6, 8000)[:n]
    return (random.normal(size=n) * 0.1 * loud).astype(np.float32)


def plain(stream: Stream) -> Stream:
    """The stream, keeping no features."""
    stream.features = None
    return stream


def listen(engine: Engine, stream: Stream, samples: Samples, packet: int) -> list[Event]:
    events: list[Event] = []
    for start in range(0, len(samples), packet):
        stream.push(samples[start : start + packet])
        events += engine.drain(stream)
    stream.finish()
    return events + engine.drain(stream)


@pytest.mark.parametrize("packet", [317, 3200, 40_000])
def test_every_pass_hears_what_it_would_hear_alone(model: AcousticModel, packet: int) -> None:
    engine, samples = Engine(model), speech(12)
    stream, n_passes = engine.new_stream(), 0
    for start in range(0, len(samples), packet):
        stream.push(samples[start : start + packet])
        if start % (7 * packet) == 0:
            stream.flush()
        while (task := stream.next_pass()) is not None:
            alone = model.emit([engine.window(stream, task)])[0]
            cached = engine.emit([(stream, task)])[0]
            np.testing.assert_allclose(cached, alone, atol=1e-4)
            engine.apply(stream, task, cached)
            n_passes += 1
    assert n_passes > 10


def test_a_frame_is_computed_once(model: AcousticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, samples = Engine(model), speech(12)
    compute, n_computed = model.features, 0

    def counted(windows: list[Samples]) -> list[np.ndarray]:
        nonlocal n_computed
        n_computed += sum(n_frames(len(window)) for window in windows)
        return compute(windows)

    monkeypatch.setattr(model, "features", counted)
    listen(engine, engine.new_stream(), samples, 3200)
    assert n_computed == n_frames(len(samples))


def test_streams_at_different_places_share_batches(model: AcousticModel) -> None:
    engine = Engine(model)
    streams = [engine.new_stream(StreamConfig.preset(latency)) for latency in ("low", "balanced", "low", "accurate")]
    heard = [speech(9, seed) for seed in range(len(streams))]
    events: list[list[Event]] = [[] for _ in streams]
    for i, stream in enumerate(streams):
        stream.push(heard[i][: 7000 * i])
    for start in range(0, 6 * SAMPLE_RATE, 6000):
        for i, stream in enumerate(streams):
            stream.push(heard[i][7000 * i + start : 7000 * i + start + 6000])
        while any(stream.is_ready for stream in streams):
            for said, came in zip(events, engine.step(streams), strict=True):
                said += came
    for i, stream in enumerate(streams):
        alone = plain(engine.new_stream(stream.config))
        alone.push(heard[i][: stream.n_samples])
        assert engine.drain(alone) == events[i]


def test_features_are_held_as_long_as_the_samples_of_their_segment(model: AcousticModel) -> None:
    engine = Engine(model)
    stream = engine.new_stream()
    assert stream.features is not None
    loud = np.random.default_rng(0).normal(size=60 * SAMPLE_RATE).astype(np.float32) * 0.1
    for start in range(0, len(loud), SAMPLE_RATE):
        stream.push(loud[start : start + SAMPLE_RATE])
        engine.drain(stream)
        assert HOP * stream.features.start == stream.buffer.start
        assert len(stream.features) < stream.features.capacity


def test_rows_that_are_not_there_are_computed_anew(model: AcousticModel) -> None:
    samples, features = RingBuffer(50 * HOP), RingBuffer(50, 8, model.n_local_features)
    samples.append(speech(0.9)[: 40 * HOP])
    [expected] = model.features([samples.read(0, 40 * HOP)])
    for start, end in ((0, 5), (20, 30), (10, 39), (12, 20)):
        [found] = read_features(model, [Window(samples, features, HOP * start, HOP * end + 80)])
        np.testing.assert_allclose(found, expected[start:end], atol=1e-5)


def test_features_that_depend_on_the_window_are_not_kept(model: AcousticModel, tiny_model_dir: Path) -> None:
    assert Engine(model).new_stream().features is not None
    normalised = AcousticModel.load(tiny_model_dir, "cpu", "float32")
    grouped = AcousticModel(Wav2Vec2ForCTC(replace(model.config, feat_extract_norm="group")), model.tokenizer)
    assert Engine(normalised).new_stream().features is None
    assert Engine(grouped).new_stream().features is None


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_real_speech_has_the_same_transcript(sample: Path, dtype: str) -> None:
    samples, _ = soundfile.read(sample, dtype="float32")
    engine = Engine(AcousticModel.load("streamer-en", "cpu", dtype))
    expected = listen(engine, plain(engine.new_stream()), samples, 3200)
    assert listen(engine, engine.new_stream(), samples, 5000) == expected
