"""Packed models against the plain float32 one."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.acoustic import AcousticModel, choose_device, choose_dtype, fit
from core.checkpoint import load_model, save_model
from core.configuration import Wav2Vec2Config
from core.encoder import Attention, FeedForward
from core.extractor import ConvLayer
from core.int8 import (
    FEW,
    FEWEST,
    HIGHEST,
    MIDDLE,
    ROUND,
    STRETCH,
    ByRows,
    FewRows,
    Int8FeedForward,
    Int8Product,
    multiplied,
    rounded_each,
    rounded_together,
)
from core.layout import FirstConv, FrameConv
from core.precision import FirstConvLayer, is_fast, make_product, make_reader, overlap, pack, rounded_up
from core.rounding import GROUP, from_int4, recovered_int4, to_int4
from core.tokenizer import Wav2Vec2Tokenizer
from core.wav2vec2 import Wav2Vec2ForCTC

BASE = Wav2Vec2Config(
    vocab_size=11,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=96,
    conv_dim=(32, 32, 32),
    conv_stride=(5, 4, 2),
    conv_kernel=(10, 4, 3),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
SHAPES = {
    "base": BASE,
    "stable": replace(BASE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "spectrum": replace(
        BASE,
        feat_extract_norm="none",
        conv_bias=True,
        conv_padding=(0, 1, 1),
        conv_kernel=(10, 4, 3),
        conv_stride=(5, 4, 2),
        conv_activation=("square", "log", "gelu"),
    ),
    "adapters": replace(BASE, feat_extract_norm="layer", do_stable_layer_norm=True, adapter_attn_dim=16),
    "branch": replace(BASE, num_hidden_layers=3, do_stable_layer_norm=True, branch=(1, 2)),
    "odd": replace(BASE, hidden_act="relu", feat_extract_activation="silu", conv_bias=True, num_conv_pos_embeddings=15),
}
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.int8: 0.1}  # and the relative error that is allowed


def needs(dtype: torch.dtype) -> None:
    if not is_fast(dtype):
        pytest.skip(f"no instructions for {dtype}")


@pytest.mark.parametrize("n_rows", [1, FEWEST, FEWEST + 1])
@pytest.mark.parametrize("is_half", [True, False])
def test_a_few_rows_are_multiplied_otherwise(n_rows: int, is_half: bool) -> None:
    needs(torch.int8)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 2 * GROUP) / 8, torch.randn(96), torch.randn(1, n_rows, 2 * GROUP)
    if is_half:
        weight = from_int4(*to_int4(weight))
    reader = make_reader(weight, bias, torch.int8)
    assert isinstance(reader, ByRows) and isinstance(reader.few, FewRows) and reader.few.is_half == is_half
    found, expected = reader(x), F.linear(x, weight, bias)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).norm() < 0.01 * expected.norm()
    assert torch.equal(found, (reader.few if n_rows <= FEWEST else reader.many)(x))


def test_weights_that_no_kernel_reads_are_multiplied_as_ever() -> None:
    needs(torch.int8)
    weight = torch.randn(GROUP, GROUP - 2)
    assert isinstance(make_reader(weight, None, torch.int8), Int8Product)
    odd = from_int4(*to_int4(torch.randn(7, GROUP)))  # no multiple of 16, which half a byte each needs
    reader = make_reader(odd, None, torch.int8)
    assert isinstance(reader, ByRows) and isinstance(reader.few, FewRows) and not reader.few.is_half
    x = torch.randn(1, 3, GROUP)
    assert (reader(x) - F.linear(x, odd)).norm() < 0.02 * F.linear(x, odd).norm()


def test_integers_of_four_bits_are_found_again() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 3 * GROUP)
    weight[:5] *= torch.tensor([0.0, 1e-3, 1e3, -1.0, 0.125])[:, None]
    packed, scales = to_int4(weight)
    packed[5, : GROUP // 2] = 0x80  # zeros and the lowest integer
    rounded = from_int4(packed, scales)
    found = recovered_int4(rounded)
    assert found is not None
    integers, scales = found
    assert integers.min() >= 0 and integers.max() <= 15
    again = (integers.view(40, 3, GROUP) - 8) * scales[:, :, None]
    torch.testing.assert_close(again.flatten(1), rounded, rtol=1e-5, atol=1e-9)
    assert recovered_int4(weight) is None and recovered_int4(weight[:, 1:]) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(2, 17), (1, 201)])
def test_product(dtype: torch.dtype, gelu: bool, shape: tuple[int, int]) -> None:
    needs(dtype)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(*shape, 32)
    weight[3] *= 100  # scales are of each channel
    expected = F.linear(x, weight, bias)
    expected = F.gelu(expected) if gelu else expected
    found = make_product(weight, bias, dtype, gelu)(x).float()
    errors = (found - expected).norm(dim=(0, 1)) / expected.norm(dim=(0, 1))
    assert float(errors.max()) < DTYPES[dtype] / 2


def test_int8_of_a_frame_does_not_depend_on_others() -> None:
    needs(torch.int8)
    torch.manual_seed(0)
    product = Int8Product(torch.randn(48, 32), None)
    x = torch.randn(3, STRETCH + 17, 32) * torch.tensor([1.0, 50.0, 0.0])[:, None, None]
    found = product(x)
    for window in range(3):
        for frame in (0, STRETCH, STRETCH + 16):
            assert torch.equal(found[window, frame], product(x[window, frame : frame + 1])[0])
    assert not found[2].any()


def test_int8_feed_forward_of_a_window_does_not_depend_on_its_batch() -> None:
    """Before GELU the frames of one share a scale."""
    needs(torch.int8)
    torch.manual_seed(0)
    feed_forward = Int8FeedForward(FeedForward(BASE))
    x = torch.randn(3, 17, BASE.hidden_size) * torch.tensor([1.0, 50.0, 0.0])[:, None, None]
    for window in range(3):
        assert torch.equal(feed_forward(x)[window], feed_forward(x[window : window + 1])[0])


@pytest.mark.parametrize("n", [5, FEW + 1])
@pytest.mark.parametrize("after_gelu", [False, True])
def test_rounding_to_unsigned_integers(n: int, after_gelu: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(n, 40) * torch.logspace(-3, 3, n)[:, None]
    x = F.gelu(x) if after_gelu else x
    integers, scales, zero = rounded_each(x, after_gelu)
    assert integers.dtype == torch.uint8 and len(integers) >= n and len(integers) % (ROUND if n > FEW else n) == 0
    errors = ((integers[:n].float() - zero) * scales - x).abs()
    assert (errors <= 0.501 * scales).all()
    if not after_gelu:  # every row uses all of the integers
        assert ((integers[:n].int() - zero).abs().amax(1) == HIGHEST).all()
    together, scale = rounded_together(x)
    assert ((together[:n].float() - MIDDLE) * scale - x).abs().max() <= 0.501 * scale


@pytest.mark.parametrize(("shape", "n"), [((1, 192), 192), ((1, 193), 256), ((1, 256), 256), ((2, 300), 300)])
def test_long_windows_have_few_numbers_of_rows(shape: tuple[int, int], n: int) -> None:
    x = torch.randn(*shape, 5)
    rows = rounded_up(x, torch.bfloat16)
    assert rows.shape == (shape[0], n, 5) and rows.dtype == torch.bfloat16
    assert torch.equal(rows[:, : shape[1]], x.bfloat16()) and not rows[:, shape[1] :].any()


@pytest.mark.parametrize("shape", ["base", "branch"])
def test_rows_behind_a_window_change_nothing(shape: str) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(SHAPES[shape]).eval()
    for n in (3, 40, 64):
        waves = torch.randn(2, model.config.hop * n + model.config.receptive_field)
        model.wav2vec2.encoder.n_rows = None
        expected = model.log_probs_and_states(waves, 1)
        model.wav2vec2.encoder.n_rows = lambda n: n + -n % 64
        for found, plain in zip(model.log_probs_and_states(waves, 1), expected, strict=True):
            assert found.shape == plain.shape
            torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(("n", "rows"), [(5, 5), (16, 16), (17, 32), (192, 192), (193, 256)])
def test_numbers_of_rows_are_few(n: int, rows: int) -> None:
    assert multiplied(n) == rows


def test_overlapping_rows_are_those_of_a_convolution() -> None:
    x, weight = torch.randn(2, 11, 4), torch.randn(5, 4, 3)
    rows = overlap(x, 3, 2)
    expected = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    torch.testing.assert_close(F.linear(rows, weight.transpose(1, 2).flatten(1)), expected)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("level", [1e-3, 1.0])
def test_the_waveform_is_convolved_as_exactly_as_its_result_is_kept(norm: str, level: float) -> None:
    """The products of halves, against double precision that is rounded to bfloat16 at the end."""
    needs(torch.bfloat16)
    torch.manual_seed(0)
    layer = ConvLayer(replace(BASE, feat_extract_norm=norm, conv_bias=norm == "none"), 0)
    first, samples = FirstConvLayer(layer, torch.bfloat16), level * torch.randn(4000) + 0.03
    assert first.is_split
    with torch.no_grad():
        exact = layer.double().activate(layer.conv(samples.double()[None, None]))[0].T
        found = first(samples, *first.weights(samples, None))[0]
        plain = FirstConvLayer(layer.float(), torch.float32)
        single = plain(samples, *plain.weights(samples, None))[0].bfloat16()
    errors = [float((of.double() - exact).norm()) for of in (found, single)]
    assert found.dtype == torch.bfloat16 and errors[0] < 1.01 * errors[1]
    assert (found == exact.bfloat16()).double().mean() > 0.9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_packed_model(name: str, dtype: torch.dtype) -> None:
    """Windows longer and shorter than the stretches of the extractor, whose seams must not show."""
    needs(dtype)
    torch.manual_seed(0)
    config = SHAPES[name]
    plain = Wav2Vec2ForCTC(config).eval()
    if name == "spectrum":  # logarithms are of sums of what is not negative
        with torch.no_grad():
            plain.wav2vec2.feature_extractor.conv_layers[1].conv.weight.abs_()
    packed = pack(copy.deepcopy(plain), dtype)
    for n, n_samples in ((2, config.receptive_field), (2, 3000), (2, 40 * 150), (1, 40 * 250)):
        audio = 0.3 * torch.randn(n, n_samples) + 0.1
        with torch.no_grad():
            expected, found = plain(audio).logits, packed(audio).logits
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < DTYPES[dtype]
        torch.testing.assert_close(packed.log_probs(audio), found.log_softmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_and_attention_weights(dtype: torch.dtype) -> None:
    needs(dtype)
    torch.manual_seed(0)
    plain = Wav2Vec2ForCTC(SHAPES["stable"]).eval()
    packed = pack(copy.deepcopy(plain), dtype)
    audio, mask = torch.randn(2, 2000), torch.ones(2, 2000, dtype=torch.long)
    mask[1, 1200:] = 0
    with torch.no_grad():
        expected = plain(audio, mask, output_attentions=True)
        for wants in (False, True):
            found = packed(audio, mask, output_attentions=wants)
            assert float((found.logits - expected.logits).norm() / expected.logits.norm()) < DTYPES[dtype]
        n = plain.config.n_frames(1200)
        assert len(found.attentions) == 2 and not found.attentions[0][1, :, :, n:].any()


def test_choices(tiny_model_dir: Path) -> None:
    assert choose_dtype("int8", torch.device("cpu")) == torch.int8
    with pytest.raises(ValueError, match="Expected the CPU for int8. Found: cuda"):
        choose_dtype("int8", torch.device("cuda"))
    window = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    expected = AcousticModel.load(tiny_model_dir, "cpu", "float32").emit([window])[0]
    found = AcousticModel.load(tiny_model_dir, "cpu").emit([window])[0]
    is_narrow = choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("meta"), is_rounded=True) == torch.float32
    np.testing.assert_allclose(found, expected, atol=0.1 * float(np.abs(expected).max()) if is_narrow else 1e-3)


def test_other_devices_are_given_the_plain_model(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    """As an Apple GPU is: nothing is packed, fused, captured or kept there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = choose_device("auto")
    assert device == torch.device("mps") == choose_device("mps") and choose_dtype("auto", device) == torch.float32
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(tiny_model_dir)
    plain = Wav2Vec2ForCTC(replace(BASE, vocab_size=tokenizer.vocab_size))
    kinds = [type(module) for module in plain.modules()]
    model = AcousticModel(fit(plain, torch.device("meta"), "auto"), tokenizer)
    kept = [type(module) for module in model.model.modules()]
    assert set(kept) <= set(kinds) and Attention in kept and model.model.dtype == torch.float32
    assert model.n_slots == 0 and model.n_features == BASE.hidden_size
    assert not any(isinstance(layer, FirstConv | FrameConv) for layer in model.model.modules())


