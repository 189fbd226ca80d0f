"""Self-supervised pre-training of Wav2Vec2 (Baevski et al. 2020, section 2 and 3, https://arxiv.org/abs/2006.11477).

Spans of frames are hidden from the encoder, which must tell their quantized features from distractors of the same
utterance. Submodule names equal the keys of hub checkpoints. The span masks are in `core/masking.py`.
Left out: distractors from other utterances (the paper's ablation) and the penalty on the features' norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.configuration import Wav2Vec2Config
from core.wav2vec2 import PreTrainedModel, Wav2Vec2Model

START_TEMPERATURE, END_TEMPERATURE = 2.0, 0.5  # of the Gumbel softmax (section 4.2, base)
ANNEALED_SHARE = 0.7  # of all steps: 2 * 0.999995**n meets 0.5 at update 277 k of 400 k


@dataclass(frozen=True, slots=True, eq=False)
class PreTrainingOutput:
    """What pre-training gives. Losses are sums over all masked frames, None where no distractors were given."""

    projected_states: Tensor  # (batch, frame, proj_codevector_dim), what the encoder makes of each frame
    projected_quantized_states: Tensor  # (batch, frame, proj_codevector_dim), what it should tell apart
    codevector_perplexity: Tensor  # how many codevectors are in use, summed over the groups
    loss: Tensor | None = None  # contrastive_loss + diversity_loss_weight * diversity_loss
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def sample_distractors(mask: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """For each masked frame `n` other masked frames of its row, drawn uniformly with replacement.

    Args:
        mask: bool (batch, frame).

    Returns:
        (batch, frame, n) int64 places in the flattened (batch * frame); at frames that are not masked 0.

    Raises:
        ValueError: a row has one masked frame alone, for which there is no other.
    """
    B, T = mask.shape  # batch, frame
    distractors = torch.zeros(B, T, n, dtype=torch.long)
    for row, places in enumerate(mask.cpu()):
        frames = places.nonzero()[:, 0]
        if len(frames) == 1:
            raise ValueError(f"Expected no masked frame or several in each row. Found: 1 in row {row}")
        if len(frames):
            drawn = torch.randint(len(frames) - 1, (len(frames), n), generator=generator)
            drawn += drawn >= torch.arange(len(frames))[:, None]  # steps over the frame itself
            distractors[row, frames] = row * T + frames[drawn]
    return distractors.to(mask.device)


def temperature_at(step: int, n_steps: int) -> float:
    """The Gumbel temperature of a step: exponential from 2 to 0.5 over the first 70 % of a run, as in the paper."""
    share = min(1.0, step / (ANNEALED_SHARE * n_steps))
    return START_TEMPERATURE * float((END_TEMPERATURE / START_TEMPERATURE) ** share)


def scale_gradient(module: nn.Module, factor: float) -> RemovableHandle:
    """From now on, gradients that enter `module` from its output are multiplied by `factor`.

    The paper trains the feature extractor at a tenth of the encoder's rate this way.
    """

    def scale(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]

    return module.register_forward_hook(scale)


class GumbelVectorQuantizer(nn.Module):
    """Product quantization: in each group one of its codevectors is chosen, and the choices are concatenated.

    In training the choice is drawn (straight-through Gumbel softmax at `temperature`), else it is the best.
    """

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.n_groups = config.num_codevector_groups
        self.n_codes = config.num_codevectors_per_group
        if config.codevector_dim % self.n_groups:
            raise ValueError(
                "codevector_dim must be a multiple of num_codevector_groups. "
                f"Found: {config.codevector_dim} and {self.n_groups}"
            )
        self.temperature = START_TEMPERATURE
        size = config.codevector_dim // self.n_groups
        self.codevectors = nn.Parameter(torch.empty(1, self.n_groups * self.n_codes, size).uniform_())
        self.weight_proj = nn.Linear(config.conv_dim[-1], self.n_groups * self.n_codes)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes (batch, frame, conv_dim[-1]).

        Args:
            mask: bool (batch, frame), the frames that the perplexity is of; all if None.

        Returns:
            (batch, frame, codevector_dim), the perplexity summed over groups (of the soft distribution in training,
            of the choices else), and the choices (batch, frame, group).
        """
        B, T, _ = features.shape
        logits = self.weight_proj(features).float().view(B * T * self.n_groups, self.n_codes)
        if self.training:
            chosen = F.gumbel_softmax(logits, tau=self.temperature, hard=True)
            codes, distribution = chosen.argmax(-1), logits.softmax(-1)
        else:
            codes = logits.argmax(-1)
            chosen = distribution = F.one_hot(codes, self.n_codes).float()
        codebooks = self.codevectors.view(self.n_groups, self.n_codes, -1)
        chosen = chosen.view(B * T, self.n_groups, self.n_codes).to(codebooks.dtype)
        vectors = torch.einsum("ngv,gvd->ngd", chosen, codebooks)
        used = perplexity(distribution.view(B, T, self.n_groups, self.n_codes), mask)
        return vectors.reshape(B, T, -1), used, codes.view(B, T, self.n_groups)


