"""The transformer of Wav2Vec2: positional convolution and blocks, run over whole windows or over what is new."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from core.configuration import Wav2Vec2Config
from core.extractor import ACTIVATION_FUNCTIONS

Recall = Callable[[int, Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]]


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

    scale: float | None = None  # of scores, where it is not that of queries of this size

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        d = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, hidden: Tensor, mask: Tensor | None, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        """`mask` is bool (batch, 1, 1, frame), True where a key may be attended to."""
        mixed, weights = self.mix(*self.project(hidden), mask, want_weights)
        return self.out_proj(mixed), weights

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, head, frame, D / n_heads) of (batch, frame, D)."""
        B, T, _ = hidden.shape
        q, k, v = (
            projection(hidden).view(B, T, self.n_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, want_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, frame, D) of what each query attends to, before the last product, and the weights."""
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
        return out.transpose(1, 2).flatten(2), weights


def mix_parts(attention: Attention, q: Tensor, known: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`Attention.mix` where keys and values are those of parts of the batch, one after the other."""
    if len(known) == 1:
        return attention.mix(q, *known[0])[0]
    ends = accumulate(len(k) for k, _ in known)
    return torch.cat([attention.mix(q[end - len(k) : end], k, v)[0] for end, (k, v) in zip(ends, known, strict=True)])


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


class AttentionAdapter(nn.Module):
    """What a block adds for one language (Pratap et al. 2023, https://arxiv.org/abs/2305.13516)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        assert config.adapter_attn_dim is not None
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear_1 = nn.Linear(config.hidden_size, config.adapter_attn_dim)
        self.linear_2 = nn.Linear(config.adapter_attn_dim, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.linear_2(F.relu(self.linear_1(self.norm(x))))
        return added


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
        has_adapter = self.is_stable and config.adapter_attn_dim is not None
        self.adapter_layer = AttentionAdapter(config) if has_adapter else None

    def forward(self, x: Tensor, mask: Tensor | None, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(self.layer_norm(x) if self.is_stable else x, mask, want_weights)
        return self.finish(x, attended), weights

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention."""
        x = x + self.dropout(attended)
        if self.is_stable:
            x = x + self.feed_forward(self.final_layer_norm(x))
            if self.adapter_layer is not None:
                x = x + self.adapter_layer(x)
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

    n_rows: Callable[[int], int] | None = None  # for so many frames, where a processor is faster with some numbers

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
        last, states, weights = hidden, list[Tensor](), list[Tensor]()
        for last, weight in self.states(hidden, frame_mask, want_weights):
            if want_states:  # else nothing may keep every layer's output alive
                states.append(last)
            if weight is not None:
                weights.append(weight)
        return last, tuple(states) if want_states else None, tuple(weights) if want_weights else None

    def states(
        self, hidden: Tensor, frame_mask: Tensor | None = None, want_weights: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What the first block is given, then what each makes of it with its attention weights, the last normalised."""
        n = hidden.shape[1]
        if self.n_rows is not None and frame_mask is None and not want_weights and (surplus := self.n_rows(n) - n):
            frame_mask = F.pad(hidden.new_ones(1, n, dtype=torch.bool), (0, surplus))
            hidden = F.pad(hidden, (0, 0, 0, surplus))
        hidden = trunk = self.begin(hidden, frame_mask)
        yield hidden[:, :n], None
        attention_mask = None if frame_mask is None else frame_mask[:, None, None, :]
        for i, layer in enumerate(self.layers):
            weight = None
            if self.branch is not None:
                hidden, trunk = self.branch(i, hidden, trunk)
            if not (self.training and self.layerdrop and torch.rand(()).item() < self.layerdrop):
                hidden, weight = layer(hidden, attention_mask, want_weights)
            if self.is_stable and i + 1 == len(self.layers):
                hidden = self.layer_norm(hidden)
            yield hidden[:, :n], weight

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

    def resume(self, hidden: Tensor, n_lead: int, positions: Tensor, recall: Recall) -> Tensor:
        """The last states (batch, frame, hidden) of sequences, of whose frames before the keys and values are known.

        Args:
            hidden: (batch, n_lead + frame, hidden), the first `n_lead` for the positional convolution alone.
            positions: (batch, frame) in the sequence, for sinusoids.
            recall: is given the number of a block and its keys and values (batch, head, frame, hidden / head) of these
                frames; returns those of all that they attend to, their frames in any order, for parts of the batch.
        """
        hidden = (hidden + self.pos_conv_embed(hidden))[:, n_lead:]
        if self.add_sinusoids:
            hidden = hidden + sinusoids(positions, hidden.shape[2]).to(hidden.dtype)
        trunk = hidden = hidden if self.is_stable else self.layer_norm(hidden)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            if self.branch is not None:
                hidden, trunk = self.branch(i, hidden, trunk)
            q, k, v = layer.project(hidden)
            hidden = layer.finish(hidden, layer.attention.out_proj(mix_parts(layer.attention, q, recall(i, k, v))))
        return self.layer_norm(hidden) if self.is_stable else hidden
