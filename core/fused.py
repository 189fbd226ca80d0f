"""What follows the extractor's convolutions in one kernel of Triton, which reads and writes each number once.

Of the first convolution, whose few taps are little work, the kernel is all: its result in float32 never meets the
memory. Of the others it is norm and GELU. Triton comes with PyTorch's CUDA builds for Linux. Where it is missing, or
its kernels do not say what PyTorch's say, these go on. Everything is computed in float32 whatever the tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from core.layout import FirstConv, FrameConv, FrameExtractor
from core.wav2vec2 import Wav2Vec2ForCTC

logger = logging.getLogger(__name__)

TILE = 8192  # numbers that one program holds
MOST_TAPS = 16  # of the first convolution; of more a product is faster
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # PyTorch rounds between norm and GELU


@triton.jit
def gelu(x):  # type: ignore[no-untyped-def]
    """The exact one, by the error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def normed(rows, factor, summand, c, C, eps):  # type: ignore[no-untyped-def]
    """Each of (frame, channel) by the mean and variance of its `C` channels; the others are zeros."""
    centred = tl.where((c < C)[None, :], rows - (tl.sum(rows, 1) / C)[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    scales = tl.load(factor + c, mask=c < C, other=0.0).to(tl.float32)
    offsets = tl.load(summand + c, mask=c < C, other=0.0).to(tl.float32)
    return centred * (1.0 / tl.sqrt(variance + eps))[:, None] * scales[None, :] + offsets[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def norm_channels(x, y, factor, summand, T, C, eps, CHANNELS: tl.constexpr, FRAMES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Norm and GELU of (T, C): one program a tile of whole frames."""
    c = tl.arange(0, CHANNELS)
    t = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    inside = (t < T)[:, None] & (c < C)[None, :]
    places = t[:, None].to(tl.int64) * C + c[None, :]  # in 64 bits: a batch has more numbers than 32 count
    rows = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + places, gelu(normed(rows, factor, summand, c, C, eps)).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def convolve(  # type: ignore[no-untyped-def]
    x, y, weight, bias, factor, summand, S, T, C, of_weight, of_bias, eps,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, IS_NORMED: tl.constexpr, CHANNELS: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """Convolution of (batch, S) samples, norm if it is of each frame, and GELU: one program a tile of whole frames.

    Windows' weights (tap, channel) lie `of_weight` apart and biases `of_bias`: 0 where all have the same.
    """
    b = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)
    t = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    rows = tl.zeros([FRAMES, CHANNELS], tl.float32)
    rows += tl.load(bias + b * of_bias + c, mask=c < C, other=0.0)[None, :]
    for tap in tl.static_range(TAPS):
        samples = tl.load(x + b * S + t * STRIDE + tap, mask=t < T, other=0.0)
        rows += samples[:, None] * tl.load(weight + b * of_weight + tap * C + c, mask=c < C, other=0.0)[None, :]
    if IS_NORMED:
        rows = normed(rows, factor, summand, c, C, eps)
    places = (b * T + t[:, None]) * C + c[None, :]
    tl.store(y + places, gelu(rows).to(y.dtype.element_ty), mask=(t < T)[:, None] & (c < C)[None, :])


def tile(channels: int) -> dict[str, int]:
    """The size of one, in whole frames."""
    width = triton.next_power_of_2(channels)
    return {"CHANNELS": width, "FRAMES": max(1, TILE // width), "num_warps": 8}


def norm_gelu(x: Tensor, norm: nn.Module) -> Tensor:
    """`gelu(norm(x))` of x (…, channel), with a layer norm over the channels."""
    assert isinstance(norm, nn.LayerNorm)
    x = x.contiguous()
    y, C = torch.empty_like(x), x.shape[-1]
    T, size = x.numel() // C, tile(C)
    norm_channels[(triton.cdiv(T, size["FRAMES"]),)](x, y, norm.weight, norm.bias, T, C, norm.eps, **size)
    return y


def convolve_gelu(layer: FirstConv, samples: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the layer makes (batch, frame, channel) of (batch, sample).

    Args:
        weight: (batch or 1, tap, channel).
        bias: (batch or 1, channel).
    """
    norm, (B, S), C = layer.layer_norm, samples.shape, weight.shape[2]
    assert norm is None or isinstance(norm, nn.LayerNorm)
    T, size = (S - layer.kernel) // layer.stride + 1, tile(C)
    y = torch.empty((B, T, C), dtype=layer.dtype, device=samples.device)
    of_norm = (bias, bias) if norm is None else (norm.weight, norm.bias)
    apart = (layer.kernel * C, C) if len(weight) > 1 else (0, 0)
    convolve[(triton.cdiv(T, size["FRAMES"]), B)](
        samples, y, weight.contiguous(), bias.contiguous(), *of_norm, S, T, C, *apart, norm.eps if norm else 0.0,
        TAPS=layer.kernel, STRIDE=layer.stride, IS_NORMED=norm is not None, **size,
    )  # fmt: skip
    return y


def kernel_of(layer: FirstConv | FrameConv) -> Callable[..., Tensor]:
    return convolve_gelu if isinstance(layer, FirstConv) else norm_gelu


def is_fit(layer: nn.Module) -> bool:
    """Whether there is a kernel for it."""
    if isinstance(layer, FirstConv):
        return layer.activation is F.gelu and layer.kernel <= MOST_TAPS
    return isinstance(layer, FrameConv) and layer.activation is F.gelu and layer.layer_norm is not None


@torch.inference_mode()
def is_true(layer: FirstConv | FrameConv) -> bool:
    """Gives the layer its kernel; whether that says here what PyTorch's say, to rounding."""
    weight, generator = layer.weight, torch.Generator().manual_seed(0)
    shape = (2, 400) if isinstance(layer, FirstConv) else (2, 37, weight.shape[1])
    x = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
    layer.fused = None
    expected = layer(x).float()
    layer.fused = kernel_of(layer)
    found = layer(x)
    return bool(((found.float() - expected).abs() <= TOLERANCES[found.dtype] * (1 + expected.abs())).all())


def fuse(model: Wav2Vec2ForCTC) -> int:
    """Gives the laid out convolutions of a model the kernels that are true on its device.

    Returns:
        How many were given one.
    """
    extractor = model.wav2vec2.feature_extractor
    assert isinstance(extractor, FrameExtractor)
    layers = [layer for layer in extractor.modules() if isinstance(layer, FirstConv | FrameConv) and is_fit(layer)]
    try:
        with torch.cuda.device(model.device if model.device.type == "cuda" else -1):
            if not all(is_true(layer) for layer in layers):
                raise RuntimeError("its kernels differ from PyTorch's")
    except Exception as e:  # a compiler of another's may fail in any way
        for layer in layers:
            layer.fused = None
        logger.warning("norms and GELU are run by PyTorch, as Triton cannot: %s", e)
        return 0
    return len(layers)
