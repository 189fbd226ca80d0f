"""Pre-training against transformers on the same weights, masks and distractors; what the sampling promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.configuration import Wav2Vec2Config
from core.masking import mask_spans
from core.pretraining import (
    GumbelVectorQuantizer,
    PreTrainingOutput,
    Wav2Vec2ForPreTraining,
    contrastive_loss,
    perplexity,
    sample_distractors,
    scale_gradient,
    temperature_at,
)
from core.wav2vec2 import Wav2Vec2ForCTC, Wav2Vec2Model

TINY = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16, 16, 24),
    conv_stride=(5, 4, 2),
    conv_kernel=(10, 4, 3),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_codevectors_per_group=20,
    codevector_dim=16,
    proj_codevector_dim=12,
    num_negatives=7,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    layerdrop=0.0,
)
SHAPES = {
    "group": TINY,
    "layer": replace(TINY, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
}
LENGTHS = (3001, 2999, 1400)  # samples a row


@pytest.fixture(params=SHAPES)
def config(request: pytest.FixtureRequest) -> Wav2Vec2Config:
    return SHAPES[request.param]


def pair(config: Wav2Vec2Config) -> tuple[Wav2Vec2ForPreTraining, Any]:
    """Ours and transformers', in training mode, with the same weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    ours = Wav2Vec2ForPreTraining(config)
    values = {**config.to_dict(), "attn_implementation": "eager"}
    theirs = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**values))
    theirs.load_state_dict(ours.state_dict())
    return ours.train(), theirs.train()


def inputs(config: Wav2Vec2Config, with_mask: bool) -> dict[str, Any]:
    """Noise, its attention mask (or none), and masked frames with distractors within each row."""
    generator = torch.Generator().manual_seed(3)
    samples = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    n_valid = [config.n_frames(n if with_mask else max(LENGTHS)) for n in LENGTHS]
    mask = mask_spans(n_valid, config.n_frames(max(LENGTHS)), 0.5, 4, 2, generator)
    return {
        "input_values": torch.randn(samples.shape, generator=generator) * samples,
        "attention_mask": samples if with_mask else None,
        "mask_time_indices": mask,
        "sampled_negative_indices": sample_distractors(mask, config.num_negatives, generator),
    }


def assert_equal(ours: PreTrainingOutput, theirs: Any) -> None:
    for name in ("loss", "contrastive_loss", "diversity_loss", "codevector_perplexity"):
        assert getattr(ours, name).item() == pytest.approx(getattr(theirs, name).item(), rel=1e-5), name
    for name in ("projected_states", "projected_quantized_states"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5), name


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_keys_are_those_of_hub_checkpoints(config: Wav2Vec2Config) -> None:
    ours, theirs = pair(config)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("with_mask", [False, True])
def test_losses_match(config: Wav2Vec2Config, with_mask: bool) -> None:
    ours, theirs = (model.eval() for model in pair(config))
    given_ = inputs(config, with_mask)
    with torch.no_grad():
        output = ours(**given_)
        assert_equal(output, theirs(**given_))
    # Few codes for many frames: some distractors had the codes of the frame itself.
    codes = ours.quantizer(ours.wav2vec2(given_["input_values"]).extract_features)[2]
    mask, places = given_["mask_time_indices"], given_["sampled_negative_indices"]
    assert (codes.flatten(0, 1)[places[mask]] == codes[mask][:, None]).all(-1).any()


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_training_losses_and_gradients_match(config: Wav2Vec2Config, with_mask: bool, temperature: float) -> None:
    # Many codes: in training transformers compares vectors that straight-through rounding has made unequal.
    ours, theirs = pair(replace(config, num_codevectors_per_group=320))
    given_ = inputs(config, with_mask)
    for model in (ours, theirs):
        model.set_gumbel_temperature(temperature)
    torch.manual_seed(5)
    output = ours(**given_)
    torch.manual_seed(5)
    expected = theirs(**given_)
    assert_equal(output, expected)
    output.loss.backward()
    expected.loss.backward()
    our_gradients, their_gradients = gradients(ours), gradients(theirs)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        scale = float(their_gradients[name].abs().max())
        assert torch.allclose(gradient, their_gradients[name], atol=2e-5 * max(1.0, scale)), name


def test_without_distractors_there_is_no_loss(config: Wav2Vec2Config) -> None:
    ours, theirs = (model.eval() for model in pair(config))
    audio = inputs(config, False)["input_values"]
    with torch.no_grad():
        output, expected = ours(audio), theirs(audio)
    assert output.loss is output.contrastive_loss is output.diversity_loss is None
    assert float(output.codevector_perplexity) == pytest.approx(float(expected.codevector_perplexity), rel=1e-5)
    with pytest.raises(ValueError, match="mask_time_indices"):
        ours(audio, sampled_negative_indices=torch.zeros(1))


def test_tuple_holds_the_same_values(config: Wav2Vec2Config) -> None:
    model = pair(config)[0].eval()
    given_ = inputs(config, True)
    output, values = model(**given_), model(**given_, return_dict=False)
    assert len(values) == 6 and values[0] == output.loss
    assert len(model(**given_, output_hidden_states=True).hidden_states) == 3
    assert len(model(**given_, output_attentions=True, return_dict=False)) == 7