def test_a_processor_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    assert not is_fast(torch.bfloat16)
    with pytest.raises(ValueError, match=r"avx512_vnni or avx_vnni for torch.int8. Found: none"):
        pack(Wav2Vec2ForCTC(BASE), torch.int8)


def test_rounded_weights_are_multiplied_as_such(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Where the processor is good at that, and not at bfloat16: on all others nothing changes."""
    needs(torch.int8)
    has = torch.cpu.get_capabilities() | {"avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    shutil.copytree(tiny_model_dir, tmp_path / "rounded")
    save_model(load_model(Wav2Vec2ForCTC, tiny_model_dir), tmp_path / "rounded", dtype=torch.int8)
    models = [AcousticModel.load(of, "cpu") for of in (tiny_model_dir, tmp_path / "rounded")]
    assert [model.kind for model in models] == [torch.float32, torch.int8]
    assert [any(isinstance(m, Int8Product) for m in of.model.modules()) for of in models] == [False, True]
    product = next(m for m in models[1].model.modules() if isinstance(m, Int8Product))
    assert product.out == torch.float32  # and nothing is bfloat16 there
    has |= {"avx512_vnni": False, "avx_vnni": False}
    assert AcousticModel.load(tmp_path / "rounded", "cpu").kind == torch.float32
