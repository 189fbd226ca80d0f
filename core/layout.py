"""A model for inference on a GPU: frame by frame in memory, with each convolution in the shape that is fast there.

cuDNN is several times as fast where the channels of a frame lie side by side, as (batch, frame, channel), and only
through its two-dimensional convolutions; so the extractor's keep that order from the first to the last. The first one,
of samples, is a product in float32, because a sample that is rounded to bfloat16 is noise louder than soft fricatives,
and a group norm over time is folded into it. The positional convolution, for whose narrow groups cuDNN has no fast
kernel, becomes one product a group. What is laid out so cannot be trained or saved.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.encoder import PositionalConvEmbedding
from core.extractor import ConvLayer, FeatureExtractor
from core.statistics import channel_norm
from core.wav2vec2 import Wav2Vec2ForCTC

OUTPUTS = 16  # frames of the positional convolution that one row of its product makes


class FirstConv(nn.Module):
    """The convolution of the waveform, its norm and activation, in float32.

    The mean and variance of a channel over a window follow from those of the samples under its taps, which are few:
    a norm over time becomes part of each window's weights.
    """

    def __init__(self, layer: ConvLayer, dtype: torch.dtype) -> None:
        """`dtype`: of what it gives."""
        super().__init__()
        layer = deepcopy(layer).float().requires_grad_(False)
        (self.kernel,), (self.stride,) = layer.conv.kernel_size, layer.conv.stride
        self.padding = int(layer.conv.padding[0])
        self.over_time = layer.layer_norm if isinstance(layer.layer_norm, nn.GroupNorm) else None
        self.layer_norm = None if self.over_time else layer.layer_norm
        self.activation, self.dtype = layer.activation, dtype
        weight, bias = layer.conv.weight[:, 0].T.contiguous(), layer.conv.bias
        self.register_buffer("weight", weight)  # (tap, channel)
        self.register_buffer("bias", weight.new_zeros(weight.shape[1]) if bias is None else bias.clone())
        self.fused: Callable[..., Tensor] | None = None  # all of it at once: `core.fused`

    weight: Tensor
    bias: Tensor

    def taps(self, samples: Tensor) -> Tensor:
        """(batch, frame, tap) of (batch, sample)."""
        return samples.unfold(1, self.kernel, self.stride)

    def forward(self, samples: Tensor, norms: Tensor | None = None) -> Tensor:
        """(batch, frame, channel) of (batch, sample); `norms` (batch, 2, channel) as in `ConvLayer`."""
        samples = F.pad(samples.float(), (self.padding, self.padding)) if self.padding else samples.float().contiguous()
        weight, bias = self.weight[None], self.bias[None]
        if self.over_time is not None:
            if norms is None:
                taps = self.taps(samples).double()
                mean = taps.mean(1)
                centred = taps - mean[:, None]
                covariance = centred.transpose(1, 2) @ centred / taps.shape[1]
                norms = torch.stack(self.channel_norm(mean, covariance, 1.0), 1)
            gain, offset = norms[:, 0], norms[:, 1]
            weight, bias = (weight * gain[:, None]).float(), (bias * gain + offset).float()
        if self.fused is not None:
            return self.fused(self, samples, weight, bias)
        x = self.taps(samples) @ weight + bias[:, None]
        return self.activation(x if self.layer_norm is None else self.layer_norm(x)).to(self.dtype)

    def channel_norm(self, mean: Tensor, covariance: Tensor, power: float | Tensor) -> tuple[Tensor, Tensor]:
        """As `FeatureExtractor.channel_norm`."""
        assert self.over_time is not None
        return channel_norm(self.over_time, self.weight.T, self.bias, mean, covariance, power)


class FrameConv(nn.Module):
    """A convolution of the extractor after the first, its norm and activation."""

    def __init__(self, layer: ConvLayer, dtype: torch.dtype) -> None:
        super().__init__()
        layer = deepcopy(layer).to(dtype).requires_grad_(False)
        self.strides, self.padding = (1, layer.conv.stride[0]), (0, int(layer.conv.padding[0]))
        self.layer_norm, self.activation = layer.layer_norm, layer.activation
        weight = layer.conv.weight[:, :, None]  # (n_out, n_in, 1, tap)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", layer.conv.bias)
        self.fused: Callable[..., Tensor] | None = None  # norm and activation at once: `core.fused`

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frame, channel) to the same."""
        if self.weight.shape[3] == 1 == self.strides[1]:
            x = F.linear(x, self.weight[:, :, 0, 0], self.bias)
        else:
            x = x.transpose(1, 2)[:, :, None]  # (batch, channel, 1, frame), channels last
            x = F.conv2d(x, self.weight, self.bias, self.strides, self.padding)[:, :, 0].transpose(1, 2)
        if self.layer_norm is None:
            return self.activation(x)
        return self.activation(self.layer_norm(x)) if self.fused is None else self.fused(x, self.layer_norm)


