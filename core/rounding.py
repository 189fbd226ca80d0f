"""Weights on disk as integers of eight bits, with one scale for each row of a matrix.

A quarter of float32's size. The relative error of a weight is at most half of 1/127 of the largest of its row (Jacob
et al. 2018, section 2, symmetric and per output channel); in memory they are floats again.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST = 127
SUFFIX = "_scale"  # of the key that holds the scales of a matrix


def is_rounded(key: str, weight: Tensor) -> bool:
    """Whether a weight is among those that may be integers: the matrices of the blocks, which are nearly all."""
    return ".layers." in key and weight.dim() == 2


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) integers, and the (row, 1) float32 scales that make floats of them."""
    weight = weight.float()
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / HIGHEST
    return (weight / scales).round().to(torch.int8), scales


def from_int8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with float32 in place of integers that have scales, and without these."""
    floats = {}
    for key, weight in weights.items():
        if key.endswith(SUFFIX) and key.removesuffix(SUFFIX) in weights:
            continue
        scales = weights.get(key + SUFFIX)
        if weight.dtype == torch.int8 and scales is not None and scales.shape == (len(weight), 1):
            weight = weight.float() * scales
        floats[key] = weight
    return floats
