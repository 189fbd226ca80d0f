"""Streams whose windows stay on the device say what they say without."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.acoustic import AcousticModel
from core.audio import HOP, SAMPLE_RATE, Samples, n_frames, n_samples_for
from core.configuration import Wav2Vec2Config
from core.engine import Engine
from core.feature_cache import Window as FeatureWindow
from core.feature_cache import read_features
from core.layout import lay_out
from core.ring_buffer import RingBuffer
from core.slots import Resident, Slot, Slots
from core.stream import Stream
from core.tail import Memory, Step, emit_steps
from core.tokenizer import Wav2Vec2Tokenizer
from core.transcript import Event, Gap, Transcript
from core.wav2vec2 import Wav2Vec2ForCTC
from core.windows import Pass, StreamConfig
from streamer.job import Command
from streamer.scheduler import Scheduler

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]
CONFIG = StreamConfig(left=20, hop=10, right=5)
KINDS = [("layer", False), ("layer", True), ("group", False), ("group", True), ("none", False)]


def make(directory: Path, device: str, norm: str, normalises: bool, n_slots: int = 4) -> AcousticModel:
    """A tiny model: with layer norm and input as it is rings hold features, else samples."""
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    tokenizer.do_normalize = normalises
    plain = AcousticModel.load(directory, device, "float32")
    network = plain.model
    if norm != "layer":
        torch.manual_seed(0)
        config = replace(plain.config, feat_extract_norm=norm)
        if norm == "none":  # the last convolution hears a row more on either side
            padding = (0,) * (len(config.conv_dim) - 1) + (1,)
            kernel = (*config.conv_kernel[:-1], config.conv_kernel[-1] + 2)
            config = replace(config, conv_padding=padding, conv_kernel=kernel)
        network = Wav2Vec2ForCTC(config)
        with torch.no_grad():
            network.lm_head.weight *= 40
    model = AcousticModel(network.to(device), tokenizer)
    model.n_slots = n_slots
    return model


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'normalised' if kind[1] else 'raw'}")
def model(request: pytest.FixtureRequest, device: str, tiny_model_dir: Path) -> AcousticModel:
    return make(tiny_model_dir, device, *request.param)


def speech(n: int, seed: int) -> Samples:
    """Noise with pauses, some of them digital silence."""
    random = np.random.default_rng(seed)
    loud = np.repeat(random.choice([0.0, 0.001, 0.1], n // 8000 + 1), 8000)[:n]
    return (random.normal(size=n) * loud).astype(np.float32)


def plain(model: AcousticModel) -> Engine:
    """An engine that sends every window as a whole."""
    engine = Engine(model)
    engine.slot = lambda stream, task: None  # type: ignore[method-assign]
    return engine


def listen(engine: Engine, config: StreamConfig, parts: Sequence[Samples]) -> list[Event]:
    """The events of one stream that is flushed after each part."""
    stream, events = engine.new_stream(config), list[Event]()
    for part in parts:
        stream.push(part)
        stream.flush()
    stream.finish()
    return events + engine.drain(stream)


def shuffle(engine: Engine, configs: Sequence[StreamConfig], heard: Sequence[Sequence[Samples]], seed: int) -> list:
    """The same of several, in packets of any size, stepped in any order and any company."""
    random = np.random.default_rng(seed)
    streams = [engine.new_stream(config) for config in configs]
    waiting = [[piece for part in parts for piece in (part, None)] for parts in heard]
    events: list[list[Event]] = [[] for _ in streams]
    while any(waiting) or any(stream.is_ready for stream in streams):
        i = int(random.integers(len(streams)))
        if waiting[i]:
            piece = waiting[i].pop(0)
            if piece is None:
                streams[i].flush()
                if not waiting[i]:
                    streams[i].finish()
            else:
                n = int(random.integers(1, 9000))
                streams[i].push(piece[:n])
                if len(piece) > n:
                    waiting[i].insert(0, piece[n:])
        chosen = [j for j in random.permutation(len(streams)) if random.random() < 0.5]
        for j, came in zip(chosen, engine.step([streams[j] for j in chosen]), strict=True):
            events[j] += came
    return events


def said(events: Sequence[Event]) -> list[object]:
    """All of it, confidences to three digits: their last digit may hang on the order of a sum."""
    return [
        event
        if isinstance(event, Gap)
        else replace(event, words=tuple(replace(word, confidence=round(word.confidence, 2)) for word in event.words))
        for event in events
    ]


@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", DEVICES)
def test_events_are_those_without_slots(tiny_model_dir: Path, on: str, kind: tuple[str, bool], seed: int) -> None:
    """More streams than slots, of two shapes, some of which end before others begin to have whole windows."""
    model, random = make(tiny_model_dir, on, *kind, n_slots=2), np.random.default_rng(seed)
    configs = [CONFIG, CONFIG, CONFIG, StreamConfig.preset("low", refresh=1000), CONFIG, CONFIG]
    heard = []
    for i in range(len(configs)):
        samples = speech(int(random.integers(1000, 4 * SAMPLE_RATE)), seed + i)
        cuts = sorted(random.integers(0, len(samples), int(random.integers(3))))
        heard.append(np.split(samples, cuts))
    engine, alone = Engine(model), plain(model)
    found = shuffle(engine, configs, heard, seed)
    for config, parts, events in zip(configs, heard, found, strict=True):
        assert said(events) == said(listen(alone, config, parts))
    assert all(sorted(slots.free) == [0, 1] for slots in engine.slots.values())


def test_a_window_is_what_the_model_hears_alone(model: AcousticModel) -> None:
    engine, reference = Engine(model), plain(model)
    stream, n_whole = engine.new_stream(CONFIG), 0
    twin = reference.new_stream(CONFIG)
    for packet in np.split(speech(6 * SAMPLE_RATE, 3) + 1e-3, 40):
        stream.push(packet)
        twin.push(packet)
        while (task := stream.next_pass()) is not None:
            n_whole += engine.slot(stream, task) is not None
            expected = reference.emit([(twin, task)])[0]
            found = engine.emit([(stream, task)])[0]
            if model.n_local_features or model.model.device.type == "cuda":
                np.testing.assert_allclose(found, expected, atol=1e-4)
            else:
                np.testing.assert_array_equal(found, expected)
            engine.apply(stream, task, found)
            reference.apply(twin, task, expected)
    assert n_whole > 20


def test_only_what_is_new_is_sent(model: AcousticModel) -> None:
    engine = Engine(model)
    stream = engine.new_stream(CONFIG)
    sent: list[int] = []
    put, unit = Slots.put, (HOP if model.n_local_features else 1)

    def counted(slots: Slots, samples: torch.Tensor, places: torch.Tensor, lead: int = 0) -> torch.Tensor:
        sent.append(samples.shape[1])
        return put(slots, samples, places, lead)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slots, "put", counted)
        stream.push(np.random.default_rng(0).normal(size=4 * SAMPLE_RATE).astype(np.float32) / 10)
        engine.drain(stream)
    overlap = n_samples_for(CONFIG.hop + 2 * model.halo) - HOP * CONFIG.hop if unit == HOP else 0
    assert sent[0] == n_samples_for(CONFIG.window) and len(sent) > 10
    assert set(sent[1:]) == {HOP * CONFIG.hop + overlap}


def test_a_slot_forgets_who_had_it(model: AcousticModel) -> None:
    model.n_slots = 1
    engine, alone = Engine(model), plain(model)
    for seed in range(3):
        parts = [speech(3 * SAMPLE_RATE, seed)]
        assert said(listen(engine, CONFIG, parts)) == said(listen(alone, CONFIG, parts))
        assert engine.slots[CONFIG.window, CONFIG.hop].free == [0]


def test_a_stream_that_is_no_more_gives_its_slot_back(model: AcousticModel) -> None:
    engine = Engine(model)
    stream = engine.new_stream(CONFIG)
    stream.push(speech(SAMPLE_RATE, 0) + 1e-3)
    engine.drain(stream)
    [slots] = engine.slots.values()
    assert stream.slot is not None and len(slots.free) == slots.n - 1
    del stream
    gc.collect()
    assert len(slots.free) == slots.n


def test_no_more_than_there_are(model: AcousticModel) -> None:
    slots = Slots(model, 2, CONFIG.window, CONFIG.hop)
    streams = [Stream(CONFIG, 32) for _ in range(3)]
    first, second = (slots.take(stream) for stream in streams[:2])
    with pytest.raises(RuntimeError, match="Expected a free slot. Found: all 2 taken"):
        slots.take(streams[2])
    first.release()
    first.release()
    assert slots.take(streams[2]).index == first.index != second.index
    with pytest.raises(ValueError, match="at least 1 slot, window and hop. Found: 0, 35 and 10"):
        Slots(model, 0, CONFIG.window, CONFIG.hop)


def test_batches_are_no_longer_than_memory_allows(model: AcousticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.slots.MAX_BATCH_SAMPLES", 5 * n_samples_for(CONFIG.window))
    slots = Slots(model, 7, CONFIG.window, CONFIG.hop)
    assert slots.most == 4
    streams = [Stream(CONFIG, 32) for _ in range(7)]
    windows, passes = [], []
    for seed, stream in enumerate(streams):
        stream.push(speech(SAMPLE_RATE, seed) + 1e-3)
        windows.append(Resident(slots.take(stream), stream.buffer, HOP * seed, (0.0, 1.0)))
        passes.append(Pass(HOP * seed, HOP * seed + n_samples_for(CONFIG.window)))
    alone = plain(model).emit(list(zip(streams, passes, strict=True)))
    for found, expected in zip(slots.emit(windows), alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_first_batches_run_before_streams_come(model: AcousticModel) -> None:
    engine = Engine(model)
    slots = engine.slots_for(CONFIG)
    assert slots is not None
    slots.warm_up(8)
    # Four slots: one, two and four streams, each with a whole window and a hop sent, and a window read.
    assert len(slots.graphs.inputs) == 9 and len(slots.free) == 4
    places = {key: [x.data_ptr() for x in inputs] for key, inputs in slots.graphs.inputs.items()}
    parts = [speech(2 * SAMPLE_RATE, 0) + 1e-3]
    assert said(listen(engine, CONFIG, parts)) == said(listen(plain(model), CONFIG, parts))
    assert {key: [x.data_ptr() for x in inputs] for key, inputs in slots.graphs.inputs.items()} == places


def test_shapes_that_come_too_late_have_no_slots(model: AcousticModel) -> None:
    engine, parts = Engine(model), [speech(2 * SAMPLE_RATE, 0) + 1e-3]
    for left in range(20, 26):
        config = StreamConfig(left=left, hop=10, right=5)
        assert said(listen(engine, config, parts)) == said(listen(plain(model), config, parts))
    assert len(engine.slots) == 4


def deep(directory: Path, device: str, n_slots: int, norm: str = "layer", normalises: bool = False) -> AcousticModel:
    """A model of several blocks, whose keys and values hang on how often their frames were computed."""
    torch.manual_seed(4)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        feat_extract_norm=norm,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        vocab_size=32,
        add_sinusoids=True,
        branch=(1, 2),
    )
    network = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        network.lm_head.weight *= 10
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    tokenizer.do_normalize = normalises
    model = AcousticModel(network.to(device), tokenizer)
    model.n_slots = n_slots
    return model


def ending(stream: Stream, step: Pass) -> Memory:
    """What slots go on from: the last whole window that could end a segment, up to whole hops before this one's end."""
    memory, config = stream.memory, stream.config
    if memory.log_probs is None or len(memory.log_probs) < config.window:
        return Memory()
    surplus = (memory.end_frame - n_frames(step.end_sample)) % config.hop
    return replace(memory, log_probs=memory.log_probs[: config.window - surplus])