class FrameExtractor(nn.Module):
    """The extractor, (batch, frame, channel) from the first convolution to the last."""

    def __init__(self, extractor: FeatureExtractor, dtype: torch.dtype) -> None:
        super().__init__()
        first, *rest = (layer for layer in extractor.conv_layers if isinstance(layer, ConvLayer))
        self.first = FirstConv(first, dtype)
        self.rest = nn.Sequential(*(FrameConv(layer, dtype) for layer in rest))

    def forward(self, input_values: Tensor, norms: Tensor | None = None) -> Tensor:
        """Waveforms (batch, sample) to features (batch, channel, frame), frame by frame in memory."""
        x: Tensor = self.rest(self.first(input_values, norms))
        return x.transpose(1, 2)

    def channel_norm(self, mean: Tensor, covariance: Tensor, power: float | Tensor) -> tuple[Tensor, Tensor]:
        """As `FeatureExtractor.channel_norm`."""
        return self.first.channel_norm(mean, covariance, power)


class PositionalProduct(nn.Module):
    """The positional convolution, its weight norm folded, as one product a group.

    `OUTPUTS` neighbouring frames hang on the `OUTPUTS + kernel - 1` that lie under their taps: a row of these times a
    banded (Toeplitz) matrix that holds the taps once for each of the outputs.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, embedding: PositionalConvEmbedding) -> None:
        super().__init__()
        conv, self.activation = embedding.conv, embedding.activation
        (self.kernel,), self.groups = conv.kernel_size, conv.groups
        taps = conv.weight.detach().unflatten(0, (self.groups, -1)).permute(0, 3, 2, 1)  # (group, tap, in, out)
        G, K, d, _ = taps.shape
        weight = taps.new_zeros(G, OUTPUTS + K - 1, d, OUTPUTS, d)
        for output in range(OUTPUTS):
            weight[:, output : output + K, :, output] = taps
        self.register_buffer("weight", weight.view(G, (OUTPUTS + K - 1) * d, OUTPUTS * d))
        self.register_buffer("bias", conv.bias.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, frame, hidden) to the same."""
        B, T, _ = hidden.shape
        x = hidden.view(B, T, self.groups, -1).permute(2, 0, 1, 3)  # (group, batch, frame, d)
        n, d, before = -(-T // OUTPUTS), x.shape[3], self.kernel // 2
        padded = x.new_zeros(self.groups, B, n * OUTPUTS + self.kernel - 1, d)
        padded[:, :, before : before + T] = x
        rows = padded.flatten(2).unfold(2, self.weight.shape[1], OUTPUTS * d)  # (group, batch, row, taps · d)
        product = torch.bmm(rows.reshape(self.groups, B * n, -1), self.weight)
        x = product.view(self.groups, B, n * OUTPUTS, d)[:, :, :T].permute(1, 2, 0, 3).flatten(2)
        return self.activation(x + self.bias)


@torch.no_grad()
def lay_out(model: Wav2Vec2ForCTC, dtype: torch.dtype) -> Wav2Vec2ForCTC:
    """`model`, on its device and in float32, changed in place to run in that type: for inference alone."""
    network = model.wav2vec2
    extractor = FrameExtractor(network.feature_extractor, dtype)
    model.to(dtype)
    network.set_submodule("feature_extractor", extractor)
    network.set_submodule("encoder.pos_conv_embed", PositionalProduct(network.encoder.pos_conv_embed))
    return model
