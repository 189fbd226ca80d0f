"""What a model has to multiply, and what this machine can at most: the measure of how near a forward pass comes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core.configuration import Wav2Vec2Config
from core.precision import is_fast, make_product
from core.wav2vec2 import Wav2Vec2ForCTC

PARTS = {
    "feature_extractor": "wav2vec2.feature_extractor",
    "feature_projection": "wav2vec2.feature_projection",
    "positional_convolution": "wav2vec2.encoder.pos_conv_embed",
    "lm_head": "lm_head",
}
Clock = Callable[[], float]
SIDE = 1024  # of the matrices that the ceiling is measured with: large enough for any kernel, small enough for caches


def clock_of(device: torch.device) -> Clock:
    """Seconds: of the processor, with all threads; on another device of the world, when all is done there."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def best_of(repeat: int, action: Callable[[], object], clock: Clock = time.process_time) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeat):
        began = clock()
        action()
        seconds.append(clock() - began)
    return min(seconds)


@contextmanager
def timed_parts(model: Wav2Vec2ForCTC) -> Iterator[dict[str, float]]:
    """Seconds spent in each part of the model while the block runs; `encoder_layers` is the sum of all."""
    modules = [(part, model.get_submodule(path)) for part, path in PARTS.items()]
    layers = model.get_submodule("wav2vec2.encoder.layers")
    modules += [("encoder_layers", layer) for layer in layers.children()]
    seconds: dict[str, float] = defaultdict(float)
    began: dict[int, float] = {}
    clock = clock_of(model.device)

    def before(module: object, _: object) -> None:
        began[id(module)] = clock()

    def ender(part: str) -> Callable[[object, object, object], None]:
        def after(module: object, _: object, __: object) -> None:
            seconds[part] += clock() - began[id(module)]

        return after

    hooks = [module.register_forward_pre_hook(before) for _, module in modules]
    hooks += [module.register_forward_hook(ender(part)) for part, module in modules]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


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


def ceilings(repeat: int, device: torch.device) -> dict[str, float]:
    """Operations a second of square products in each type that the device has, and bytes a second of a copy."""
    if device.type != "cpu":
        return device_ceilings(repeat, device)
    x, weight = torch.randn(1, SIDE, SIDE), torch.randn(SIDE, SIDE)
    found: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.int8)):
        if is_fast(dtype):
            product = make_product(weight, None, dtype)
            narrow: Tensor = x if dtype == torch.int8 else x.to(dtype)
            found[name] = 2 * SIDE**3 / best_of(repeat, lambda p=product, n=narrow: p(n))  # type: ignore[misc]
    source = torch.zeros(1 << 24)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / best_of(repeat, lambda: target.copy_(source))
    return found


def device_ceilings(repeat: int, device: torch.device) -> dict[str, float]:
    """The same elsewhere, and bytes a second from the host's pinned memory."""
    found: dict[str, float] = {}
    clock, side = clock_of(device), 8 * SIDE
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x = torch.randn(side, side, device=device, dtype=dtype)
        found[name] = 2 * side**3 / best_of(repeat + 1, lambda x=x: x @ x, clock)  # type: ignore[misc]
    host = torch.zeros(1 << 26).pin_memory()
    source = torch.zeros(1 << 28, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / best_of(repeat + 1, lambda: target.copy_(source), clock)
    found["from host"] = host.nbytes / best_of(repeat + 1, lambda: target[: len(host)].copy_(host), clock)
    return found
