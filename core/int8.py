"""Products of integers of eight bits, for processors that multiply four of them in the time of one float.

Weights are symmetric with a scale for each output channel, activations with one for each frame, which is found at run
time (Jacob et al. 2018, section 2; a scale a token as in Yao et al. 2022, https://arxiv.org/abs/2206.01861): a few
frames are a hundred times as loud as others in the blocks of speech models, and would leave those two bits. What a
frame becomes so hangs on nothing else in its window or batch. The kernel is oneDNN's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.encoder import FeedForward
from core.rounding import GROUP, recovered_int4

TILE = 16  # rows: more are multiplied in multiples of so many, as tiles in hardware have them
FEW, ROUND = 192, 64  # rows: more are multiplied in multiples of `ROUND`
WHOLE = 16  # PyTorch packs weights of four bits for a multiple of so many numbers
FEWEST = 6  # rows: so many wait for the weights rather than for products
STRETCH = 128  # rows that are rounded at once, so that they stay in the cache meanwhile
HIGHEST, MIDDLE = 127, 128
SHIFT = 1.5 * 2**23  # of numbers near this the last bit of a float32 stands for one: adding it rounds
LEAST_GELU = 0.17  # below zero GELU goes down to about so much, and no further
GELU_ZERO = 24  # the integer that stands for zero of what GELU made


def multiplied(n: int) -> int:
    """Rows that are multiplied where there are `n`.

    oneDNN writes a kernel for each new number of rows, which takes several times as long as a product by it, and keeps
    some hundred. A segment's final pass may have any.
    """
    return n if n <= TILE else n + -n % (TILE if n <= FEW else ROUND)


def room_for(x: Tensor) -> Tensor:
    """For the integers of (row, n), and of rows behind that mean nothing."""
    return x.new_empty((multiplied(len(x)), x.shape[1]), dtype=torch.uint8)


def put_rounded(x: Tensor, factor: Tensor | float, zero: int, integers: Tensor) -> None:
    """Writes (row, n) numbers times a factor, rounded; `zero` is the integer that stands for zero."""
    shift = x.new_full((1, x.shape[1]), SHIFT + zero)  # a row of it is added faster than one number
    if isinstance(factor, Tensor):
        shifted = torch.addcmul(shift, x, factor)
    else:
        shifted = torch.add(shift, x, alpha=factor)
    integers.copy_(shifted.view(torch.int32))  # of which the lowest byte is kept


def rounded_together(x: Tensor) -> tuple[Tensor, float]:
    """Integers of (row, n), 128 for zero, and their scale."""
    low, high = torch.aminmax(x)
    scale = max(-low.item(), high.item(), 1e-12) / HIGHEST
    integers = room_for(x)
    put_rounded(x, 1 / scale, MIDDLE, integers[: len(x)])
    return integers, scale


def rounded_each(x: Tensor, after_gelu: bool) -> tuple[Tensor, Tensor, int]:
    """Integers of (row, n), their scales (row, 1), and the integer for zero.

    Args:
        after_gelu: no number is below `-LEAST_GELU`, so that more integers are left for those above zero.
    """
    integers, scales, zero = room_for(x), x.new_empty(len(x), 1), GELU_ZERO if after_gelu else MIDDLE
    for first in range(0, len(x), STRETCH):
        part, scale = x[first : first + STRETCH], scales[first : first + STRETCH]
        if after_gelu:
            torch.amax(part, -1, keepdim=True, out=scale).div_(255 - zero).clamp_(min=LEAST_GELU / zero)
        else:
            torch.amax(part.abs(), -1, keepdim=True, out=scale).div_(HIGHEST).clamp_(min=1e-12)
        put_rounded(part, scale.reciprocal(), zero, integers[first : first + len(part)])
    return integers, scales, zero


class Int8Product(nn.Module):
    """`activation(x @ weight.T + bias)` with a packed weight (n_out, n_in); the activation is GELU or none.

    GELU is part of the kernel, which knows one scale: rows that are given together share it then.

    Args:
        out: type of the result.
        after_gelu: as in `rounded_each`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        gelu: bool = False,
        out: torch.dtype = torch.float32,
        after_gelu: bool = False,
    ) -> None:
        super().__init__()
        weight = weight.detach().float()
        self.out, self.is_gelu, self.after_gelu = out, gelu, after_gelu
        self.bias = None if bias is None else bias.detach().float()
        self.scales = weight.abs().amax(1).clamp(min=1e-12) / HIGHEST
        integers = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """(…, n_out) of (…, n_in)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        y = self.multiply_together(rows) if self.is_gelu else self.multiply_each(rows)
        return y[: len(rows)].view(*x.shape[:-1], -1).to(self.out)

    def multiply_together(self, rows: Tensor) -> Tensor:
        integers, scale = rounded_together(rows)
        return self.multiply(integers, scale, MIDDLE, self.bias, "gelu", "none")

    def multiply_each(self, rows: Tensor) -> Tensor:
        integers, scales, zero = rounded_each(rows, self.after_gelu)
        y = self.multiply(integers, 1.0, zero)[: len(rows)]
        return y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales, out=y)

    def multiply(
        self, integers: Tensor, scale: float, zero: int, bias: Tensor | None = None, post: str = "none", how: str = ""
    ) -> Tensor:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            integers, scale, zero, self.packed, self.scales, self.zeros, bias, 1.0, 0, torch.float32, post, [], how
        )
        return y


class Int8FeedForward(nn.Module):
    """Both products, the first with GELU where that is the activation."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        first, second, self.activation = layer.intermediate_dense, layer.output_dense, layer.activation
        self.is_fused = self.activation is F.gelu
        self.intermediate_dense = Int8Product(first.weight, first.bias, self.is_fused)
        self.output_dense = Int8Product(second.weight, second.bias, after_gelu=self.is_fused)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frame, hidden) to the same, each window by itself."""
        if not self.is_fused:
            x = self.activation(self.intermediate_dense(x))
        elif len(x) == 1:
            x = self.intermediate_dense(x)
        else:
            x = torch.stack([self.intermediate_dense(window) for window in x])
        y: Tensor = self.output_dense(x)
        return y


class FewRows(nn.Module):
    """`x @ weight.T + bias` for a few rows, which wait for the weights: those are a byte each, or half of one.

    Half of one where the weight is made of integers of four bits, a scale for each `GROUP` of a row, as on disk
    (`core.rounding`). Products are of floats, which are bfloat16 before and after, as PyTorch's kernels have it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, out: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight, self.out = weight.detach().float(), out
        self.bias = None if bias is None else bias.detach().float()
        found = recovered_int4(weight) if len(weight) % WHOLE == 0 else None
        self.is_half = found is not None
        if found is not None:
            integers, scales = found
            self.integers = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
            self.scales = torch.stack([scales, torch.zeros_like(scales)], 2).transpose(0, 1).contiguous().bfloat16()
        else:
            # Scales that bfloat16 holds: the next larger ones.
            self.scales = (weight.abs().amax(1).clamp(min=1e-12) / HIGHEST * (1 + 2**-8)).bfloat16()
            self.integers = (weight / self.scales.float()[:, None]).round().to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """(…, n_out) of (…, n_in)."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        if self.is_half:
            y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.integers, GROUP, self.scales)
        else:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.integers, self.scales)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1).to(self.out)


class FewForward(nn.Module):
    """Both products of a `FeedForward`, for a few rows."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        first, second, self.activation = layer.intermediate_dense, layer.output_dense, layer.activation
        self.intermediate_dense = FewRows(first.weight, first.bias, torch.bfloat16)  # as the second is given it
        self.output_dense = FewRows(second.weight, second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.output_dense(self.activation(self.intermediate_dense(x))))


class ByRows(nn.Module):
    """Two ways to the same: one for many rows, one for at most `FEWEST`."""

    def __init__(self, many: nn.Module, few: nn.Module) -> None:
        super().__init__()
        self.many, self.few = many, few

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor((self.few if x.shape[:-1].numel() <= FEWEST else self.many)(x))
