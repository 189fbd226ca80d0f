"""The model against transformers on the same random weights, stage by stage, and what it promises by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.configuration import Wav2Vec2Config
from core.encoder import sinusoids
from core.wav2vec2 import BaseModelOutput, CTCOutput, Wav2Vec2ForCTC, Wav2Vec2Model
from streamer.bench.sizes import CONFIGS

TOLERANCE = 1e-5
TINY = Wav2Vec2Config(
    vocab_size=11,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16, 16, 24),
    conv_stride=(5, 4, 2),
    conv_kernel=(10, 4, 3),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    mask_time_length=2,
    mask_feature_length=2,
)
SHAPES = {
    "base": TINY,
    "stable": replace(TINY, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "stable-group": replace(TINY, do_stable_layer_norm=True, hidden_act="relu"),
    "adapters": replace(TINY, feat_extract_norm="layer", do_stable_layer_norm=True, adapter_attn_dim=8),
    "base-layer": replace(TINY, feat_extract_norm="layer", num_conv_pos_embeddings=15, hidden_act="gelu_new"),
}
LENGTHS = [(601, 601), (1234, 700), (2047, 113), (3001, 2999, 400)]  # samples a row


def batch(lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise, padded with zeros, and its attention mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randn(mask.shape, generator=generator) * mask, mask


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    return float((ours - theirs).abs().max())


@pytest.fixture(params=SHAPES)
def config(request: pytest.FixtureRequest) -> Wav2Vec2Config:
    return SHAPES[request.param]


@pytest.fixture
def pair(config: Wav2Vec2Config) -> Iterator[tuple[Wav2Vec2ForCTC, Any]]:
    """Ours and transformers' CTC model, eval mode, with the same weights (drawn far from their initial symmetry)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    ours = Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(("bias", "layer_norm.weight")):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            elif "original" not in name:
                parameter.mul_(2)
    values = {**config.to_dict(), "attn_implementation": "eager"}
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**values)).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        yield ours, theirs


def test_keys_are_those_of_hub_checkpoints(pair: tuple[Wav2Vec2ForCTC, Any]) -> None:
    ours, theirs = pair
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_extractor_and_projection_match(pair: tuple[Wav2Vec2ForCTC, Any]) -> None:
    ours, theirs = pair[0].wav2vec2, pair[1].wav2vec2
    for lengths in LENGTHS:
        audio, _ = batch(lengths)
        features = ours.feature_extractor(audio)
        assert difference(features, theirs.feature_extractor(audio)) <= TOLERANCE
        hidden, normed = ours.feature_projection(features.transpose(1, 2))
        their_hidden, their_normed = theirs.feature_projection(features.transpose(1, 2))
        assert difference(hidden, their_hidden) <= TOLERANCE
        assert difference(normed, their_normed) <= TOLERANCE