TAIL = StreamConfig(left=60, hop=10, right=5, refresh=8)


@pytest.mark.parametrize("longest", [1000, 150])
def test_newest_frames_say_what_they_say_on_the_host(
    tiny_model_dir: Path, device: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams that go on and are flushed, in company; steps that only show go on from those that can end a segment."""
    monkeypatch.setattr("core.tail.LONGEST", longest)
    model, on_host = deep(tiny_model_dir, device, 4), deep(tiny_model_dir, "cpu", 0)
    engine, reference = Engine(model), Engine(on_host)
    pairs = [(engine.new_stream(TAIL), reference.new_stream(TAIL)) for _ in range(3)]
    sizes: set[tuple[int, bool]] = set()
    run_tail = Slots.run_tail

    def noted(slots: Slots, windows: Sequence[Resident], n: int) -> torch.Tensor:
        sizes.update((n, window.writes) for window in windows)
        return run_tail(slots, windows, n)

    monkeypatch.setattr(Slots, "run_tail", noted)
    for i, (stream, twin) in enumerate(pairs):
        twin.memory_for = partial(ending, twin)  # type: ignore[method-assign]
        samples = speech(5 * SAMPLE_RATE, i) + 1e-3
        for one in (stream, twin):
            one.push(samples[:50_000])
            if i == 1:
                one.flush()
            one.push(samples[50_000:])
    random = np.random.default_rng(0)
    while ready := [pair for pair in pairs if pair[0].is_ready]:
        ready = [pair for pair in ready if random.random() < 0.6]
        work = [(stream, task) for stream, _ in ready if (task := stream.next_pass()) is not None]
        there = [(twin, task) for _, twin in ready if (task := twin.next_pass()) is not None]
        assert [task for _, task in work] == [task for _, task in there]
        found, expected = engine.emit(work), reference.emit(there)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)
        engine.apply_all(work, found)
        reference.apply_all(there, expected)
    assert {(18, False), (28, False), (75, True)} <= sizes
    assert any(n < TAIL.window for n, writes in sizes if writes)


@pytest.mark.parametrize("kind", [("group", False), ("group", True), ("layer", True), ("layer", False)])
def test_running_statistics_are_those_of_the_host(tiny_model_dir: Path, device: str, kind: tuple[str, bool]) -> None:
    """Features of models that normalise over time: by what was heard up to each hop, whichever step computes it."""
    model = deep(tiny_model_dir, device, 4, *kind)
    on_host = deep(tiny_model_dir, "cpu", 0, *kind)
    slots = Slots(model, 4, TAIL.window, TAIL.hop, is_running=not model.n_local_features)
    streams = []
    for seed in range(3):
        samples = RingBuffer(8 * SAMPLE_RATE)
        samples.append(speech(8 * SAMPLE_RATE, seed) + 1e-2)
        place = Resident(Slot(slots, seed, bool), samples, 0, (0.0, 1.0), Memory(), TAIL.refresh)
        place = replace(place, statistics=model.statistics(True))
        streams.append((place, RingBuffer(400, 32, 32), on_host.statistics(), Memory()))
    for turn, writes in enumerate([True, False, True, True, False, False, True, False, True, False, False]):
        start, end = HOP * TAIL.hop * turn, HOP * TAIL.hop * turn + n_samples_for(TAIL.window)
        found = slots.emit([replace(place, start_sample=start, writes=writes) for place, *_ in streams])
        for (place, features, statistics, memory), log_probs in zip(streams, found, strict=True):
            window = FeatureWindow(place.samples, features, start, end, statistics, TAIL.hop)
            of = memory if writes else replace(memory)
            (expected,) = emit_steps(
                on_host, [Step(read_features(on_host, [window])[0], start // HOP, of, TAIL.refresh)]
            )
            np.testing.assert_allclose(log_probs, expected, atol=3e-4)


@pytest.mark.parametrize("refresh", [69, 75, 1000])
def test_without_anything_known_it_is_the_whole_window(tiny_model_dir: Path, device: str, refresh: int) -> None:
    model = deep(tiny_model_dir, device, 2)
    engine, reference = Engine(model), plain(model)
    config = replace(TAIL, refresh=refresh)
    samples = speech(5 * SAMPLE_RATE, 0) + 1e-3
    stream, twin = engine.new_stream(config), reference.new_stream(config)
    stream.push(samples)
    twin.push(samples)
    while (task := stream.next_pass()) is not None:
        found, expected = engine.emit([(stream, task)]), reference.emit([(twin, task)])
        np.testing.assert_allclose(found[0], expected[0], atol=2e-4)
        engine.apply(stream, task, found[0])
        reference.apply(twin, task, expected[0])


@pytest.mark.parametrize("kind", [("group", False), ("group", True), ("layer", True), ("layer", False)])
def test_steps_that_only_show_leave_no_trace(tiny_model_dir: Path, device: str, kind: tuple[str, bool]) -> None:
    """What can end a segment is the same, whichever of the others were left out, and whoever had the slot before."""
    model = deep(tiny_model_dir, device, 1, *kind)
    engine, samples = Engine(model), speech(6 * SAMPLE_RATE, 2) + 1e-3

    def heard(share: float, cut: int) -> list[np.ndarray]:
        random = np.random.default_rng(cut)
        stream, rows = engine.new_stream(TAIL), []
        pieces = [piece for part in np.array_split(samples, 2) for piece in np.array_split(part, cut)]
        for i, piece in enumerate(pieces):
            stream.push(piece)
            if i == cut - 1:
                stream.flush()
            while (task := stream.next_pass()) is not None:
                stream.shows_all = random.random() < share
                task = stream.next_pass()
                if task is None:
                    break
                (log_probs,) = engine.emit([(stream, task)])
                if not task.only_shows and task.cut is None:
                    rows.append(log_probs)
                engine.apply(stream, task, log_probs)
        stream.finish()
        engine.drain(stream)
        assert [slots.free for slots in engine.slots.values()] == [[0]]
        return rows

    expected = heard(1, 1)
    for share, cut in ((0.0, 1), (0.5, 40), (1.0, 170)):
        found = heard(share, cut)
        assert len(found) == len(expected) > 5
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_threads_share_slots(tiny_model_dir: Path, device: str) -> None:
    model = deep(tiny_model_dir, device, 3)
    engine, heard = Engine(model), [[speech(3 * SAMPLE_RATE, seed) + 1e-3] for seed in range(6)]
    alone = [said(listen(engine, TAIL, parts)) for parts in heard]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda parts: said(listen(engine, TAIL, parts)), heard))
    assert found == alone
    assert sorted(engine.slots[TAIL.window, TAIL.hop].free) == [0, 1, 2]


@pytest.mark.parametrize("kind", [("group", True), ("layer", False)])
def test_two_workers_say_what_one_says(tiny_model_dir: Path, device: str, kind: tuple[str, bool]) -> None:
    model = deep(tiny_model_dir, device, 8, *kind)
    heard = [speech(4 * SAMPLE_RATE, seed) + 1e-4 for seed in range(6)]

    def finals(workers: int) -> list[list[str]]:
        scheduler = Scheduler(Engine(model), workers=workers)
        scheduler.start()
        said_of: list[list[object]] = [[] for _ in heard]
        jobs = [scheduler.open(TAIL, outputs.extend) for outputs in said_of]
        for place in range(0, len(heard[0]), 8000):
            for job, samples in zip(jobs, heard, strict=True):
                scheduler.submit(job, [samples[place : place + 8000]])
        for job in jobs:
            scheduler.submit(job, [Command.FINISH])
        deadline = time.monotonic() + 60
        while scheduler.jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not scheduler.jobs and scheduler.is_alive
        scheduler.close()
        return [
            [event.text for event in outputs if isinstance(event, Transcript) and event.is_final] for outputs in said_of
        ]

    one = finals(1)
    assert any(one) and finals(2) == one


def test_first_batches_of_newest_frames_run_before_streams_come(tiny_model_dir: Path, device: str) -> None:
    model = deep(tiny_model_dir, device, 4)
    engine, config = Engine(model), replace(TAIL, refresh=12)
    slots = engine.slots_for(config)
    assert slots is not None
    slots.warm_up(8, config.refresh, config.most_hops)
    sizes = len(slots.graphs.inputs)
    assert sizes == 3 * (2 + 1 + config.most_hops)  # put a whole window and a hop; run one and so many hops
    assert len(slots.free) == 4
    listen(engine, config, [speech(3 * SAMPLE_RATE, 0) + 1e-3])
    assert len(slots.graphs.inputs) == sizes


class DevicesUsed(TorchDispatchMode):
    """Notes the devices of all tensors that any operation reads or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        self.found |= {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize("is_laid_out", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_touch_nothing_outside_the_device(
    tiny_model_dir: Path, kind: tuple[str, bool], is_laid_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graph must not: on the device that holds no data the host cannot be asked for any either."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know that device
    model = make(tiny_model_dir, "cpu", *kind)
    network = Wav2Vec2ForCTC(replace(model.config, add_sinusoids=True)).to("meta")
    if is_laid_out:
        remove_parametrizations(network.wav2vec2.encoder.pos_conv_embed.conv, "weight")
    network = lay_out(network, torch.bfloat16) if is_laid_out else network.to(torch.bfloat16)
    slots = Slots(AcousticModel(network, model.tokenizer), 4, CONFIG.window, CONFIG.hop)
    with DevicesUsed() as used:
        if slots.unit == HOP:
            for n_heard in (CONFIG.window, CONFIG.hop + 5 + slots.n_lead):
                places = torch.zeros(2, 3, dtype=torch.int64, device="meta")
                newest = slots.tail(places, torch.zeros(2, n_heard, dtype=torch.int64, device="meta"))
                assert newest.shape[:2] == (2, CONFIG.window if n_heard == CONFIG.window else CONFIG.hop + 5)
        n_new = n_samples_for(CONFIG.hop) if slots.unit == HOP else CONFIG.hop * HOP
        places = torch.zeros(2, 2, dtype=torch.int64, device="meta")
        slots.put(torch.zeros(2, n_new, device="meta"), places)
        log_probs = slots.emission(places, torch.ones(2, 2, dtype=torch.float64, device="meta"))
    assert log_probs.shape == (2, CONFIG.window, model.config.vocab_size) and log_probs.dtype == torch.float32
    assert used.found == {"meta"}


def test_sessions_of_a_scheduler_have_slots(model: AcousticModel) -> None:
    model.n_slots = 2
    engine = Engine(model)
    scheduler = Scheduler(engine)
    assert scheduler.max_batch == 128
    scheduler.warm_up()
    heard: list[Samples] = [speech(3 * SAMPLE_RATE, seed) + 1e-4 for seed in range(3)]
    said_of: list[list[object]] = [[] for _ in heard]
    for samples, outputs in zip(heard, said_of, strict=True):
        scheduler.submit(scheduler.open(CONFIG, outputs.extend), [samples, Command.FINISH])
    while scheduler.active:
        scheduler.run_once()
    for samples, outputs in zip(heard, said_of, strict=True):
        alone = [event for event in listen(plain(model), CONFIG, [samples]) if isinstance(event, Transcript)]
        finals = [event for event in outputs if isinstance(event, Transcript) and event.is_final]
        assert said(finals) == said([event for event in alone if event.is_final]) != []
    assert sorted(engine.slots[CONFIG.window, CONFIG.hop].free) == [0, 1]


def test_no_slots_on_the_cpu_unless_asked_for(tiny_model_dir: Path) -> None:
    model = AcousticModel.load(tiny_model_dir, "cpu", "float32")
    engine = Engine(model)
    listen(engine, CONFIG, [speech(SAMPLE_RATE, 0)])
    assert model.n_slots == 0 and not engine.slots


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize(("dtype", "atol", "agreement"), [("float32", 1e-3, 1.0), ("bfloat16", 1.0, 0.99)])
def test_both_devices_say_the_same(sample: Path, dtype: str, atol: float, agreement: float) -> None:
    samples, _ = soundfile.read(sample, dtype="float32")
    expected = AcousticModel.load("streamer-en", "cpu", "float32").emit([samples])[0]
    found = AcousticModel.load("streamer-en", "cuda", dtype).emit([samples])[0]
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=atol)
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= agreement


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_real_speech_has_the_same_transcript(sample: Path, device: str, dtype: str) -> None:
    samples, _ = soundfile.read(sample, dtype="float32")
    model = AcousticModel.load("streamer-en", device, dtype)
    config = StreamConfig.preset("low", refresh=1000)
    model.n_slots = 1
    found = listen(Engine(model), config, [samples])
    assert said(found) == said(listen(plain(model), config, [samples]))
