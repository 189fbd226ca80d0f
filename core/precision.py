"""A model for inference on an x86 processor: products in float32, bfloat16 or int8 with weights packed once.

Packed are the linear layers, the extractor's convolutions (products of frames) and the positional convolution, with
GELU fused where it follows. Norms, residual sums, the first convolution and the softmax over the vocabulary are
float32 always. int8 is for the linear layers of blocks (`core.int8`); the rest is what the processor multiplies best.
The kernels are oneDNN's, by the operators that PyTorch's own compiler calls. What is packed cannot be trained or saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.configuration import Wav2Vec2Config
from core.encoder import Attention, FeedForward, PositionalConvEmbedding
from core.extractor import ConvLayer
from core.int8 import ByRows, FewForward, FewRows, Int8FeedForward, Int8Product, multiplied
from core.rounding import GROUP
from core.statistics import channel_norm
from core.wav2vec2 import Wav2Vec2ForCTC

STRETCH = 100  # frames that the extractor makes at once
MAX_SCORES = 1 << 24  # attention scores held at once
NEEDED = {
    torch.float32: ("avx512_f", "avx2"),
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.int8: ("avx512_vnni", "avx_vnni"),
}
Post = tuple[str, list[float | None], str]  # what follows a product, in oneDNN's words
PLAIN: Post = ("none", [], "")
GELU: Post = ("gelu", [], "none")


def is_fast(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products of that type, and PyTorch the kernels."""
    return any(map(has, NEEDED[dtype]))


def has(instructions: str) -> bool:
    """Whether this processor has them, and PyTorch kernels for it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):  # type: ignore[no-untyped-call]
        return False
    return bool(torch.cpu.get_capabilities().get(instructions, False))


def narrow(dtype: torch.dtype) -> torch.dtype:
    """The type of what has no int8 kernel."""
    if dtype != torch.int8:
        return dtype
    return torch.bfloat16 if is_fast(torch.bfloat16) else torch.float32


def rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, row, n) of one long window's (1, frame, n), with zeros behind (`multiplied`); others as they are."""
    B, T, n = x.shape
    if B > 1 or multiplied(T) == T:
        return x.to(dtype)
    rows = x.new_empty((1, multiplied(T), n), dtype=dtype)
    rows[:, :T], rows[:, T:] = x, 0
    return rows


class Product(nn.Module):
    """`activation(x @ weight.T + bias)` with a packed weight (n_out, n_in); the activation is GELU or none.

    Args:
        dtype: float32 or bfloat16, of what is multiplied.
        out: type of the result; as multiplied, where it is None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        gelu: bool = False,
        out: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dtype, self.post, self.out = dtype, GELU if gelu else PLAIN, out or dtype
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frame, n_out) of (batch, frame, n_in)."""
        rows = rounded_up(x, self.dtype)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, *self.post)
        return product[:, : x.shape[1]].to(self.out)


def make_product(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool = False, out: torch.dtype | None = None
) -> nn.Module:
    """A packed linear layer; `out` as in `Product`, and float32 of int8."""
    if dtype == torch.int8:
        return Int8Product(weight, bias, gelu, out or torch.float32)
    return Product(weight, bias, dtype, gelu, out)


def make_reader(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, out: torch.dtype | None = None) -> nn.Module:
    """As `make_product`, for what reads one row after another."""
    product = make_product(weight, bias, dtype, out=out)
    return ByRows(product, FewRows(weight, bias, out or torch.float32)) if are_read(weight) else product


def are_read(*weights: Tensor) -> bool:
    """Whether there is a way for few rows: PyTorch's needs columns in groups, which it does not check."""
    return is_fast(torch.int8) and not any(weight.shape[1] % GROUP for weight in weights)


