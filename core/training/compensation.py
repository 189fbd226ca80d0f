"""Rounding a rescorer to four bits so that errors make up for each other on speech.

A matrix is rounded column by column, and the columns that are still to come take over what the error of one does to the
products, as far as their inputs go together (GPTQ: Frantar et al. 2023, https://arxiv.org/abs/2210.17323). What that
leaves of the error is a tenth. Blocks are rounded one after another, so that each also mends what those before it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.rescorer import Rescorer, is_rounded
from core.rounding import GROUP, SUFFIX, choose_scales, from_int4, pack_int4, round_groups

DAMPING = 0.01  # of the mean of the squares of all inputs: that none is trusted wholly
BATCH = 12  # texts read at once

Heard = tuple[Tensor, str]  # (n_frames, hidden) states of the encoder and what was said


def round_columns(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """As `core.rounding.to_int4`, for inputs (column,) with these second moments (column, column)."""
    rest, moments = weight.detach().double(), moments.double()
    moments = moments + DAMPING * moments.diagonal().mean().clamp(min=1e-12) * torch.eye(len(moments))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)  # row i: what an error of column i costs those behind it
    integers, scales = [], []
    for first in range(0, weight.shape[1], GROUP):
        inside = slice(first, first + GROUP)
        group, square = rest[:, inside].clone(), factor[inside, inside]
        scale = choose_scales(group[:, None].float(), square.diagonal().float() ** -2)
        rounded, errors = torch.zeros_like(group), torch.zeros_like(group)
        for i in range(GROUP):
            column = group[:, i].clone()
            rounded[:, i] = round_groups(column[:, None, None], scale)[:, 0, 0]
            errors[:, i] = (column - rounded[:, i] * scale[:, 0].double()) / square[i, i]
            group[:, i:] -= errors[:, i : i + 1] * square[i, i:]
        rest = torch.cat([rest[:, : inside.stop], rest[:, inside.stop :] - errors @ factor[inside, inside.stop :]], 1)
        integers.append(rounded.float())
        scales.append(scale)
    return pack_int4(torch.stack(integers, 1)), torch.cat(scales, 1)


@torch.no_grad()
def compensated(rescorer: Rescorer, heard: Sequence[Heard]) -> dict[str, Tensor]:
    """Integers and scales of the matrices of the rescorer's blocks, as `Rescorer.save` takes them.

    Args:
        rescorer: in float32 on the CPU; its blocks are rounded, too.
    """
    rounded: dict[str, Tensor] = {}
    for number, block in enumerate(rescorer.layers):
        linears = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}
        moments = second_moments(rescorer, heard, linears)
        for name, linear in linears.items():
            key = f"layers.{number}.{name}.weight"
            if is_rounded(key, linear.weight):
                rounded[key], rounded[key + SUFFIX] = found = round_columns(linear.weight, moments[name])
                linear.weight.copy_(from_int4(*found))
    return rounded


def second_moments(rescorer: Rescorer, heard: Sequence[Heard], linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """(n_in, n_in) sums of the products of what each of some layers is given while the texts are read."""
    sums = {name: torch.zeros(linear.in_features, linear.in_features).double() for name, linear in linears.items()}

    def adder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            rows = inputs[0].flatten(0, -2)
            sums[name] += (rows.T @ rows).double()

        return add

    hooks = [linear.register_forward_hook(adder(name)) for name, linear in linears.items()]
    try:
        for first in range(0, len(heard), BATCH):
            part = heard[first : first + BATCH]
            read, _ = rescorer.batch([rescorer.pieces.encode(text) for _, text in part])
            n_frames = torch.tensor([len(states) for states, _ in part])
            longest = int(n_frames.max())
            states = torch.stack([F.pad(states, (0, 0, 0, longest - len(states))) for states, _ in part])
            mask = (torch.arange(longest)[None] < n_frames[:, None])[:, None, None]
            rescorer(states, read, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return sums