def perplexity(distribution: Tensor, mask: Tensor | None) -> Tensor:
    """exp of the entropy of the mean over frames of (batch, frame, group, code), summed over groups."""
    frames = distribution.flatten(0, 1) if mask is None else distribution[mask]
    mean = frames.sum(0) / max(1, len(frames))  # (group, code)
    # A probability that underflows to 0 would make the gradient of p log p not a number.
    return torch.exp(-(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum(-1)).sum()


def contrastive_loss(
    predicted: Tensor, quantized: Tensor, codes: Tensor, mask: Tensor, distractors: Tensor, temperature: float
) -> Tensor:
    """Equation 3, summed over masked frames: which of the candidates is the frame's own quantized feature?

    A distractor with the same codes as the frame itself is not counted: nothing tells the two apart.

    Args:
        predicted, quantized: (batch, frame, dim).
        codes: (batch, frame, group).
        mask: bool (batch, frame).
        distractors: (batch, frame, n), places in the flattened (batch * frame).
    """
    own = mask.flatten().nonzero()  # (masked, 1) places
    candidates = torch.cat([own, distractors[mask]], 1)  # (masked, 1 + n)
    asked = F.normalize(predicted[mask].float(), dim=-1)
    every = F.normalize(quantized.float(), dim=-1).flatten(0, 1)
    # All with all, as one product: less work than gathering the vectors of n distractors. Not rounded to bfloat16.
    with torch.autocast(asked.device.type, enabled=False):
        scores = (asked @ every.T).gather(1, candidates) / temperature
    is_same = (codes.flatten(0, 1)[candidates] == codes[mask][:, None]).all(-1)
    is_same[:, 0] = False
    scores = scores.masked_fill(is_same, float("-inf"))
    return F.cross_entropy(scores, torch.zeros_like(own[:, 0]), reduction="sum")


class Wav2Vec2ForPreTraining(PreTrainedModel):
    """Wav2Vec2 with the quantizer and both projections: (batch, sample) to the losses of pre-training."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.dropout_features = nn.Dropout(config.feat_quantizer_dropout)
        self.quantizer = GumbelVectorQuantizer(config)
        self.project_hid = nn.Linear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = nn.Linear(config.codevector_dim, config.proj_codevector_dim)

    def set_gumbel_temperature(self, temperature: float) -> None:
        self.quantizer.temperature = temperature

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> PreTrainingOutput | tuple[Any, ...]:
        """Projections of every frame, and the losses where distractors are given.

        Args:
            input_values, attention_mask: as in `Wav2Vec2Model.forward`.
            mask_time_indices: (batch, frame), true for the frames to hide and to predict (`core.masking.mask_spans`).
            sampled_negative_indices: (batch, frame, n), from `sample_distractors`.
            return_dict: False gives the same values as a tuple, the total loss first, without those that are None.

        Raises:
            ValueError: distractors without a mask, or as in `Wav2Vec2Model.forward`.
        """
        if sampled_negative_indices is not None and mask_time_indices is None:
            raise ValueError("Expected mask_time_indices with sampled_negative_indices. Found: None")
        mask = None if mask_time_indices is None else mask_time_indices.bool()
        encoded = self.wav2vec2(
            input_values,
            attention_mask,
            mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        predicted = self.project_hid(encoded.last_hidden_state)
        vectors, used, codes = self.quantizer(self.dropout_features(encoded.extract_features), mask)
        quantized = self.project_q(vectors.to(self.project_q.weight.dtype))
        loss = contrastive = diversity = None
        if mask is not None and sampled_negative_indices is not None:
            config = self.config
            contrastive = contrastive_loss(
                predicted,
                quantized,
                codes,
                mask,
                sampled_negative_indices.long(),
                config.contrastive_logits_temperature,
            )
            n_codes = config.num_codevectors_per_group * config.num_codevector_groups
            diversity = (n_codes - used) / n_codes * mask.sum()
            loss = contrastive + config.diversity_loss_weight * diversity
        output = PreTrainingOutput(
            predicted, quantized, used, loss, contrastive, diversity, encoded.hidden_states, encoded.attentions
        )
        if return_dict:
            return output
        values = (loss, predicted, quantized, used, encoded.hidden_states, encoded.attentions, contrastive, diversity)
        return tuple(value for value in values if value is not None)
