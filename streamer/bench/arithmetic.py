"""What a model has to multiply, and what this machine can at most: the measure of how near a forward pass comes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from core.configuration import Wav2Vec2Config
from core.precision import Product, is_fast

SIDE = 1024  # of the matrices that the ceiling is measured with: large enough for any kernel, small enough for caches


def best_of(repeat: int, action: Callable[[], object]) -> float:
    """Processor seconds of the fastest run."""
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        action()
        seconds.append(time.process_time() - began)
    return min(seconds)


def flops(config: Wav2Vec2Config, n_samples: int) -> dict[str, float]:
    """Floating-point operations (a multiplication and an addition are two) of one window, by part."""
    T, D = n_samples, config.hidden_size
    n_in, extractor = 1, 0
    for n_out, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        T = (T - kernel) // stride + 1
        extractor += 2 * T * kernel * n_in * n_out
        n_in = n_out
    block = 2 * T * (4 * D * D + 2 * D * config.intermediate_size) + 4 * T * T * D
    taps = config.num_conv_pos_embeddings * D // config.num_conv_pos_embedding_groups
    return {
        "feature_extractor": float(extractor),
        "feature_projection": 2.0 * T * n_in * D,
        "positional_convolution": 2.0 * T * D * taps,
        "encoder_layers": float(config.num_hidden_layers * block),
        "lm_head": 2.0 * T * D * config.vocab_size,
    }


def ceilings(repeat: int) -> dict[str, float]:
    """Operations a second of square products in each type that the processor has, and bytes a second of a copy."""
    x, weight = torch.randn(1, SIDE, SIDE), torch.randn(SIDE, SIDE)
    found: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.int8)):
        if is_fast(dtype):
            product = Product(weight, None, dtype)
            narrow: Tensor = x if dtype == torch.int8 else x.to(dtype)
            found[name] = 2 * SIDE**3 / best_of(repeat, lambda p=product, n=narrow: p(n))  # type: ignore[misc]
    source = torch.zeros(1 << 24)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / best_of(repeat, lambda: target.copy_(source))
    return found
