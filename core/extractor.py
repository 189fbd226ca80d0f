"""The waveform to features: the convolutions of Wav2Vec2, and the projection to the encoder's width."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.configuration import Wav2Vec2Config
from core.statistics import channel_norm

FLOOR = 1e-8  # of what logarithms are taken of


def level(power: Tensor) -> Tensor:
    """Logarithms of powers, scaled as Whisper (Radford et al. 2022) scales them; about -1 to 1.5 for speech."""
    return (power.float().clamp_min(FLOOR).log10() / 4 + 1).to(power.dtype)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "square": torch.square,
    "log": level,
}


class ConvLayer(nn.Module):
    """One convolution of the extractor: conv, norm (layer, group or none), activation."""

    def __init__(self, config: Wav2Vec2Config, index: int) -> None:
        super().__init__()
        n_in = config.conv_dim[index - 1] if index else 1
        n_out = config.conv_dim[index]
        kernel, stride, padding = config.conv_kernel[index], config.conv_stride[index], config.paddings[index]
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride, padding, bias=config.conv_bias)
        self.layer_norm: nn.Module | None = None
        self.per_frame = config.feat_extract_norm != "group"
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(n_out)
        elif config.feat_extract_norm == "group" and index == 0:
            # One group a channel: statistics over the whole window, so windows differ.
            self.layer_norm = nn.GroupNorm(n_out, n_out)
        activation = config.conv_activation[index] if config.conv_activation else config.feat_extract_activation
        self.activation = ACTIVATION_FUNCTIONS[activation]
        # Windows that do not overlap, or of the waveform, are rows of one product, which norms per frame go on with.
        self.is_product = self.per_frame and padding == 0 and (n_in == 1 or kernel == stride)

    def multiply(self, x: Tensor) -> Tensor:
        """The convolution as one product: (batch, channel, time), frame by frame in memory."""
        (kernel,), (stride,) = self.conv.kernel_size, self.conv.stride
        weight, bias = self.conv.weight, self.conv.bias
        if self.conv.in_channels == 1:
            # In full precision: rounding a sample to bfloat16 is noise louder than soft fricatives.
            with torch.autocast(x.device.type, enabled=False):
                windows = x[:, 0].to(weight.dtype).unfold(1, kernel, stride)
                return F.linear(windows, weight[:, 0], bias).transpose(1, 2)
        n = x.shape[2] // kernel
        windows = x.transpose(1, 2)[:, : n * kernel].reshape(len(x), n, -1)
        return F.linear(windows, weight.transpose(1, 2).flatten(1), bias).transpose(1, 2)

    def forward(self, x: Tensor, norms: Tensor | None = None) -> Tensor:
        """`norms` (batch, 2, channel): factors and summands instead of a norm over time."""
        x = self.multiply(x) if self.is_product else self.conv(x)  # (batch, channel, time)
        if norms is not None:
            return self.activation(x * norms[:, 0, :, None].to(x.dtype) + norms[:, 1, :, None].to(x.dtype))
        return self.activate(x)

    def activate(self, x: Tensor) -> Tensor:
        """Norm and activation of (batch, channel, time)."""
        if self.layer_norm is not None:
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2) if self.per_frame else self.layer_norm(x)
        return self.activation(x)


class FeatureExtractor(nn.Module):
    """Waveform (batch, sample) to features (batch, channel, frame); section 2 of the paper."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(ConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(self, input_values: Tensor, norms: Tensor | None = None) -> Tensor:
        """`norms`: of the first layer, see `ConvLayer`."""
        first, *rest = self.conv_layers
        x: Tensor = first(input_values[:, None].to(next(first.parameters()).dtype), norms)
        for layer in rest:
            x = layer(x)
        return x

    def channel_norm(self, mean: Tensor, covariance: Tensor, power: float | Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's norm over time; see `core.statistics`."""
        first = self.conv_layers[0]
        assert isinstance(first, ConvLayer) and isinstance(first.layer_norm, nn.GroupNorm)
        return channel_norm(first.layer_norm, first.conv.weight[:, 0], first.conv.bias, mean, covariance, power)


class FeatureProjection(nn.Module):
    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frame, conv_dim) to hidden states, and the normalised features (for the quantizer)."""
        normed = self.layer_norm(features)
        return self.dropout(self.projection(normed)), normed