@pytest.mark.parametrize("n_frames", [1, 2, 17, 40])
def test_positional_convolution_and_each_layer_match(pair: tuple[Wav2Vec2ForCTC, Any], n_frames: int) -> None:
    ours, theirs = pair[0].wav2vec2.encoder, pair[1].wav2vec2.encoder
    hidden = torch.randn(2, n_frames, 32, generator=torch.Generator().manual_seed(n_frames))
    assert difference(ours.pos_conv_embed(hidden), theirs.pos_conv_embed(hidden)) <= TOLERANCE
    for our_layer, their_layer in zip(ours.layers, theirs.layers, strict=True):
        expected = their_layer(hidden, attention_mask=None)
        expected = expected[0] if isinstance(expected, tuple) else expected  # before transformers 5
        for want_weights in (False, True):
            assert difference(our_layer(hidden, None, want_weights)[0], expected) <= TOLERANCE


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("with_mask", [False, True])
def test_whole_model_matches(pair: tuple[Wav2Vec2ForCTC, Any], lengths: tuple[int, ...], with_mask: bool) -> None:
    ours, theirs = pair
    audio, mask = batch(lengths)
    attention_mask = mask if with_mask else None
    options: dict[str, Any] = {"output_attentions": True, "output_hidden_states": True}
    expected = theirs.wav2vec2(audio, attention_mask=attention_mask, **options)
    for output in (ours.wav2vec2(audio, attention_mask, **options), ours.wav2vec2(audio, attention_mask)):
        assert difference(output.last_hidden_state, expected.last_hidden_state) <= TOLERANCE
        assert difference(output.extract_features, expected.extract_features) <= TOLERANCE
    output = ours.wav2vec2(audio, attention_mask, **options)
    assert len(output.hidden_states) == len(expected.hidden_states) == TINY.num_hidden_layers + 1
    assert len(output.attentions) == len(expected.attentions) == TINY.num_hidden_layers
    # The last state has passed the final norm in ours, as in transformers before 5; later ones give it without.
    states = (*expected.hidden_states[:-1], expected.last_hidden_state)
    for our_state, their_state in zip(output.hidden_states, states, strict=True):
        assert difference(our_state, their_state) <= TOLERANCE
    for our_weights, their_weights in zip(output.attentions, expected.attentions, strict=True):
        assert difference(our_weights, their_weights) <= TOLERANCE
    logits = theirs(audio, attention_mask=attention_mask).logits
    assert difference(ours(audio, attention_mask).logits, logits) <= TOLERANCE
    assert difference(ours.log_probs(audio, attention_mask), F.log_softmax(logits, -1)) <= TOLERANCE


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_ctc_loss_matches(pair: tuple[Wav2Vec2ForCTC, Any], reduction: str, with_mask: bool) -> None:
    ours, theirs = pair
    audio, mask = batch((3001, 2999, 1400))
    labels = torch.tensor([[1, 2, 2, 3], [4, 5, -100, -100], [10, -100, -100, -100]])
    attention_mask = mask if with_mask else None
    ours.config = replace(ours.config, ctc_loss_reduction=reduction)
    theirs.config.ctc_loss_reduction = reduction
    loss = ours(audio, attention_mask, labels=labels).loss
    expected = theirs(audio, attention_mask=attention_mask, labels=labels).loss
    assert abs(float(loss) - float(expected)) <= 1e-5 * abs(float(expected))


def test_impossible_labels_cost_infinity_or_nothing(pair: tuple[Wav2Vec2ForCTC, Any]) -> None:
    ours, theirs = pair
    audio, _ = batch((450, 450))
    labels = torch.full((2, 60), 3)
    for zero_infinity in (False, True):
        ours.config = replace(ours.config, ctc_zero_infinity=zero_infinity)
        theirs.config.ctc_zero_infinity = zero_infinity
        assert ours(audio, labels=labels).loss == theirs(audio, labels=labels).loss
        assert bool(ours(audio, labels=labels).loss == 0) == zero_infinity


def test_given_time_mask_matches(pair: tuple[Wav2Vec2ForCTC, Any]) -> None:
    ours, theirs = pair[0].wav2vec2, pair[1].wav2vec2
    audio, mask = batch((2047, 1500))
    frames = torch.zeros(2, ours.config.n_frames(2047), dtype=torch.bool)
    frames[0, 3:9] = frames[1, 20:22] = True
    expected = theirs(audio, attention_mask=mask, mask_time_indices=frames).last_hidden_state
    assert difference(ours(audio, mask, mask_time_indices=frames).last_hidden_state, expected) <= TOLERANCE
    assert difference(ours(audio, mask).last_hidden_state, expected) > 1e-2


