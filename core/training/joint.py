"""A CTC model and its rescorer, trained at once.

The rescorer reads the encoder's states, so that both losses shape the lower blocks, as in the hybrid of CTC and
attention (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition"); now and then
windows shall read as the whole does (`core.training.consistency`). Made for a GPU, where batches are made as well
(`core.training.rows`): streamer-en heard 473 hours in four minutes of an H200. A processor does the same, slowly.

What a large model brought along is easily lost on a few hours of speech: with the lower blocks of Whisper as they were
before such a training, its own upper blocks made fewer errors than with those that were trained beside them. So the
lower half stays as it is by default. And a decoder that never knew dropout is thrown far off by it: none by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.rescorer import Rescorer
from core.training import rescoring
from core.training.augment import Augment
from core.training.consistency import window_divergence
from core.training.finetune import freeze, set_dropout
from core.training.rows import Plan, Rows, normalize_rows, render
from core.training.run import Run, RunConfig
from core.training.spectrogram import N_LAYERS, SpectrogramAugment, is_log_mel
from core.wav2vec2 import Wav2Vec2ForCTC

# Without cuDNN's, which plans for a quarter of a second for each length that it has not met.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
SCENES = Augment(noise_chance=0.4, speed=(0.85, 1.15), speed_chance=0.6, room_chance=0.12, telephone_chance=0.08)


@dataclass(frozen=True, slots=True)
class JointConfig:
    reading_weight: float = 0.5  # of the rescorer's cross-entropy beside the CTC loss
    consistency: float = 0.25  # share of the steps that also hold a window's frames against the whole's
    lower_rate: float = 0.0  # share of the learning rate of all up to the block that the rescorer reads after
    rescorer_rate: float = 0.4  # the same of the rescorer
    dropout: float = 0.1  # in the blocks above that one
    lower_dropout: float = 0.0  # up to it
    rescorer_dropout: float = 0.0

    def __post_init__(self) -> None:
        shares = self.consistency, self.dropout, self.lower_dropout, self.rescorer_dropout
        if not (0 <= min(shares) and max(shares) <= 1):
            raise ValueError(f"Expected consistency and dropouts from 0 to 1. Found: {shares}")
        factors = self.reading_weight, self.lower_rate, self.rescorer_rate
        if min(factors) < 0:
            raise ValueError(f"Expected a weight and rates of at least 0. Found: {factors}")

    def rates(self, n_blocks: int) -> dict[str, float]:
        """By what names of the parameters hold."""
        blocks = (f"encoder.layers.{i}." for i in range(n_blocks))
        lower = ("feature_extractor.", "feature_projection.", "pos_conv_embed.", *blocks)
        return {"rescorer.": self.rescorer_rate} | dict.fromkeys(lower, self.lower_rate)


class Joint(nn.Module):
    """Both networks, made ready to be trained."""

    def __init__(self, model: Wav2Vec2ForCTC, rescorer: Rescorer, config: JointConfig) -> None:
        super().__init__()
        self.model, self.rescorer, self.config = model, rescorer, config
        set_dropout(model, config.dropout)
        set_dropout(model, config.lower_dropout, rescorer.config.n_blocks)
        rescoring.set_dropout(rescorer, config.rescorer_dropout)
        self.requires_grad_(True)
        if not config.lower_rate:
            freeze(model, rescorer.config.n_blocks)
        if is_log_mel(model.config):
            model.wav2vec2.feature_extractor.conv_layers[:N_LAYERS].requires_grad_(False)

    def project(self, samples: Tensor, augment: SpectrogramAugment | None) -> Tensor:
        """(row, sample) to projected features (row, frame, hidden); a log-mel on the way is changed."""
        network = self.model.wav2vec2
        x, layers = samples[:, None], list(network.feature_extractor.conv_layers)
        if is_log_mel(self.model.config):
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                for layer in layers[:N_LAYERS]:
                    x = layer(x)
                x = augment(x) if augment else x
            layers = layers[N_LAYERS:]
        for layer in layers:
            x = layer(x)
        hidden, _ = network.feature_projection(x.transpose(1, 2))
        return torch.as_tensor(hidden)

    def losses(
        self, samples: Tensor, plan: Plan, is_mixed: bool = True, augment: SpectrogramAugment | None = None
    ) -> dict[str, Tensor]:
        """Those of a rendered batch by name, `consistency` only where it was its turn."""
        model, rescorer, device = self.model, self.rescorer, samples.device
        counts = [model.config.n_frames(int(n)) for n in plan.n_samples]
        n_frames = torch.tensor(counts, device=device)
        read, said = rescorer.batch([rescorer.pieces.encode(text) for text in plan.texts])
        losses: dict[str, Tensor] = {}
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            hidden = self.project(samples, augment)
            mask = torch.arange(hidden.shape[1], device=device) < n_frames[:, None]
            masked = model.wav2vec2.mask_hidden(hidden, None, mask)
            last, states, _ = model.wav2vec2.encoder(masked, mask, False, True)
            logits = model.lm_head(model.dropout(last)).float()
            state = states[rescorer.config.n_blocks].float()
            following = rescorer(state, read.to(device), mask[:, None, None]).float()
            losses["reading"] = F.cross_entropy(following.flatten(0, 1), said.flatten().to(device))
            if float(torch.rand(())) < self.config.consistency:
                with sdpa_kernel(KERNELS):
                    losses["consistency"] = window_divergence(model, hidden, logits, min(counts))
        losses["ctc"] = model.ctc_loss_of(logits, plan.labels.to(device), n_frames)
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {"reading": self.config.reading_weight}
        return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def train_jointly(joint: Joint, rows: Rows, config: RunConfig) -> None:
    """Trains both on the device where they are."""
    run = Run(joint, config, ["ctc", "reading", "consistency"])
    device = joint.model.device
    reel, noise = rows.reel().to(device), torch.from_numpy(rows.augment.noise).to(device)
    augment = SpectrogramAugment()
    joint.train()
    for plan in rows.plans(run.step_count):
        if run.is_done:
            break
        samples = plan.scene(render(reel, plan, rows.n_samples), plan.n_samples, noise)
        if rows.tokenizer.do_normalize:
            samples = normalize_rows(samples, plan.n_samples)
        losses = joint.losses(samples, plan, config.is_mixed, augment)
        run.step(joint.total(losses), plan.seconds, **{name: loss.detach() for name, loss in losses.items()})
        run.report()
    run.finish()
    joint.eval()
