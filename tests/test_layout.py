"""A model laid out for a GPU says what it says as it was, here in float32 on the CPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations

from core.checkpoint import load_model, resolve
from core.configuration import Wav2Vec2Config
from core.encoder import PositionalConvEmbedding
from core.extractor import FeatureExtractor
from core.layout import FirstConv, FrameExtractor, PositionalProduct, lay_out
from core.wav2vec2 import Wav2Vec2ForCTC

SMALL = Wav2Vec2Config(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(24, *(32,) * 6)
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["layer", "group", "none"])
def test_the_extractor(norm: str, bias: bool) -> None:
    torch.manual_seed(0)
    config = replace(SMALL, feat_extract_norm=norm, conv_bias=bias)
    if norm == "none":
        config = replace(config, conv_padding=(0, 0, 0, 0, 0, 0, 1), conv_kernel=(10, 3, 3, 3, 3, 2, 4))
    plain = FeatureExtractor(config).requires_grad_(False)
    for layer in plain.modules():
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    laid_out = FrameExtractor(plain, torch.float32)
    norms = noise(3, 2, 24) if norm == "group" else None
    for n in (400, 719, 8000):
        samples = noise(3, n) * torch.tensor([[0.01], [0.1], [1.0]]) + 0.02
        for given in (None, norms):
            found, expected = laid_out(samples, given), plain(samples, given)
            assert found.transpose(1, 2).is_contiguous()
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [1, 5, 16, 31, 128])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_positional_convolution(kernel: int, groups: int) -> None:
    torch.manual_seed(kernel)
    config = replace(SMALL, num_conv_pos_embeddings=kernel, num_conv_pos_embedding_groups=groups)
    plain = PositionalConvEmbedding(config)
    nn.init.normal_(plain.conv.bias)
    remove_parametrizations(plain.conv, "weight")
    laid_out = PositionalProduct(plain)
    for n in (1, 3, 15, 16, 17, 64, 150):
        hidden = noise(2, n, 32)
        torch.testing.assert_close(laid_out(hidden), plain(hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["streamer-en", "tiny"])
def test_models(name: str, tiny_model_dir: Path) -> None:
    plain = load_model(Wav2Vec2ForCTC, tiny_model_dir if name == "tiny" else resolve(name)).eval()
    laid_out = lay_out(deepcopy(plain), torch.float32)
    samples = noise(2, 16000) / 10
    torch.testing.assert_close(laid_out.log_probs(samples), plain.log_probs(samples), atol=1e-3, rtol=0)


def test_samples_are_not_rounded() -> None:
    """In bfloat16 a quiet sound beside a constant would be lost; the first convolution takes the constant out."""
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(replace(SMALL, feat_extract_norm="group")).eval()
    plain = deepcopy(model.wav2vec2.feature_extractor)
    extractor = lay_out(model, torch.bfloat16).wav2vec2.feature_extractor
    assert isinstance(extractor, FrameExtractor) and isinstance(extractor.first, FirstConv)
    assert model.dtype == torch.bfloat16 and extractor.first.weight.dtype == torch.float32
    samples = noise(2, 8000) / 1000 + 0.5
    expected = plain(samples)
    error = (extractor(samples).float() - expected).abs().mean() / expected.abs().mean()
    assert error < 0.02
    assert model.log_probs(samples).dtype == torch.float32