def overlap(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """(batch, row, kernel * channel) view of (batch, frame, channel): the frames under each step of a convolution."""
    x = F.pad(x, (0, 0, padding, padding)) if padding else x.contiguous()
    B, T, C = x.shape
    return x.as_strided((B, (T - kernel) // stride + 1, kernel * C), (T * C, stride * C, 1))


class PackedConvLayer(nn.Module):
    """A convolution of the extractor after the first: a product of overlapping frames."""

    def __init__(self, layer: ConvLayer, dtype: torch.dtype) -> None:
        super().__init__()
        (self.kernel,), (self.stride,) = layer.conv.kernel_size, layer.conv.stride
        self.padding = int(layer.conv.padding[0])
        self.layer_norm, self.activation = layer.layer_norm, layer.activation
        self.is_fused = self.layer_norm is None and self.activation is F.gelu
        weight = layer.conv.weight.transpose(1, 2).flatten(1)  # (n_out, kernel * n_in)
        self.product = Product(weight, layer.conv.bias, dtype, self.is_fused)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frame, channel) to the same."""
        x = self.product(overlap(x, self.kernel, self.stride, self.padding))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x if self.is_fused else self.activation(x)


class FirstConvLayer(nn.Module):
    """The convolution of the waveform as a float32 product, into which a group norm over time is folded.

    Mean and variance of a channel over a window follow from those of the samples under its taps, which are few, so
    that such a norm becomes part of the weights before the long product is made. Where GELU follows at once, samples
    and weights are sums of two bfloat16 numbers each, which are as good, and what follows is given bfloat16.
    """

    def __init__(self, layer: ConvLayer, dtype: torch.dtype) -> None:
        super().__init__()
        (self.kernel,), (self.stride,) = layer.conv.kernel_size, layer.conv.stride
        self.weight, bias = layer.conv.weight.detach()[:, 0], layer.conv.bias  # (channel, tap)
        self.bias = torch.zeros(len(self.weight)) if bias is None else bias.detach()
        self.layer_norm, self.activation = layer.layer_norm, layer.activation
        self.per_frame = layer.per_frame
        is_normed = self.layer_norm is not None and self.per_frame
        self.is_split = dtype == torch.bfloat16 and not is_normed and self.activation is F.gelu

    def taps(self, samples: Tensor) -> Tensor:
        """(frame, tap) of (sample,)."""
        return samples.unfold(0, self.kernel, self.stride)

    def weights(self, samples: Tensor, norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the convolution for the window of these samples, normed where the norm is over time."""
        weight, bias = self.weight, self.bias
        if isinstance(self.layer_norm, nn.GroupNorm):
            if norm is None:
                taps = self.taps(samples).double()
                mean = taps.mean(0)
                norm = torch.stack(self.channel_norm(mean, (taps - mean).T @ (taps - mean) / len(taps)))
            gain, offset = norm
            weight, bias = (weight * gain[:, None]).float(), (bias * gain + offset).float()
        if not self.is_split:
            return weight, bias
        (high, low), offsets = halves(weight), torch.stack(halves(bias), 1)
        return torch.ops.mkldnn._reorder_linear_weight(torch.cat([high, high, low, offsets], 1), None), None

    def channel_norm(self, mean: Tensor, covariance: Tensor, power: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """As `FeatureExtractor.channel_norm`."""
        assert isinstance(self.layer_norm, nn.GroupNorm)
        return channel_norm(self.layer_norm, self.weight, self.bias, mean, covariance, power)

    def forward(self, samples: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(1, frame, channel) of (sample,)."""
        if self.is_split:
            high, low = (self.taps(part) for part in halves(samples))
            x = torch.cat([high, low, high, high.new_ones(len(high), 2)], 1)[None]
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, *GELU)
            return product
        x = F.linear(self.taps(samples), weight, bias)
        return self.activation(x if self.layer_norm is None or not self.per_frame else self.layer_norm(x))[None]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is x but for a part in 2¹⁷."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


class PackedExtractor(nn.Module):
    """The convolutions, a stretch of the window at a time, so that what one hands to the next stays in the cache."""

    def __init__(self, layers: Sequence[ConvLayer], config: Wav2Vec2Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.first = FirstConvLayer(layers[0], dtype)
        self.rest = nn.Sequential(*(PackedConvLayer(layer, dtype) for layer in layers[1:]))

    def extract(self, samples: Tensor, norm: Tensor | None) -> Tensor:
        """(frame, channel) of the (sample,) of one window; `norm` (2, channel) as in `FeatureExtractor`."""
        hop, field, halo = self.config.hop, self.config.receptive_field, self.config.halo
        weights = self.first.weights(samples, norm)
        n = self.config.n_frames(len(samples))
        rows = []
        for start in range(0, n, STRETCH):
            first, end = max(0, start - halo), start + STRETCH + halo
            part = samples[hop * first : hop * (end - 1) + field if end < n else None]
            rows.append(self.rest(self.first(part, *weights))[0][start - first :][:STRETCH])
        return torch.cat(rows)

    def forward(self, input_values: Tensor, norms: Tensor | None = None) -> Tensor:
        """Waveforms (batch, sample) to float32 features (batch, channel, frame), frame by frame in memory."""
        of = [None] * len(input_values) if norms is None else norms
        rows = [self.extract(samples, norm) for samples, norm in zip(input_values, of, strict=True)]
        return torch.stack(rows).float().transpose(1, 2)

    def channel_norm(self, mean: Tensor, covariance: Tensor, power: float | Tensor) -> tuple[Tensor, Tensor]:
        """As `FeatureExtractor.channel_norm`."""
        return self.first.channel_norm(mean, covariance, power)


class PackedPositions(nn.Module):
    """The positional convolution, its weight norm folded."""

    def __init__(self, embedding: PositionalConvEmbedding, dtype: torch.dtype) -> None:
        super().__init__()
        conv, self.n_surplus, self.activation = embedding.conv, embedding.n_surplus, embedding.activation
        self.dtype, self.is_fused = dtype, self.activation is F.gelu
        self.post = GELU if self.is_fused else PLAIN
        self.bias = conv.bias.detach().to(dtype)
        self.places = ([0, conv.padding[0]], [1, 1], [1, 1], conv.groups)  # padding, stride, dilation, groups
        weight = conv.weight.detach().to(dtype)[:, :, None]
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.places, None)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, frame, hidden) to the same."""
        x = hidden.to(self.dtype).transpose(1, 2)[:, :, None]
        x = torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.places, *self.post)[:, :, 0]
        x = x[:, :, : x.shape[2] - self.n_surplus]
        return (x if self.is_fused else self.activation(x)).transpose(1, 2)


class PackedAttention(nn.Module):
    """Self-attention with one product for queries, keys and values."""

    scale: float | None = 1.0  # of scores: queries come scaled

    def __init__(self, attention: Attention, dtype: torch.dtype, make: Callable[..., nn.Module] = make_product) -> None:
        super().__init__()
        self.n_heads = attention.n_heads
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        scale = (q.out_features // self.n_heads) ** -0.5
        self.is_tiled = narrow(dtype) == torch.float32 or has("amx_bf16")
        weight, bias = torch.cat([q.weight * scale, k.weight, v.weight]), torch.cat([q.bias * scale, k.bias, v.bias])
        self.qkv = make(weight, bias, dtype, out=narrow(dtype))
        self.out_proj = make(attention.out_proj.weight, attention.out_proj.bias, dtype)

    def forward(self, hidden: Tensor, mask: Tensor | None, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        """As `Attention.forward`."""
        mixed, weights = self.mix(*self.project(hidden), mask, want_weights)
        return self.out_proj(mixed), weights

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.project`."""
        B, T, _ = hidden.shape
        rows = self.qkv(hidden).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = rows if self.is_tiled else rows.contiguous()  # which products of whole matrices read as they are
        return q, k, v.contiguous() if v.dtype == torch.float32 else v  # which its tiled kernel reads again and again

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, want_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As `Attention.mix`."""
        # In bfloat16 without tiles in hardware, products of whole matrices are faster, which need room.
        is_whole = q.dtype == torch.bfloat16 and not self.is_tiled and q.shape[:-1].numel() * k.shape[2] <= MAX_SCORES
        if want_weights or is_whole:
            scores = q @ k.transpose(2, 3)
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1)
            out = weights @ v
        else:
            weights, out = None, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return out.transpose(1, 2).flatten(2), weights if want_weights else None


class PackedFeedForward(nn.Module):
    """In float32 or bfloat16, with GELU fused where that is the activation."""

    def __init__(self, layer: FeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation, self.dtype = layer.activation, dtype
        self.is_fused = self.activation is F.gelu
        first, second = layer.intermediate_dense, layer.output_dense
        self.intermediate_dense = Product(first.weight, first.bias, dtype, self.is_fused)
        self.output_dense = Product(second.weight, second.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        x = self.intermediate_dense(rounded_up(x, self.dtype))
        x = self.output_dense(x if self.is_fused else self.activation(x))
        return x[:, :n]


@torch.no_grad()
def pack(model: Wav2Vec2ForCTC, dtype: torch.dtype) -> Wav2Vec2ForCTC:
    """`model`, changed in place to multiply in float32, bfloat16 or int8: for inference on the CPU alone.

    Raises:
        ValueError: the processor has no such instructions.
    """
    if not is_fast(dtype):
        raise ValueError(f"Expected a processor with {' or '.join(NEEDED[dtype])} for {dtype}. Found: none of them")
    network, rest = model.float().eval().wav2vec2, narrow(dtype)
    layers = [layer for layer in network.feature_extractor.conv_layers if isinstance(layer, ConvLayer)]
    projection = network.feature_projection.projection
    replaced: dict[str, nn.Module] = {
        "feature_extractor": PackedExtractor(layers, model.config, rest),
        "feature_projection.projection": Product(projection.weight, projection.bias, rest, out=torch.float32),
        "encoder.pos_conv_embed": PackedPositions(network.encoder.pos_conv_embed, rest),
    }
    if branch := network.encoder.branch:
        weight, bias = branch.projection.weight, branch.projection.bias
        replaced["encoder.branch.projection"] = Product(weight, bias, rest, out=torch.float32)
    for name, module in replaced.items():
        network.set_submodule(name, module)
    pack_blocks(network.encoder, dtype)
    if dtype == torch.bfloat16 and has("amx_bf16"):
        network.encoder.n_rows = multiplied  # attention, too, is faster over whole tiles
    return model


def pack_blocks(network: nn.Module, dtype: torch.dtype, reads: bool = False) -> None:
    """Packs attention and feed forward wherever they are in a network, in place.

    Args:
        reads: the network reads one row after another, as a rule.
    """
    replaced: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            replaced[name] = PackedAttention(module, dtype, make_reader if reads else make_product)
        elif isinstance(module, FeedForward):
            many = Int8FeedForward(module) if dtype == torch.int8 else PackedFeedForward(module, dtype)
            weights = module.intermediate_dense.weight, module.output_dense.weight
            replaced[name] = ByRows(many, FewForward(module)) if reads and are_read(*weights) else many
    for name, module in replaced.items():
        network.set_submodule(name, module)
