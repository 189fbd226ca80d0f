"""Weights on disk as integers of eight or four bits, with scales; in memory they are floats again.

Six bits: a byte each, a quarter of float32's size, and less in archives, which squeeze what is not used of it. A row of
a matrix has one scale, so that the error of a weight is at most half of 1/31 of the largest of its row (Jacob et al.
2018, section 2, symmetric and per output channel); streamer-en's letters are as good as with eight bits. Four bits: one
scale for each `GROUP` weights of a row, the one of a few that leaves the least error, and two weights a byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST = 31
SUFFIX = "_scale"  # of the key that holds the scales of a matrix
GROUP = 64  # weights of four bits that share a scale
HIGHEST_4 = 7
EXACT = 1e-3  # so near to an integer is one
SHARES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)  # of a group's largest weight, that the highest integer may stand for


def is_rounded(key: str, weight: Tensor) -> bool:
    """Whether a weight is among those that may be integers: the matrices of the blocks, which are nearly all."""
    return ".layers." in key and weight.dim() == 2


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) integers up to `HIGHEST`, and the (row, 1) float32 scales that make floats of them."""
    weight = weight.float()
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / HIGHEST
    return (weight / scales).round().to(torch.int8), scales


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column / 2) bytes of two integers each, and their (row, column / GROUP) float16 scales.

    Raises:
        ValueError: the columns are no multiple of `GROUP`.
    """
    n_rows, n_columns = weight.shape
    if n_columns % GROUP:
        raise ValueError(f"Expected a multiple of {GROUP} columns for four bits. Found: {n_columns}")
    groups = weight.float().view(n_rows, -1, GROUP)
    scales = choose_scales(groups)
    return pack_int4(round_groups(groups, scales)), scales


def choose_scales(groups: Tensor, importance: Tensor | None = None) -> Tensor:
    """(row, group) float16, those that leave the least squares of errors, of columns (column,) by their importance."""
    largest = groups.abs().amax(2).clamp(min=1e-6)
    scales = torch.stack([(share * largest / HIGHEST_4).half() for share in SHARES])
    squares = torch.stack([(from_groups(round_groups(groups, of), of) - groups).square() for of in scales])
    errors = squares.sum(3) if importance is None else squares @ importance
    return scales.gather(0, errors.argmin(0, keepdim=True))[0]


def pack_int4(integers: Tensor) -> Tensor:
    """(row, column / 2) bytes of (row, group, column) integers."""
    pairs = (integers + HIGHEST_4 + 1).to(torch.uint8).view(len(integers), -1, 2)
    return pairs[:, :, 0] | pairs[:, :, 1] << 4


def round_groups(groups: Tensor, scales: Tensor) -> Tensor:
    """Integers (row, group, column), as floats."""
    return (groups / scales.float()[:, :, None]).round().clamp(-HIGHEST_4 - 1, HIGHEST_4)


def from_groups(integers: Tensor, scales: Tensor) -> Tensor:
    return integers * scales.float()[:, :, None]


def from_int4(packed: Tensor, scales: Tensor) -> Tensor:
    """(row, column) floats."""
    integers = torch.stack([packed & 15, packed >> 4], 2).float() - HIGHEST_4 - 1
    return from_groups(integers.view(len(packed), -1, GROUP), scales).flatten(1)


def recovered_int4(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """(row, column) int32 from 0 to 15, 8 for zero, and (row, group) scales, of what `from_int4` made alone."""
    n_rows, n_columns = weight.shape
    if n_columns % GROUP:
        return None
    groups = weight.reshape(-1, GROUP)
    largest = groups.abs().amax(1, keepdim=True).clamp(min=1e-12)
    integers, scales = torch.empty_like(groups, dtype=torch.int32), torch.empty_like(largest)
    left = torch.arange(len(groups))
    for highest in (7, 8, 6, 5, 4):  # that the largest may stand for
        exact = groups[left] * (highest / largest[left])
        rounded = exact.round()
        is_found = ((exact - rounded).abs().amax(1) < EXACT) & (rounded.amax(1) <= HIGHEST_4)
        found, left = left[is_found], left[~is_found]
        integers[found] = rounded[is_found].to(torch.int32)
        scales[found] = largest[found] / highest
    if len(left):
        return None
    return integers.view(n_rows, n_columns) + HIGHEST_4 + 1, scales.view(n_rows, -1)


def from_integers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with float32 in place of integers that have scales, and without these."""
    floats = {}
    for key, weight in weights.items():
        if key.endswith(SUFFIX) and key.removesuffix(SUFFIX) in weights:
            continue
        scales = weights.get(key + SUFFIX)
        if weight.dtype == torch.int8 and scales is not None and scales.shape == (len(weight), 1):
            weight = weight.float() * scales
        elif weight.dtype == torch.uint8 and scales is not None and weight.dim() == 2:
            weight = from_int4(weight, scales)
        floats[key] = weight
    return floats
