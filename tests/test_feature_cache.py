"""Cached features are those that each window would have by itself."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from core.acoustic import AcousticModel, ChannelNorm, fit
from core.audio import HOP, SAMPLE_RATE, Samples, n_frames
from core.checkpoint import load_config
from core.configuration import Wav2Vec2Config
from core.engine import Engine
from core.feature_cache import Window, read_features
from core.features import normalize
from core.offline import transcribe_offline
from core.precision import is_fast, pack
from core.ring_buffer import RingBuffer
from core.statistics import channel_norm
from core.stream import Stream
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.student import VOCABULARY
from core.transcript import Event, Transcript
from core.wav2vec2 import Wav2Vec2ForCTC
from core.windows import StreamConfig

WHOLE = StreamConfig.preset("balanced", refresh=1000)  # every step computes its window as if it were the first


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
    stream, n_passes = engine.new_stream(WHOLE), 0
    for start in range(0, len(samples), packet):
        stream.push(samples[start : start + packet])
        if start % (7 * packet) == 0:
            stream.flush()
        while (task := stream.next_pass()) is not None:
            alone = model.emit([engine.window(stream, task)])[0]
            cached = engine.emit([(stream, task)])[0]
            np.testing.assert_allclose(cached, alone, atol=1e-4 if task.cut is None else 0)
            engine.apply(stream, task, cached)
            n_passes += 1
    assert n_passes > 10


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_frame_is_computed_once(
    model: AcousticModel, tiny_model_dir: Path, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model if norm == "layer" else norming(tiny_model_dir, norm, True)
    engine, samples = Engine(model), speech(12)
    compute, n_computed = model.features, 0

    def counted(windows: list[Samples], norms: list[ChannelNorm] | None) -> list[np.ndarray]:
        nonlocal n_computed
        n_computed += sum(n_frames(len(window)) for window in windows)
        return compute(windows, norms)

    monkeypatch.setattr(model, "features", counted)
    stream = engine.new_stream()
    listen(engine, stream, samples, 3200)
    total = n_frames(len(samples))
    assert 0.9 * total < n_computed < total  # the last pass computes its own
    if norm == "layer":
        assert stream.features is not None and n_computed == stream.features.end


def without_confidences(events: list[Event]) -> tuple[list[Event], list[float]]:
    """The events, and apart from them what batches may round otherwise in the last digit."""
    words = [word for event in events if isinstance(event, Transcript) for word in event.words]
    rest = [
        replace(event, words=tuple(replace(word, confidence=0.0) for word in event.words))
        if isinstance(event, Transcript)
        else event
        for event in events
    ]
    return rest, [word.confidence for word in words]


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
        (expected, sure), (found, found_sure) = map(without_confidences, (engine.drain(alone), events[i]))
        assert found == expected
        assert found_sure == pytest.approx(sure, abs=2e-4)


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


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def padded(request: pytest.FixtureRequest) -> AcousticModel:
    """Random weights behind a spectrum, whose convolutions hear neighbours: a frame on either side."""
    torch.manual_seed(6)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        num_conv_pos_embeddings=16,
        do_stable_layer_norm=True,
        feat_extract_norm="none",
        conv_bias=True,
        conv_dim=(400, 80, 32, 32),
        conv_kernel=(400, 1, 3, 3),
        conv_stride=(160, 1, 1, 2),
        conv_padding=(0, 0, 1, 1),
        conv_activation=("square", "log", "gelu", "gelu"),
    )
    if request.param != "float32" and not is_fast(torch.bfloat16):
        pytest.skip("bfloat16 needs AVX-512 or AMX")
    network = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        network.lm_head.weight *= 40
        for layer in network.wav2vec2.feature_extractor.conv_layers[:2]:
            layer.conv.weight.abs_()
    tokenizer = Wav2Vec2Tokenizer({token: i for i, token in enumerate(VOCABULARY)}, do_normalize=False)
    model = AcousticModel(fit(network, torch.device("cpu"), request.param), tokenizer, request.param)
    assert model.halo == 1
    return model


def test_frames_at_a_window_s_ends_are_those_of_the_stream_where_it_is_known(padded: AcousticModel) -> None:
    samples, features = RingBuffer(100 * HOP), RingBuffer(100, 8, padded.n_local_features)
    wave = speech(1.6)
    samples.append(wave)
    [whole] = padded.features([wave])
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[padded.name]
    for start, end in ((0, 5), (0, 30), (20, 40), (20, 35), (60, 70), (10, 39), (40, 41)):
        end_sample = HOP * end + 80
        [found] = read_features(padded, [Window(samples, features, HOP * start, end_sample)])
        [alone] = padded.features([wave[:end_sample]])  # what follows the window is not heard, what precedes it is
        np.testing.assert_allclose(found, alone[start:end], atol=tolerance)
        np.testing.assert_allclose(found[:-1], whole[start : end - 1], atol=tolerance)
        assert np.abs(found[-1] - whole[end - 1]).max() > 10 * tolerance
        assert features.end <= end - 1
    samples.release(HOP * 30)
    [found] = read_features(padded, [Window(samples, features, HOP * 30, HOP * 45 + 80)])
    np.testing.assert_allclose(found[1:-1], whole[31:44], atol=tolerance)


def test_streams_of_padded_convolutions_end_as_one_pass_does(padded: AcousticModel) -> None:
    engine, samples = Engine(padded), speech(25, 3)
    events = [listen(engine, engine.new_stream(), samples, packet) for packet in (317, 3200, 40_000)]
    finals = [[event.text for event in of if getattr(event, "is_final", False)] for of in events]
    offline = [final.text for final in transcribe_offline(engine, samples)]
    assert finals[0] == finals[1] == finals[2] == offline and sum(map(len, offline)) > 20


def norming(directory: Path, norm: str, normalises: bool, dtype: str = "float32") -> AcousticModel:
    """Random weights of a model that normalises its channels, its input, or both over time."""
    torch.manual_seed(5)
    config = replace(load_config(directory, "tiny"), feat_extract_norm=norm, conv_bias=norm == "layer")
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    tokenizer.do_normalize = normalises
    network = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        network.lm_head.weight *= 40
    model = AcousticModel(fit(network, torch.device("cpu"), dtype), tokenizer)
    assert model.n_local_features == 0
    return model


NORMS = [("group", False), ("group", True), ("layer", True)]


@pytest.mark.parametrize("is_packed", [False, True])
def test_norms_of_a_window_s_own_statistics_are_the_window_s(tiny_model_dir: Path, is_packed: bool) -> None:
    if is_packed and not is_fast(torch.float32):
        pytest.skip("products of packed weights need AVX2")
    model = norming(tiny_model_dir, "group", False)
    if is_packed:
        pack(model.model, torch.float32)
    windows = [speech(0.9, seed) + 0.01 for seed in range(3)]
    norms = []
    for window in windows:
        statistics = model.statistics()
        assert statistics is not None
        statistics.add(window)
        norms.append(model.channel_norm(statistics))
    for found, expected in zip(model.features(windows, norms), model.features(windows), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(("norm", "normalises"), NORMS)
def test_what_was_heard_normalises_whatever_steps_were_left_out(
    tiny_model_dir: Path, norm: str, normalises: bool
) -> None:
    model = norming(tiny_model_dir, norm, normalises)
    engine, samples = Engine(model), speech(24)
    n_passes: Counter[int | None] = Counter()

    def passes(seed: int | None) -> dict[tuple[int, int], np.ndarray]:
        """What is emitted by each pass that can end a segment; with a seed some steps are left out, packets are of
        any size, and partials are shown while a final pass is run."""
        random = np.random.default_rng(seed)
        stream, found, at = engine.new_stream(), {}, 0
        while at < len(samples):
            n = min(int(random.integers(1, 30_000)) if seed is not None else 3200, len(samples) - at)
            n = n if at >= 100_001 else min(n, 100_001 - at)
            stream.push(samples[at : at + n])
            at += n
            if at == 100_001:
                stream.flush()
            while True:
                stream.shows_all = seed is None or random.random() < 0.4
                stream.shows_newest = seed is not None and random.random() < 0.5
                task = stream.next_pass()
                if task is None:
                    break
                rows = engine.emit([(stream, task)])[0]
                n_passes[seed] += 1
                if not task.only_shows:
                    found[task.start_sample, task.end_sample] = rows
                while task.cut is not None and stream.shows_all and (step := stream.next_meanwhile()) is not None:
                    engine.apply(stream, step, engine.emit([(stream, step)])[0])
                engine.apply(stream, task, rows)
        return found

    every = passes(None)
    for seed in range(3):
        some = passes(seed)
        assert 5 < len(some) and some.keys() == every.keys() and n_passes[seed] < n_passes[None]
        for place, rows in some.items():
            np.testing.assert_allclose(rows, every[place], atol=1e-3)


@pytest.mark.parametrize(("norm", "normalises"), NORMS)
def test_after_a_while_a_step_hears_what_a_window_hears(tiny_model_dir: Path, norm: str, normalises: bool) -> None:
    model = norming(tiny_model_dir, norm, normalises)
    engine = Engine(model)
    samples = np.random.default_rng(1).normal(0.03, 0.1, 6 * SAMPLE_RATE).astype(np.float32)
    stream, labels = engine.new_stream(), []
    stream.push(samples)
    while (task := stream.next_pass()) is not None:
        rows = engine.emit([(stream, task)])[0]
        window = samples[task.start_sample : task.end_sample]
        alone = model.emit([normalize(window) if normalises else window])[0]
        labels.append((rows.argmax(1) == alone.argmax(1)).mean())
        engine.apply(stream, task, rows)
    assert np.mean(labels) > 0.9, labels


def test_what_was_heard_fades(tiny_model_dir: Path) -> None:
    model = norming(tiny_model_dir, "group", True)
    samples = np.concatenate([np.zeros(600 * SAMPLE_RATE, np.float32), speech(60)])
    cut, whole = model.statistics(), model.statistics()
    assert cut is not None and whole is not None
    whole.add(samples)
    for start in range(0, len(samples), 77_777):
        cut.add(samples[start : start + 77_777])
    np.testing.assert_allclose(cut.covariance, whole.covariance, rtol=1e-9)
    assert whole.moments[1] == pytest.approx(samples[-30 * SAMPLE_RATE :].std(), rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_real_speech_has_the_same_transcript(sample: Path, dtype: str) -> None:
    samples, _ = soundfile.read(sample, dtype="float32")
    engine = Engine(AcousticModel.load("streamer-en", "cpu", dtype))
    expected = listen(engine, plain(engine.new_stream(WHOLE)), samples, 3200)
    found = listen(engine, engine.new_stream(WHOLE), samples, 5000)
    if dtype == "float32":
        assert found == expected
    # Elsewhere what is convolved at once may round otherwise.
    assert [(event.text, event.is_final) for event in found] == [(event.text, event.is_final) for event in expected]


class Elsewhere(torch.Tensor):
    """A tensor of a device where nothing can be done in double precision: it must be brought to the host first."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is torch.Tensor.to and args[1:] == (torch.device("cpu"),), f"{func} elsewhere"
        with torch._C.DisableTorchFunctionSubclass():
            return args[0].as_subclass(torch.Tensor)


def test_norms_are_computed_on_the_host_wherever_the_model_is() -> None:
    torch.manual_seed(0)
    norm, weight, bias = nn.GroupNorm(8, 8), torch.randn(8, 10), torch.randn(8)
    mean, covariance = torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    expected = channel_norm(norm, weight, bias, mean, covariance)
    away = [x.detach().as_subclass(Elsewhere) for x in (norm.weight, norm.bias, weight, bias)]
    there: Any = SimpleNamespace(weight=away[0], bias=away[1], eps=norm.eps)
    for found, same in zip(channel_norm(there, *away[2:], mean, covariance), expected, strict=True):
        torch.testing.assert_close(found, same)
