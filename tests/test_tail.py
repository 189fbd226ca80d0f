"""Steps that compute the newest frames of their window alone, on random weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from core.acoustic import AcousticModel
from core.configuration import Wav2Vec2Config
from core.engine import Engine
from core.tail import LONGEST, ROOM, Memory, Step, emit_steps
from core.tokenizer import Wav2Vec2Tokenizer
from core.wav2vec2 import Wav2Vec2ForCTC
from core.windows import StreamConfig


def make_model(
    tmp_tokens: Wav2Vec2Tokenizer, layers: int, stable: bool, sinusoids: bool, branch: tuple[int, ...] = ()
) -> AcousticModel:
    torch.manual_seed(3)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=stable,
        adapter_attn_dim=8 if sinusoids else None,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        vocab_size=32,
        add_sinusoids=sinusoids,
        branch=branch,
    )
    return AcousticModel(Wav2Vec2ForCTC(config), tmp_tokens)


@pytest.fixture
def tokenizer(tiny_model_dir: object) -> Wav2Vec2Tokenizer:
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(tiny_model_dir)  # type: ignore[arg-type]
    tokenizer.do_normalize = False
    return tokenizer


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 32)).astype(np.float32)


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("sinusoids", [True, False])
@pytest.mark.parametrize("branch", [(), (1, 2), (0, 2)])
def test_without_memory_a_step_is_a_window(
    tokenizer: Wav2Vec2Tokenizer, stable: bool, sinusoids: bool, branch: tuple[int, ...]
) -> None:
    model = make_model(tokenizer, 3, stable, sinusoids, branch)
    window = features(60)
    (found,) = emit_steps(model, [Step(window, 40, Memory(), 10)])
    np.testing.assert_allclose(found, model.emit_features([window])[0], atol=1e-5)


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("sinusoids", [True, False])
def test_one_layer_is_exact(tokenizer: Wav2Vec2Tokenizer, stable: bool, sinusoids: bool) -> None:
    """Keys and values of a single layer hang on the positional convolution alone, whose taps are all refreshed."""
    model = make_model(tokenizer, 1, stable, sinusoids)
    heard, memory = features(120), Memory()
    for end in (50, 60, 75, 75, 110, 120):
        known = Step(heard[:end], 0, memory, 8).n_known
        (found,) = emit_steps(model, [Step(heard[:end], 0, memory, 8)])
        assert found.shape == (end, 32) and (memory.first_frame, memory.end_frame) == (0, end)
        np.testing.assert_allclose(found[known:], model.emit_features([heard[:end]])[0][known:], atol=1e-5)
    assert known == 102


def test_streams_in_a_batch_do_not_hear_each_other(tokenizer: Wav2Vec2Tokenizer) -> None:
    model = make_model(tokenizer, 3, True, True)
    heard = [features(200, seed) for seed in range(4)]

    def run(together: bool) -> list[np.ndarray]:
        memories = [Memory() for _ in heard]
        rows = []
        for start, end in ((0, 60), (10, 80), (30, 100), (32, 102)):
            steps = [
                Step(one[start + 5 * i : end + 5 * i], start + 5 * i, memory, 20)
                for i, (one, memory) in enumerate(zip(heard, memories, strict=True))
            ]
            rows += emit_steps(model, steps) if together else [emit_steps(model, [step])[0] for step in steps]
        return rows

    for together, alone in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_does_not_follow_is_computed_anew(tokenizer: Wav2Vec2Tokenizer) -> None:
    model = make_model(tokenizer, 2, True, True)
    heard, memory = features(LONGEST + 400), Memory()
    for start, end, known in (
        (0, 100, 0),
        (20, 120, 60),
        (320, 420, 0),  # a gap
        (300, 400, 0),  # back
        (320, 420, 60),
        (1220, 1320, 0),
    ):
        step = Step(heard[start:end], start, memory, 20)
        assert step.n_known == known
        (found,) = emit_steps(model, [step])
        if not known:
            np.testing.assert_allclose(found, model.emit_features([heard[start:end]])[0], atol=1e-5)
    memory = Memory()
    for start in range(0, LONGEST + 200, 25):  # positions never grow beyond what models have been trained with
        emit_steps(model, [Step(heard[start : start + 100], start, memory, 20)])
        assert memory.end_frame - memory.origin <= LONGEST


def test_finals_are_the_same(tokenizer: Wav2Vec2Tokenizer) -> None:
    """They run as a whole; random weights say something in every frame, so nothing but length ends a segment."""
    model = make_model(tokenizer, 2, True, False)
    samples = np.random.default_rng(5).standard_normal(16_000 * 25).astype(np.float32) * 0.1

    def finals(refresh: int) -> list[str]:
        engine = Engine(model)
        stream = engine.new_stream(replace(StreamConfig.preset("balanced"), refresh=refresh))
        stream.push(samples)
        stream.finish()
        return [event.text for event in engine.drain(stream) if event.is_final]  # type: ignore[union-attr]

    whole = finals(1000)
    assert any(whole) and finals(40) == whole


def test_steps_that_only_show_partials_leave_no_trace(tokenizer: Wav2Vec2Tokenizer) -> None:
    """Frames that can end a segment hang on none of those, whichever were left out."""
    model = make_model(tokenizer, 2, True, True)
    samples = np.random.default_rng(6).standard_normal(16_000 * 8).astype(np.float32) * 0.1

    def frames(chance: float) -> dict[int, np.ndarray]:
        engine, random = Engine(model), np.random.default_rng(1)
        stream = engine.new_stream(replace(StreamConfig.preset("low"), refresh=20))
        stream.push(samples)
        heard = {}
        while stream.is_ready:
            stream.shows_all = random.random() < chance
            engine.step([stream])
            heard[stream.frames.end_frame] = stream.frames.marks
        return heard

    every = frames(1)
    assert len(every) > 5
    for chance in (0, 0.5):
        for end, rows in frames(chance).items():
            np.testing.assert_allclose(rows, every[end], atol=1e-5)


def test_what_is_known_stays_where_it_is(tokenizer: Wav2Vec2Tokenizer) -> None:
    """Until there is no room left; what goes on from a copy of a memory does not disturb it."""
    model = make_model(tokenizer, 2, True, True)
    heard, n, refresh = features(400), 60, 10

    def run(with_copies: bool) -> tuple[list[np.ndarray], list[Tensor]]:
        memory, rows, pasts = Memory(), list[np.ndarray](), list[Tensor]()
        for start in range(0, 300, 20):
            rows += emit_steps(model, [Step(heard[start : start + n], start, memory, refresh)])
            assert memory.past is not None
            pasts.append(memory.past)
            if with_copies:
                other, first = replace(memory), start + 10
                emit_steps(model, [Step(heard[first : first + n], first, other, refresh)])
        return rows, pasts

    rows, pasts = run(False)
    moved = [older is not newer for older, newer in pairwise(pasts)]
    assert moved[:5] == [False, False, False, True, False] and sum(moved) == (300 - 20) // (ROOM * n - n + 20)
    for found, expected in zip(run(True)[0], rows, strict=True):
        np.testing.assert_array_equal(found, expected)