def test_gradients_match(config: Wav2Vec2Config) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    quiet = replace(
        config,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    ours = Wav2Vec2ForCTC(quiet).train()
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**quiet.to_dict())).train()
    theirs.load_state_dict(ours.state_dict())
    audio, mask = batch((1234, 700))
    labels = torch.tensor([[1, 2, 2, 3], [4, 5, -100, -100]])
    ours(audio, mask, labels=labels).loss.backward()
    theirs(audio, attention_mask=mask, labels=labels).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        if parameter.grad is None:
            assert gradient is None and name.endswith("masked_spec_embed")
            continue
        scale = max(1.0, float(gradient.abs().max()))
        assert difference(parameter.grad, gradient) <= TOLERANCE * scale, name


@pytest.mark.parametrize(
    ("size", "expected"),
    [("base", 94_396_320), ("large", 315_471_520)],  # facebook/wav2vec2-base-960h, facebook/wav2vec2-large-960h-lv60
)
def test_published_sizes_have_published_parameters(size: str, expected: int) -> None:
    with torch.device("meta"):
        model = Wav2Vec2ForCTC(CONFIGS[size])
    assert sum(p.numel() for p in model.parameters()) == expected


def test_tuple_holds_what_was_asked_for() -> None:
    model = Wav2Vec2ForCTC(TINY).eval()
    audio, _ = batch((601,))
    labels = torch.tensor([[1, 2]])
    with torch.no_grad():
        output = model(audio, labels=labels, output_attentions=True, output_hidden_states=True)
        values = model(audio, labels=labels, output_attentions=True, output_hidden_states=True, return_dict=False)
        assert isinstance(output, CTCOutput)
        assert output.loss is not None and torch.equal(values[0], output.loss)
        assert torch.equal(values[1], output.logits)
        assert [len(v) for v in values[2:]] == [4, 3]
        assert len(model(audio, return_dict=False)) == 1
        assert isinstance(model.wav2vec2(audio), BaseModelOutput)
        assert len(model.wav2vec2(audio, return_dict=False)) == 2
        assert model(audio).loss is None and model(audio).hidden_states is None


@pytest.mark.parametrize("name", ["stable", "base-layer"])
def test_padding_and_batching_change_nothing_with_a_mask(name: str) -> None:
    """Layer-norm models: a masked row equals the row alone. (Group norm sees the padding; see the next test.)"""
    torch.manual_seed(1)
    model = Wav2Vec2ForCTC(SHAPES[name]).eval()
    audio, mask = batch((2047, 1309, 700))
    with torch.no_grad():
        together = model(audio, mask).logits
        for row, n in enumerate((2047, 1309, 700)):
            alone = model(audio[row : row + 1, :n]).logits
            assert difference(together[row : row + 1, : alone.shape[1]], alone) <= TOLERANCE


def test_group_norm_sees_the_padding() -> None:
    torch.manual_seed(1)
    model = Wav2Vec2Model(TINY).eval()
    audio, mask = batch((2047, 700))
    with torch.no_grad():
        together = model(audio, mask).last_hidden_state[1:]
        alone = model(audio[1:, :700]).last_hidden_state
    assert difference(together[:, : alone.shape[1]], alone) > TOLERANCE


def test_padded_frames_get_no_attention() -> None:
    model = Wav2Vec2Model(SHAPES["stable"]).eval()
    audio, mask = batch((2047, 700))
    with torch.no_grad():
        output = model(audio, mask, output_attentions=True)
    n = TINY.n_frames(700)
    for weights in output.attentions:
        assert not weights[1, :, :, n:].any()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, TINY.n_frames(2047)))


@pytest.mark.parametrize("want_weights", [False, True])
def test_row_without_a_whole_frame_stays_finite(want_weights: bool) -> None:
    model = Wav2Vec2ForCTC(SHAPES["stable"]).eval()
    audio, mask = batch((2047, 20))
    with torch.no_grad():
        assert model(audio, mask, output_attentions=want_weights).logits.isfinite().all()


