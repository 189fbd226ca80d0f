"""Wav2Vec2 (Baevski et al. 2020, https://arxiv.org/abs/2006.11477) in PyTorch.

Submodule names equal the keys of hub checkpoints, so that loading needs no renaming. Both published
shapes are here: group norm with post-norm blocks (base) and layer norm with pre-norm blocks
("stable layer norm", large). The pre-training head is in `core/pretraining.py`.
Left out: adapters behind the encoder (`add_adapter`) and the conformer variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.configuration import Wav2Vec2Config
from core.encoder import Attention, Branch, Encoder, FeedForward, PositionalConvEmbedding, Recall
from core.extractor import ConvLayer, FeatureExtractor, FeatureProjection
from core.masking import mask_spans


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


class PreTrainedModel(nn.Module):
    """What every model shares: its config, its initial weights, loading and saving."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.is_rounded = False  # whether blocks were stored as integers, so that those of eight bits are as good

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
        """As `forward` gives it, where the frames (batch,) that count are known.

        Raises:
            ValueError: a label is not below `vocab_size`; PyTorch would read outside of the memory.
        """
        if labels.numel() and int(labels.max()) >= self.config.vocab_size:
            raise ValueError(f"Labels must be below vocab_size {self.config.vocab_size}. Found: {int(labels.max())}")
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
        output = self(input_values, attention_mask)
        return F.log_softmax(output.logits, -1, dtype=torch.float32)

    @torch.inference_mode()
    def log_probs_and_states(self, input_values: Tensor, n_blocks: int) -> tuple[Tensor, Tensor]:
        """`log_probs`, and the float32 states (batch, frame, hidden) after so many of the encoder's blocks."""
        last = kept = embedded = self.embed(input_values)
        for i, (last, _) in enumerate(self.wav2vec2.encoder.states(embedded)):
            kept = last if i == n_blocks else kept  # the others are given up
        return F.log_softmax(self.lm_head(last), -1, dtype=torch.float32), kept.float()

    @torch.inference_mode()
    def embed(self, input_values: Tensor, norms: Tensor | None = None) -> Tensor:
        """The first half of `log_probs`: (batch, sample) to hidden states (batch, frame, hidden)."""
        return self.wav2vec2.embed(input_values, norms)[0]

    @torch.inference_mode()
    def resume(self, hidden: Tensor, n_lead: int, positions: Tensor, recall: Recall) -> Tensor:
        """As `log_probs_of`, for the last frames of sequences; see `Encoder.resume`."""
        hidden = self.wav2vec2.encoder.resume(hidden.to(self.dtype), n_lead, positions, recall)
        return F.log_softmax(self.lm_head(hidden), -1, dtype=torch.float32)

    @torch.inference_mode()
    def log_probs_of(self, hidden: Tensor) -> Tensor:
        """The second half of `log_probs`: hidden states of `embed` to (batch, frame, vocab)."""
        hidden, _, _ = self.wav2vec2.encoder(hidden.to(self.dtype))
        return F.log_softmax(self.lm_head(hidden), -1, dtype=torch.float32)
