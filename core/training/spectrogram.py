"""What voices and microphones differ by, put onto the log-mel that an extractor like `streamer-en`'s begins with.

Vocal tracts of other lengths shift the formants (Jaitly and Hinton 2013, "Vocal Tract Length Perturbation (VTLP)
improves speech recognition"); spans of bands and of time are hidden (SpecAugment: Park et al. 2019,
https://arxiv.org/abs/1904.08779), short ones, as what they hide must still be written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.configuration import Wav2Vec2Config

N_LAYERS = 2  # of the extractor's convolutions make the log-mel


@dataclass(frozen=True, slots=True)
class SpectrogramAugment:
    """All ranges are drawn from uniformly; chances are probabilities, of each span alone."""

    warp: tuple[float, float] = (0.86, 1.14)  # bands are taken from so many times their number
    warp_chance: float = 0.5
    n_band_spans: int = 2
    band_span: float = 16.0  # bands at most
    band_chance: float = 0.5
    n_time_spans: int = 4
    time_span: float = 24.0  # frames of 10 ms at most
    time_chance: float = 0.5

    def __call__(self, levels: Tensor) -> Tensor:
        """(batch, band, frame) changed; drawn from PyTorch's random numbers of that device."""
        draw = torch.rand(2, len(levels), device=levels.device)
        low, high = self.warp
        levels = warp(levels, torch.where(draw[0] < self.warp_chance, low + (high - low) * draw[1], 1.0))
        mean = levels.mean((1, 2), keepdim=True)
        bands = spans(levels, 1, self.n_band_spans, self.band_span, self.band_chance)
        times = spans(levels, 2, self.n_time_spans, self.time_span, self.time_chance)
        return torch.where(bands[:, :, None] | times[:, None], mean, levels)


def is_log_mel(config: Wav2Vec2Config) -> bool:
    """Whether the extractor begins with logarithms of powers in bands."""
    return config.conv_activation[:N_LAYERS] == ("square", "log")


def warp(levels: Tensor, factors: Tensor) -> Tensor:
    """(batch, band, frame): band i is what lay at i times the factor (batch,), or in the last band."""
    n = levels.shape[1]
    places = (torch.arange(n, device=levels.device) * factors[:, None]).clamp(max=n - 1)
    low = places.long().clamp(max=n - 2)
    at = low[:, :, None].expand_as(levels)
    return torch.lerp(levels.gather(1, at), levels.gather(1, at + 1), (places - low)[:, :, None])


def spans(levels: Tensor, axis: int, n_spans: int, longest: float, chance: float) -> Tensor:
    """Bool (batch, place): True in the spans along an axis."""
    n = levels.shape[axis]
    first, length, is_there = torch.rand(3, len(levels), n_spans, 1, device=levels.device)
    first, length = first * n, length * longest * (is_there < chance)
    places = torch.arange(n, device=levels.device)
    inside: Tensor = (places >= first) & (places < first + length)  # (batch, span, place)
    return inside.any(1)