def test_frame_counts_are_the_logits() -> None:
    model = Wav2Vec2ForCTC(TINY).eval()
    field, hop = TINY.receptive_field, TINY.hop
    with torch.no_grad():
        for n in (field, field + 1, field + hop - 1, field + hop, 1000, 1001):
            assert model(torch.randn(1, n)).logits.shape == (1, TINY.n_frames(n), TINY.vocab_size)


def test_frame_mask_counts_whole_frames() -> None:
    model = Wav2Vec2Model(TINY)
    lengths = (1000, 999, TINY.receptive_field, TINY.receptive_field - 1)
    frames = model.frame_mask(batch(lengths)[1])
    assert frames.dtype == torch.bool
    assert frames.sum(1).tolist() == [TINY.n_frames(n) for n in lengths] == [TINY.n_frames(1000)] * 2 + [1, 0]
    assert frames[0].all() and frames[2, 0]


def test_wrong_input_is_refused_with_numbers() -> None:
    model = Wav2Vec2ForCTC(TINY)
    with pytest.raises(ValueError, match=r"2D .*Found: \[601\]"):
        model(torch.zeros(601))
    with pytest.raises(ValueError, match=f"{TINY.receptive_field} samples.*Found: 30"):
        model(torch.zeros(1, 30))


def test_label_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 11. Found: 11"):
        Wav2Vec2ForCTC(TINY)(batch((601,))[0], labels=torch.tensor([[1, 11]]))
    with pytest.raises(ValueError, match="vocab_size 11. Found: 12"):
        Wav2Vec2ForCTC(TINY).ctc_loss_of(torch.zeros(1, 9, 11), torch.tensor([[12, 1]]), torch.tensor([9]))


def test_ignored_labels_count_for_nothing() -> None:
    model = Wav2Vec2ForCTC(TINY).eval()
    audio, _ = batch((1234,))
    with torch.no_grad():
        short = model(audio, labels=torch.tensor([[3, 4]])).loss
        padded = model(audio, labels=torch.tensor([[3, 4, -100, -100]])).loss
        none = model(audio, labels=torch.full((1, 2), -100)).loss
    assert torch.equal(short, padded)
    blanks = model.log_probs(audio)[0, :, 0].sum()
    torch.testing.assert_close(none, -blanks)


def test_loss_is_the_sum_over_rows() -> None:
    model = Wav2Vec2ForCTC(SHAPES["stable"]).eval()
    audio, mask = batch((1234, 700))
    labels = torch.tensor([[1, 2, 2], [4, 5, -100]])
    with torch.no_grad():
        both = model(audio, mask, labels=labels).loss
        first = model(audio[:1], labels=labels[:1]).loss
        second = model(audio[1:, :700], labels=labels[1:, :2]).loss
        model.config = replace(model.config, ctc_loss_reduction="none")
        rows = model(audio, mask, labels=labels).loss
    torch.testing.assert_close(both, first + second)
    torch.testing.assert_close(rows, torch.stack([first, second]))


def test_frozen_feature_encoder_gets_no_gradient() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(replace(TINY, layerdrop=0.0)).train()
    model.freeze_feature_encoder()
    model(batch((1234, 1234))[0], labels=torch.tensor([[1, 2], [3, 4]])).loss.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("wav2vec2.feature_extractor.")
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name


