"""Wav2Vec2 (Baevski et al. 2020, https://arxiv.org/abs/2006.11477) in PyTorch.

Submodule names equal the keys of hub checkpoints, so that loading needs no renaming. Both published
shapes are here: group norm with post-norm blocks (base) and layer norm with pre-norm blocks
("stable layer norm", large). The pre-training head is in `core/pretraining.py`.
Left out: adapters (`add_adapter`) and the conformer variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from core.configuration import Wav2Vec2Config
from core.masking import mask_spans
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


@dataclass(frozen=True, slots=True, eq=False)
class BaseModelOutput:
    """What the encoder gives. `extract_features` is the normalised extractor output."""

    last_hidden_state: Tensor  # (batch, frame, hidden)
    extract_features: Tensor  # (batch, frame, conv_dim[-1])
    hidden_states: tuple[Tensor, ...] | None = None  # embedding and every layer: n_layers + 1
    attentions: tuple[Tensor, ...] | None = None  # (batch, head, frame, frame) a layer


@dataclass(frozen=True, slots=True, eq=False)
class CTCOutput:
    logits: Tensor  # (batch, frame, vocab), not normalised
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


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
        self.fused: Callable[[Tensor, nn.Module], Tensor] | None = None  # norm and activation at once: `core.fused`
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
        if self.fused is not None and self.layer_norm is not None and not torch.is_grad_enabled():
            return self.fused(x, self.layer_norm)
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
        x: Tensor = first(input_values[:, None], norms)
        for layer in rest:
            x = layer(x)
        return x

    def channel_norm(self, mean: Tensor, covariance: Tensor, power: float) -> tuple[Tensor, Tensor]:
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


class PositionalConvEmbedding(nn.Module):
    """Relative positions by one wide grouped convolution with weight norm over the taps."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = weight_norm(conv, name="weight", dim=2)
        self.n_surplus = 1 if kernel % 2 == 0 else 0  # an even kernel makes one frame too many
        self.activation = ACTIVATION_FUNCTIONS[config.feat_extract_activation]

    def forward(self, hidden: Tensor) -> Tensor:
        x: Tensor = self.conv(hidden.transpose(1, 2))
        x = x[:, :, : x.shape[2] - self.n_surplus]
        return self.activation(x).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        d = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, hidden: Tensor, mask: Tensor | None, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        """`mask` is bool (batch, 1, 1, frame), True where a key may be attended to."""
        return self.attend(*self.project(hidden), mask, want_weights)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, head, frame, D / n_heads) of (batch, frame, D)."""
        B, T, _ = hidden.shape
        q, k, v = (
            projection(hidden).view(B, T, self.n_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, want_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, frame, D) for each query, and the weights."""
        p = self.dropout if self.training else 0.0
        weights = None
        if want_weights:
            scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1)
            out = F.dropout(weights, p) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights


class FeedForward(nn.Module):
    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.intermediate_dropout(self.activation(self.intermediate_dense(x)))
        x = self.output_dropout(self.output_dense(x))
        return x


