"""Self-supervised pre-training on audio without text, as in the paper (Baevski et al. 2020, section 4.2).

The Gumbel temperature falls over the run, the extractor gets a tenth of its gradients, and losses are taken per
masked frame, so that batches of any size weigh alike. Beyond the paper, which has 400,000 updates to get there: a new
quantizer starts from the data (`start_from_data`).

Chance is a contrastive loss of log(1 + distractors) = 4.62. A loss that falls together with the perplexity is no
progress but collapse: distractors with the codes of the frame itself do not count. The perplexity that is logged is of
one batch, whose few frames bound it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.audio import SAMPLE_RATE
from core.configuration import Wav2Vec2Config
from core.features import VARIANCE_FLOOR
from core.masking import mask_spans
from core.pretraining import (
    PreTrainingOutput,
    Wav2Vec2ForPreTraining,
    sample_distractors,
    scale_gradient,
    temperature_at,
)
from core.training.corpus import Speech
from core.training.run import Run, RunConfig

LOGIT_SPREAD = 12.0  # standard deviation over frames: choices follow the features, not the Gumbel noise
QUANTIZER_RATE = 10.0  # of the learning rate: weights of that spread are about ten times those of other layers
PROBES = 4  # batches that a new quantizer starts from
METRICS = ("contrastive", "diversity", "perplexity", "temperature")

# The extractor of `streamer-en`, a tenth of the paper's cost, before a small encoder: for a CPU.
SMALL = Wav2Vec2Config(
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    conv_dim=(256, 256, 256),
    conv_kernel=(160, 2, 2),
    conv_stride=(80, 2, 2),
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=64,
    layerdrop=0.0,
    diversity_loss_weight=0.3,
    ctc_loss_reduction="mean",
    ctc_zero_infinity=True,
)
SIZES = {"small": SMALL, "base": Wav2Vec2Config(layerdrop=0.05, ctc_loss_reduction="mean", ctc_zero_infinity=True)}


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    batch_s: float = 60.0  # seconds of audio a step
    max_s: float = 15.6  # longest crop of an utterance, as in the paper
    mask_prob: float = 0.65  # frames masked if spans did not overlap: about half are
    mask_length: int = 10  # frames
    extractor_gradient: float = 0.1  # 0: the extractor stays as it is
    normalize: bool = True  # waveforms to unit variance

    def min_s(self, config: Wav2Vec2Config) -> float:
        """The shortest utterance that has room for two spans."""
        return ((2 * self.mask_length - 1) * config.hop + config.receptive_field) / SAMPLE_RATE


def masked_loss(
    model: Wav2Vec2ForPreTraining, samples: Tensor, config: PretrainConfig, is_mixed: bool = True
) -> tuple[Tensor, Tensor]:
    """The loss per masked frame of (batch, sample), and its contrastive part, diversity part and perplexity."""
    B, T = len(samples), model.config.n_frames(samples.shape[1])  # batch, frame
    mask = mask_spans([T] * B, T, config.mask_prob, config.mask_length, min_masks=2)
    distractors = sample_distractors(mask, model.config.num_negatives)
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        output = model(
            samples.to(device), mask_time_indices=mask.to(device), sampled_negative_indices=distractors.to(device)
        )
    assert isinstance(output, PreTrainingOutput)
    assert output.loss is not None and output.contrastive_loss is not None and output.diversity_loss is not None
    n_masked = int(mask.sum())
    parts = torch.stack([output.contrastive_loss, output.diversity_loss, output.codevector_perplexity * n_masked])
    return output.loss / n_masked, parts.detach() / n_masked


def standardize(samples: Tensor) -> Tensor:
    """Each row of (batch, sample) to zero mean and unit variance, as checkpoints with `do_normalize` are fed."""
    variance, mean = torch.var_mean(samples, 1, keepdim=True, correction=0)
    return (samples - mean) / (variance + VARIANCE_FLOOR).sqrt()


def batch(speech: Speech, number: int, settings: PretrainConfig) -> Tensor:
    samples = speech.passages(number, settings.batch_s, settings.max_s)
    return standardize(samples) if settings.normalize else samples


@torch.no_grad()
def start_from_data(model: Wav2Vec2ForPreTraining, batches: Sequence[Tensor]) -> None:
    """Makes the choices of a new quantizer tell frames apart.

    Features have a large mean, which would choose the same few codes for all frames; it is taken from the logits, whose
    spread is set. Codevectors lose their common mean, without which all targets point one way, and a masked frame
    starts as the mean of all frames.
    """
    model.eval()
    wav2vec2, quantizer = model.wav2vec2, model.quantizer
    pairs = [wav2vec2.feature_projection(wav2vec2.feature_extractor(x.to(model.device)).mT) for x in batches]
    hidden, features = (torch.cat([pair[i].flatten(0, 1) for pair in pairs]) for i in range(2))
    weight = quantizer.weight_proj.weight
    weight.mul_(LOGIT_SPREAD / (features @ weight.T).std(0).mean())
    quantizer.weight_proj.bias.copy_(-(features @ weight.T).mean(0))
    quantizer.codevectors.sub_(quantizer.codevectors.mean())
    wav2vec2.masked_spec_embed.copy_(hidden.mean(0))


def pretrain(
    model: Wav2Vec2ForPreTraining, speech: Speech, config: RunConfig, settings: PretrainConfig, is_new: bool = True
) -> None:
    """Trains `model`; `is_new` says that its quantizer has not been trained."""
    if is_new:
        start_from_data(model, [batch(speech, config.steps + i, settings) for i in range(PROBES)])
    extractor = model.wav2vec2.feature_extractor.requires_grad_(settings.extractor_gradient > 0)
    run = Run(model, replace(config, encoder_rate=1.0, quantizer_rate=QUANTIZER_RATE), METRICS)
    model.train()
    scaling = scale_gradient(extractor, settings.extractor_gradient)
    while not run.is_done:
        temperature = temperature_at(run.step_count, config.steps)
        model.set_gumbel_temperature(temperature)
        samples = batch(speech, run.step_count, settings)
        seconds = samples.numel() / SAMPLE_RATE
        loss, parts = masked_loss(model, samples, settings, config.is_mixed)
        contrastive, diversity, used = parts.tolist()
        run.step(loss, seconds, contrastive=contrastive, diversity=diversity, perplexity=used, temperature=temperature)
        run.report()
    scaling.remove()
    extractor.requires_grad_(True)
    model.eval()