def test_a_few_steps_of_training_reduce_the_loss() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(replace(SHAPES["stable"], mask_time_prob=0.1, mask_feature_prob=0.1)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    audio, mask = batch((1234, 900))
    labels = torch.tensor([[1, 2, 2, 3], [4, 5, -100, -100]])
    losses = []
    for _ in range(15):
        loss = model(audio, mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_training_masks_and_evaluation_does_not() -> None:
    quiet = replace(
        TINY,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.3,
        mask_feature_prob=0.3,
    )
    torch.manual_seed(0)
    model = Wav2Vec2Model(quiet)
    audio, _ = batch((1234,))
    with torch.no_grad():
        clean = model.eval()(audio).last_hidden_state
        assert torch.equal(clean, model(audio).last_hidden_state)
        masked = model.train()(audio).last_hidden_state
        assert not torch.equal(masked, clean)
        model.config = replace(quiet, apply_spec_augment=False)
        assert torch.equal(model(audio).last_hidden_state, clean)


def test_layerdrop_skips_layers_but_keeps_their_states() -> None:
    model = Wav2Vec2Model(replace(TINY, layerdrop=1.0, hidden_dropout=0.0, apply_spec_augment=False)).train()
    with torch.no_grad():
        states = model(batch((601,))[0], output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert all(torch.equal(state, states[0]) for state in states)


def test_initial_weights_follow_the_paper() -> None:
    torch.manual_seed(0)
    config = replace(TINY, hidden_size=64, intermediate_size=256, initializer_range=0.05)
    model = Wav2Vec2ForCTC(config)
    conv = model.wav2vec2.encoder.pos_conv_embed.conv
    assert float(conv.weight.detach().std()) == pytest.approx(2 * (1 / (16 * 64)) ** 0.5, rel=0.05)
    assert not conv.bias.any()
    dense = model.state_dict()["wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight"]
    assert float(dense.std()) == pytest.approx(0.05, rel=0.05)
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(0.05, rel=0.1)
    projection = model.wav2vec2.feature_projection.projection.weight.detach()
    assert float(projection.abs().max()) <= 24**-0.5


@pytest.mark.parametrize("name", ["base", "stable"])
def test_bfloat16_gives_finite_float32_log_probs(name: str) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(SHAPES[name]).eval()
    audio, mask = batch((3001, 700))
    exact = model.log_probs(audio, mask)
    model = model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    log_probs = model.log_probs(audio, mask)
    assert log_probs.dtype == torch.float32
    assert log_probs.isfinite().all()
    # Rows sum to 1 to float32 precision, which a bfloat16 log-softmax would miss.
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]), atol=1e-5, rtol=0)
    heard = model.wav2vec2.frame_mask(mask)
    assert float((log_probs - exact)[heard].abs().mean()) < 0.1


def test_sinusoids_tell_positions_where_asked_and_are_absent_from_ordinary_files() -> None:
    table = sinusoids(torch.arange(40), 8)
    for frame in (0, 7, 39):
        for i in range(4):
            angle = frame / 10_000 ** (i / 3)
            assert abs(table[frame, i].item() - math.sin(angle)) < 1e-5
            assert abs(table[frame, 4 + i].item() - math.cos(angle)) < 1e-5
    assert "add_sinusoids" not in Wav2Vec2Config().to_dict()
    assert Wav2Vec2Config.from_dict(Wav2Vec2Config(add_sinusoids=True).to_dict()).add_sinusoids


def test_a_branch_adds_a_linear_map_of_what_its_blocks_say_to_where_it_left() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": (8,) * 7}
    config = Wav2Vec2Config(num_hidden_layers=5, do_stable_layer_norm=True, branch=(1, 3), **sizes)  # type: ignore[arg-type]
    encoder = Wav2Vec2ForCTC(config).eval().wav2vec2.encoder
    hidden = torch.randn(2, 30, 32)
    with torch.no_grad():
        states = [encoder.begin(hidden)]
        for i, layer in enumerate(encoder.layers):
            given = states[-1]
            if i == 3:
                normed = (given - given.mean(-1, keepdim=True)) / (
                    given.var(-1, keepdim=True, unbiased=False) + 1e-5
                ).sqrt()
                given = states[1] + encoder.branch.projection(normed)
            states.append(layer(given, None, False)[0])
        torch.testing.assert_close(encoder(hidden)[0], encoder.layer_norm(states[-1]))
    assert "branch" not in Wav2Vec2Config().to_dict()
    assert Wav2Vec2Config.from_dict(json.loads(json.dumps(config.to_dict()))).branch == (1, 3)