class EncoderLayer(nn.Module):
    """One transformer block, normalised after (base) or before (stable) each half."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.is_stable = config.do_stable_layer_norm
        self.attention = Attention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(self.layer_norm(x) if self.is_stable else x, mask, want_weights)
        return self.finish(x, attended), weights

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention."""
        x = x + self.dropout(attended)
        if self.is_stable:
            x = x + self.feed_forward(self.final_layer_norm(x))
        else:
            x = self.layer_norm(x)
            x = self.final_layer_norm(x + self.feed_forward(x))
        return x

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, as in `Attention.project`, of (batch, frame, D)."""
        return self.attention.project(self.layer_norm(x) if self.is_stable else x)


class Branch(nn.Module):
    """Where some blocks leave the others and come back: a linear map of their normalised state is what they add.

    Blocks that were trained for something else, and stay as they are, so inform others that were trained without them.
    """

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.first, self.end = config.branch
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, index: int, hidden: Tensor, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """What block `index` is given after `hidden`, and the state that the branch left."""
        if index == self.first:
            trunk = hidden
        elif index == self.end:
            hidden = trunk + self.projection(self.layer_norm(hidden))
        return hidden, trunk


def sinusoids(positions: Tensor, hidden_size: int) -> Tensor:
    """(…, hidden) of (…,): sines, then cosines, of wavelengths from 2π to 20000π frames (Vaswani et al. 2017)."""
    half = hidden_size // 2
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10_000) / (half - 1)))
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class Encoder(nn.Module):
    """Positional convolution and the transformer blocks."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.is_stable = config.do_stable_layer_norm
        self.layerdrop = config.layerdrop
        self.add_sinusoids = config.add_sinusoids
        self.pos_conv_embed = PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.branch = Branch(config) if config.branch else None

    def forward(
        self,
        hidden: Tensor,
        frame_mask: Tensor | None = None,
        want_weights: bool = False,
        want_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Returns the last state, all states and all attention weights (None where not wanted)."""
        hidden = self.begin(hidden, frame_mask)
        attention_mask = None if frame_mask is None else frame_mask[:, None, None, :]
        states, weights = [hidden], []
        trunk = hidden
        for i, layer in enumerate(self.layers):
            weight = None
            if self.branch is not None:
                hidden, trunk = self.branch(i, hidden, trunk)
            if not (self.training and self.layerdrop and torch.rand(()).item() < self.layerdrop):
                hidden, weight = layer(hidden, attention_mask, want_weights)
            if want_states:  # else nothing may keep every layer's output alive
                states.append(hidden)
            if weight is not None:
                weights.append(weight)
        if self.is_stable:
            hidden = states[-1] = self.layer_norm(hidden)
        return hidden, tuple(states) if want_states else None, tuple(weights) if want_weights else None

    def begin(self, hidden: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """What the first block is given."""
        if frame_mask is not None:
            hidden = hidden * frame_mask[:, :, None].to(hidden.dtype)
        hidden = hidden + self.pos_conv_embed(hidden)
        if self.add_sinusoids:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            hidden = hidden + sinusoids(positions, hidden.shape[2]).to(hidden.dtype)
        begun: Tensor = self.dropout(hidden if self.is_stable else self.layer_norm(hidden))
        return begun

    def resume(
        self, hidden: Tensor, n_lead: int, positions: Tensor, pasts: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """The last states of sequences, of whose frames before the keys and values are known.

        Args:
            hidden: (batch, n_lead + frame, hidden), the first `n_lead` for the positional convolution alone.
            positions: (batch, frame) in the sequence, for sinusoids.
            pasts: of each sequence, (layer, 2, head, past frame, hidden / head) keys and values, those of `n_lead`
                among them; or None of all.

        Returns:
            (batch, frame, hidden), and keys and values (layer, 2, batch, head, past and new frame, hidden / head).
        """
        hidden = (hidden + self.pos_conv_embed(hidden))[:, n_lead:]
        if self.add_sinusoids:
            hidden = hidden + sinusoids(positions, hidden.shape[2]).to(hidden.dtype)
        trunk = hidden = hidden if self.is_stable else self.layer_norm(hidden)
        n_past = 0 if pasts[0] is None else pasts[0].shape[3]
        present = hidden.new_empty(0)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            if self.branch is not None:
                hidden, trunk = self.branch(i, hidden, trunk)
            q, k, v = layer.project(hidden)
            if i == 0:
                B, heads, T, d = k.shape
                present = k.new_empty(len(self.layers), 2, B, heads, n_past + T, d)
                for row, past in enumerate(pasts):
                    if past is not None:
                        present[:, :, row, :, :n_past] = past
            keys, values = present[i]
            keys[:, :, n_past:], values[:, :, n_past:] = k, v
            hidden = layer.finish(hidden, layer.attention.attend(q, keys, values)[0])
        return self.layer_norm(hidden) if self.is_stable else hidden, present


class PreTrainedModel(nn.Module):
    """What every model shares: its config, its initial weights, loading and saving."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config

    def init_weights(self) -> None:
        """Draws initial weights as the paper's code does (normal linears, Kaiming convolutions)."""
        for module in self.modules():
            if isinstance(module, PositionalConvEmbedding):
                scale = 2 * (1 / (module.conv.kernel_size[0] * module.conv.in_channels)) ** 0.5
                # Assigned, not drawn in place: under weight norm `weight` is computed anew at each access.
                module.conv.weight = torch.randn_like(module.conv.weight) * scale
                nn.init.zeros_(module.conv.bias)
            elif isinstance(module, FeatureProjection):
                k = module.projection.in_features**-0.5
                nn.init.uniform_(module.projection.weight, -k, k)
                nn.init.uniform_(module.projection.bias, -k, k)
            elif isinstance(module, ConvLayer):
                nn.init.kaiming_normal_(module.conv.weight)
            elif isinstance(module, (Attention, FeedForward, Branch)) or module is self:
                for child in module.children():
                    if isinstance(child, nn.Linear):
                        nn.init.normal_(child.weight, std=self.config.initializer_range)
                        nn.init.zeros_(child.bias)

    def freeze_feature_encoder(self) -> None:
        """Stops training of the convolutional extractor, as fine-tuning usually does."""
        for name, parameter in self.named_parameters():
            if "feature_extractor." in name:
                parameter.requires_grad = False

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path, **options: Any) -> Self:
        """Loads a checkpoint directory in hub layout, or fetches a hub name; see `core.checkpoint`."""
        from core.checkpoint import load_model

        return load_model(cls, name_or_dir, **options)

    def save_pretrained(self, directory: str | Path) -> None:
        from core.checkpoint import save_model

        save_model(self, directory)