def test_checkpoints_go_both_ways(config: Wav2Vec2Config, tmp_path: Path) -> None:
    ours, theirs = (model.eval() for model in pair(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    read_back = type(theirs).from_pretrained(tmp_path / "ours").state_dict()
    loaded = Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "theirs").state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.equal(loaded[name], weight) and torch.equal(read_back[name], weight), name
    encoder = Wav2Vec2Model.from_pretrained(tmp_path / "ours")
    assert torch.equal(encoder.masked_spec_embed, ours.wav2vec2.masked_spec_embed)
    tuned = Wav2Vec2ForCTC.from_pretrained(tmp_path / "ours", allow_missing=("lm_head.",))
    assert torch.equal(tuned.wav2vec2.masked_spec_embed, ours.wav2vec2.masked_spec_embed)


masks = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4).map(torch.tensor)


@settings(deadline=None)
@given(mask=masks.filter(lambda mask: not (mask.sum(1) == 1).any()), n=st.integers(1, 12), seed=st.integers(0, 99))
def test_distractors_are_other_masked_frames_of_the_row(mask: Tensor, n: int, seed: int) -> None:
    places = sample_distractors(mask, n, torch.Generator().manual_seed(seed))
    assert places.shape == (*mask.shape, n) and places.dtype == torch.long
    rows, frames = places // mask.shape[1], places % mask.shape[1]
    for b, t in mask.nonzero().tolist():
        assert (rows[b, t] == b).all() and (frames[b, t] != t).all()
        assert mask[b, frames[b, t]].all()
    assert not places[~mask].any()
    assert torch.equal(places, sample_distractors(mask, n, torch.Generator().manual_seed(seed)))


def test_distractors_are_uniform() -> None:
    mask = torch.tensor([[True, False, True, True, False, True]])
    places = sample_distractors(mask, 30_000, torch.Generator().manual_seed(0))
    for t in (0, 2, 3, 5):
        shares = torch.bincount(places[0, t], minlength=6) / 30_000
        others = [u for u in (0, 2, 3, 5) if u != t]
        assert shares[others].tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_lonely_masked_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="Found: 1 in row 1"):
        sample_distractors(torch.tensor([[True, True], [False, True]]), 3)


def test_contrastive_loss_by_hand() -> None:
    """Two masked frames; the first has one distractor that differs and one with its own codes, which is not counted."""
    predicted = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    quantized = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [5.0, 0.0]]])
    codes = torch.tensor([[[0, 0], [1, 1], [0, 0]]])
    mask = torch.tensor([[True, True, False]])
    places = torch.tensor([[[1, 2], [0, 0], [0, 0]]])
    loss = contrastive_loss(predicted, quantized, codes, mask, places, 0.5)
    expected = torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(2 * torch.exp(torch.tensor(-2.0)))
    assert float(loss) == pytest.approx(float(expected))


def test_perplexity_counts_the_codes_in_use() -> None:
    used = torch.eye(8)[torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])][:, :, None]  # (row, frame, one group, code)
    assert float(perplexity(used[:1], None)) == pytest.approx(4)
    assert float(perplexity(used, torch.tensor([[True] * 4, [False] * 4]))) == pytest.approx(4)
    assert float(perplexity(used[1:].expand(1, 4, 3, 8), None)) == pytest.approx(3)  # one code in each of three groups


def test_codes_out_of_all_use_leave_gradients_finite() -> None:
    """Logits so far apart that probabilities underflow: there the gradient of transformers is not a number."""
    logits = torch.tensor([[[[0.0, 500.0, -500.0]]]], requires_grad=True)
    used = perplexity(logits.softmax(-1), None)
    used.backward()
    assert used.item() == 1 and logits.grad is not None and logits.grad.isfinite().all()


def test_the_quantizer_gives_whole_codevectors_and_learns_from_them() -> None:
    torch.manual_seed(0)
    quantizer = GumbelVectorQuantizer(TINY).train()
    features = torch.randn(2, 5, 24)
    vectors, _, codes = quantizer(features)
    books = quantizer.codevectors.view(2, 20, 8)
    for group in range(2):
        assert torch.allclose(vectors.view(2, 5, 2, 8)[:, :, group], books[group][codes[:, :, group]], atol=1e-6)
    vectors.square().sum().backward()
    assert quantizer.codevectors.grad is not None and quantizer.weight_proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="Found: 15 and 2"):
        GumbelVectorQuantizer(replace(TINY, codevector_dim=15))


def test_the_extractor_alone_learns_slower() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(TINY).eval()
    given_ = inputs(TINY, False)
    model(**given_).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    handle = scale_gradient(model.wav2vec2.feature_extractor, 0.1)
    model(**given_).loss.backward()
    for name, gradient in gradients(model).items():
        factor = 0.1 if "feature_extractor." in name else 1.0
        assert torch.allclose(gradient, factor * whole[name], rtol=1e-4, atol=1e-6), name
    handle.remove()
    with torch.no_grad():
        assert model(**given_).loss.isfinite()


def test_the_temperature_falls_from_two_to_a_half() -> None:
    temperatures = [temperature_at(step, 1000) for step in range(0, 1001, 50)]
    assert temperatures[0] == 2 and temperatures[-1] == temperatures[14] == 0.5
    assert all(a > b for a, b in zip(temperatures[:14], temperatures[1:15], strict=True))
    # The schedule of the paper's base model at its 400,000 updates.
    assert temperature_at(100_000, 400_000) == pytest.approx(2 * 0.999995**100_000, rel=0.02)


def test_steps_on_one_batch_lower_the_contrastive_loss() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(SHAPES["layer"]).train()
    given_ = inputs(TINY, False)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        output = model(**given_)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.contrastive_loss.detach()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
