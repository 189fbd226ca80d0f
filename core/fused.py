"""Norm and GELU of the extractor's convolutions in one kernel of Triton, which reads and writes each number once.

Between two convolutions PyTorch's own kernels pass over the (batch, channel, time) tensor four times: transposed,
normed, back, activated. Triton comes with PyTorch's CUDA builds for Linux. Where it is missing, or its kernels do not
say what PyTorch's say, these go on. Statistics and activation are float32 whatever the tensor.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from core.extractor import ConvLayer
from core.wav2vec2 import Wav2Vec2ForCTC

logger = logging.getLogger(__name__)

TILE = 8192  # numbers that one program holds
STRETCH = 4096  # of them where it goes over time
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # PyTorch rounds between norm and GELU


@triton.jit
def gelu(x):  # type: ignore[no-untyped-def]
    """The exact one, by the error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit  # type: ignore[untyped-decorator]
def norm_channels(  # type: ignore[no-untyped-def]
    x, y, weight, bias, C, T, stride_b, stride_c, stride_t, eps, CHANNELS: tl.constexpr, FRAMES: tl.constexpr
):
    """Each frame by its channels' mean and variance: one program a tile of whole frames."""
    c = tl.arange(0, CHANNELS)
    t = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    inside = (c[:, None] < C) & (t[None, :] < T)
    # In 64 bits: a batch of windows has more numbers than 32 count.
    places = (
        tl.program_id(1).to(tl.int64) * stride_b
        + c[:, None].to(tl.int64) * stride_c
        + t[None, :].to(tl.int64) * stride_t
    )
    rows = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(c[:, None] < C, rows - tl.sum(rows, 0)[None, :] / C, 0.0)
    variance = tl.sum(centred * centred, 0) / C
    factor = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    summand = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    normed = centred * (1.0 / tl.sqrt(variance + eps))[None, :] * factor[:, None] + summand[:, None]
    tl.store(y + places, gelu(normed).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def norm_time(x, y, weight, bias, C, T, stride_b, stride_c, stride_t, eps, FRAMES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each channel by its mean and variance over time: one program a channel of a window."""
    c = tl.program_id(0)
    start = tl.program_id(1).to(tl.int64) * stride_b + c.to(tl.int64) * stride_c
    t = tl.arange(0, FRAMES)
    sums = tl.zeros([FRAMES], tl.float32)
    for first in range(0, T, FRAMES):
        inside = first + t < T
        sums += tl.load(x + start + (first + t).to(tl.int64) * stride_t, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / T
    squares = tl.zeros([FRAMES], tl.float32)
    for first in range(0, T, FRAMES):
        inside = first + t < T
        rows = tl.load(x + start + (first + t).to(tl.int64) * stride_t, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, rows - mean, 0.0)
        squares += centred * centred
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / T + eps) * tl.load(weight + c).to(tl.float32)
    summand = tl.load(bias + c).to(tl.float32)
    for first in range(0, T, FRAMES):
        inside = first + t < T
        places = start + (first + t).to(tl.int64) * stride_t
        rows = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + places, gelu((rows - mean) * scale + summand).to(y.dtype.element_ty), mask=inside)


def norm_gelu(x: Tensor, norm: nn.Module) -> Tensor:
    """`gelu(norm(x))` of x (batch, channel, time), which keeps its type and its order in memory.

    Args:
        norm: a layer norm over the channels of a frame, or a group norm of one channel a group: over time.
    """
    assert isinstance(norm, nn.LayerNorm | nn.GroupNorm)
    B, C, T = x.shape
    y = torch.empty_like(x)  # with the strides of x, where these leave no hole
    if y.stride() != x.stride():
        x = x.contiguous()
        y = torch.empty_like(x)
    arguments = x, y, norm.weight, norm.bias, C, T, *x.stride(), norm.eps
    if isinstance(norm, nn.LayerNorm):
        channels = triton.next_power_of_2(C)
        frames = max(1, TILE // channels)
        norm_channels[(triton.cdiv(T, frames), B)](*arguments, CHANNELS=channels, FRAMES=frames, num_warps=8)
    else:
        norm_time[(C, B)](*arguments, FRAMES=min(STRETCH, triton.next_power_of_2(T)), num_warps=8)
    return y


def is_fit(layer: ConvLayer) -> bool:
    """Whether a kernel is there for what follows the layer's convolution."""
    norm = layer.layer_norm
    is_normed = (
        isinstance(norm, nn.LayerNorm) or isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    )
    return is_normed and layer.activation is F.gelu


@torch.inference_mode()
def is_true(layer: ConvLayer) -> bool:
    """Whether the layer's kernel says here what PyTorch's say, to rounding."""
    weight = layer.conv.weight
    shape, generator = (2, layer.conv.out_channels, 37), torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
    expected = layer.activate(x).float()
    assert layer.layer_norm is not None
    found = norm_gelu(x, layer.layer_norm).float()
    return bool(((found - expected).abs() <= TOLERANCES[weight.dtype] * (1 + expected.abs())).all())


def fuse(model: Wav2Vec2ForCTC) -> int:
    """Gives the model's convolutions the kernels that are true on its device; they are not for training.

    Returns:
        How many were given one.
    """
    layers = [layer for layer in model.wav2vec2.feature_extractor.conv_layers if isinstance(layer, ConvLayer)]
    layers = [layer for layer in layers if is_fit(layer)]
    try:
        with torch.cuda.device(model.device if model.device.type == "cuda" else -1):
            if not all(is_true(layer) for layer in layers):
                raise RuntimeError("its kernels differ from PyTorch's")
    except Exception as e:  # a compiler of another's may fail in any way
        logger.warning("norms and GELU are run by PyTorch, as Triton cannot: %s", e)
        return 0
    for layer in layers:
        layer.fused = norm_gelu
    return len(layers)