class Wav2Vec2Model(PreTrainedModel):
    """Extractor, projection, encoder: (batch, sample) to hidden states (batch, frame, hidden)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        # Stands for masked frames; in every checkpoint, of use only while training.
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = Encoder(config)
        self.init_weights()

    def frame_mask(self, attention_mask: Tensor) -> Tensor:
        """(batch, sample) of 0/1 to bool (batch, frame): True where the frame has whole support."""
        n_samples = attention_mask.long().sum(1)
        n_total = self.config.n_frames(attention_mask.shape[1])
        n_frames = torch.tensor([self.config.n_frames(int(n)) for n in n_samples], device=n_samples.device)
        return torch.arange(n_total, device=n_samples.device)[None] < n_frames[:, None]

    def embed(self, input_values: Tensor, norms: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, sample) to hidden states (batch, frame, hidden) before the encoder, and normalised features.

        With layer norm, or given `norms`, those of a frame depend on its receptive field alone.
        """
        hidden, normed = self.feature_projection(self.feature_extractor(input_values, norms).transpose(1, 2))
        return hidden, normed

    def mask_hidden(self, hidden: Tensor, mask_time_indices: Tensor | None, frames: Tensor | None) -> Tensor:
        """SpecAugment on projected features (training only), or the given mask (pre-training)."""
        config = self.config
        if mask_time_indices is None and not (self.training and config.apply_spec_augment):
            return hidden
        B, T, D = hidden.shape
        if mask_time_indices is None and config.mask_time_prob > 0:
            n_valid = frames.sum(1).tolist() if frames is not None else [T] * B
            mask_time_indices = mask_spans(
                n_valid, T, config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks
            ).to(hidden.device)
        if mask_time_indices is not None:
            mask = mask_time_indices[:, :, None].bool()
            hidden = torch.where(mask, self.masked_spec_embed.to(hidden.dtype), hidden)
        if self.training and config.mask_feature_prob > 0:
            mask = mask_spans(
                [D] * B,
                D,
                config.mask_feature_prob,
                config.mask_feature_length,
                config.mask_feature_min_masks,
            )
            hidden = hidden.masked_fill(mask[:, None].to(hidden.device), 0.0)
        return hidden

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Hidden states of waveforms.

        Args:
            input_values: (batch, sample), normalised as the checkpoint's tokenizer does.
            attention_mask: (batch, sample) 1 for audio, 0 for padding. Models with group norm were
                trained without one: give them equal lengths instead.
            mask_time_indices: bool (batch, frame), frames to replace by the mask embedding.
            return_dict: False gives the same values as a tuple, without those not asked for.

        Raises:
            ValueError: not 2-D, or fewer samples than one frame needs.
        """
        if input_values.dim() != 2:
            raise ValueError(f"Expected input_values to be 2D (batch, sample). Found: {list(input_values.shape)}")
        if input_values.shape[1] < self.config.receptive_field:
            raise ValueError(
                f"Expected at least {self.config.receptive_field} samples, the receptive field of one frame. "
                f"Found: {input_values.shape[1]}"
            )
        frames = None if attention_mask is None else self.frame_mask(attention_mask)
        hidden, normed = self.embed(input_values)
        hidden = self.mask_hidden(hidden, mask_time_indices, frames)
        hidden, states, weights = self.encoder(hidden, frames, output_attentions, output_hidden_states)
        if return_dict:
            return BaseModelOutput(hidden, normed, states, weights)
        return tuple(v for v in (hidden, normed, states, weights) if v is not None)


class Wav2Vec2ForCTC(PreTrainedModel):
    """Wav2Vec2 with one linear layer on top: (batch, sample) to CTC logits (batch, frame, vocab)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        nn.init.zeros_(self.lm_head.bias)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        labels: Tensor | None = None,
    ) -> CTCOutput | tuple[Any, ...]:
        """CTC logits, and the loss where `labels` (batch, label) are given; −100 is no label.

        Raises:
            ValueError: a label is not below `vocab_size`, or as in `Wav2Vec2Model.forward`.
        """
        if labels is not None and labels.numel() and int(labels.max()) >= self.config.vocab_size:
            raise ValueError(f"Labels must be below vocab_size {self.config.vocab_size}. Found: {int(labels.max())}")
        output = self.wav2vec2(
            input_values,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(self.dropout(output.last_hidden_state))
        loss = None if labels is None else self.ctc_loss(logits, labels, attention_mask)
        if return_dict:
            return CTCOutput(logits, loss, output.hidden_states, output.attentions)
        return tuple(v for v in (loss, logits, output.hidden_states, output.attentions) if v is not None)

    def ctc_loss(self, logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
        B, T, _ = logits.shape
        if attention_mask is None:
            n_frames = torch.full((B,), T, dtype=torch.long, device=logits.device)
        else:
            n_frames = self.wav2vec2.frame_mask(attention_mask).sum(1)
        return self.ctc_loss_of(logits, labels, n_frames)

    def ctc_loss_of(self, logits: Tensor, labels: Tensor, n_frames: Tensor) -> Tensor:
        """As `forward` gives it, where the frames (batch,) that count are known."""
        is_label = labels >= 0
        log_probs = F.log_softmax(logits, -1, dtype=torch.float32).transpose(0, 1)  # (frame, batch, vocab)
        return F.ctc_loss(
            log_probs,
            labels[is_label],
            n_frames,
            is_label.sum(1),
            blank=self.config.pad_token_id,
            reduction=self.config.ctc_loss_reduction,
            zero_infinity=self.config.ctc_zero_infinity,
        )

    @torch.inference_mode()
    def log_probs(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, frame, vocab) float32 log-probabilities, whatever the dtype of the weights."""
        output = self(input_values.to(self.dtype), attention_mask)
        return F.log_softmax(output.logits, -1, dtype=torch.float32)

    @torch.inference_mode()
    def embed(self, input_values: Tensor, norms: Tensor | None = None) -> Tensor:
        """The first half of `log_probs`: (batch, sample) to hidden states (batch, frame, hidden)."""
        return self.wav2vec2.embed(input_values.to(self.dtype), norms)[0]

    @torch.inference_mode()
    def resume(
        self, hidden: Tensor, n_lead: int, positions: Tensor, pasts: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """As `log_probs_of`, for the last frames of sequences; see `Encoder.resume`."""
        hidden, present = self.wav2vec2.encoder.resume(hidden.to(self.dtype), n_lead, positions, pasts)
        return F.log_softmax(self.lm_head(hidden), -1, dtype=torch.float32), present

    @torch.inference_mode()
    def log_probs_of(self, hidden: Tensor) -> Tensor:
        """The second half of `log_probs`: hidden states of `embed` to (batch, frame, vocab)."""
        hidden, _, _ = self.wav2vec2.encoder(hidden.to(self.dtype))
        return F.log_softmax(self.lm_head(hidden), -1, dtype=torch.float32)
