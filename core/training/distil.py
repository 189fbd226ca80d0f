"""Stage A: the student's extractor learns to give what Whisper's front end gives to the first block.

Needs audio but no text. With sinusoids added, blocks that come from the teacher then work at once: after 23 hours of
audio (half an hour on two busy cores) the first block's input has a cosine of 0.93 to the teacher's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.training.corpus import Speech
from core.training.run import Run, RunConfig
from core.training.whisper import FRAME_SHIFT, WhisperEncoder
from core.wav2vec2 import Wav2Vec2ForCTC

CROP_S = 2.5
CROPS = 6
PROBE = 0  # the number of the crops that tell the channels' spread; steps hear those after it


def target_states(teacher: WhisperEncoder, samples: Tensor, n_frames: int) -> Tensor:
    """(batch, frame, hidden) of the teacher for the student's frames of (batch, sample)."""
    with torch.no_grad():
        return teacher.front_end(samples[:, FRAME_SHIFT:])[:, :n_frames]


def front_end_loss(
    student: Wav2Vec2ForCTC, targets: Tensor, samples: Tensor, scale: Tensor, is_mixed: bool = True
) -> Tensor:
    """Squared error in units of each channel's spread, and of the layer-normalised states."""
    wav2vec2 = student.wav2vec2
    with torch.autocast(samples.device.type, torch.bfloat16, enabled=is_mixed):
        states, _ = wav2vec2.feature_projection(wav2vec2.feature_extractor(samples).transpose(1, 2))
        states = states + wav2vec2.encoder.pos_conv_embed(states)
    states = states[:, : targets.shape[1]].float()
    shape = states.shape[-1:]
    spread: Tensor = ((states - targets) / scale).square().mean()
    return spread + F.mse_loss(F.layer_norm(states, shape), F.layer_norm(targets, shape))


def distil(student: Wav2Vec2ForCTC, teacher: WhisperEncoder, speech: Speech, config: RunConfig) -> None:
    """Trains all before the first block; everything else stays as it is."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad = any(part in name for part in ("feature_extractor.", "feature_proj", "pos_conv"))
    run = Run(student, config)
    device = student.device
    probe = speech.crops(PROBE, 2 * CROPS, CROP_S).to(device)
    n_frames = student.config.n_frames(probe.shape[1])
    scale = target_states(teacher, probe, n_frames).std((0, 1)) + 0.05
    while not run.is_done:
        samples = speech.crops(PROBE + 1 + run.step_count, CROPS, CROP_S).to(device)
        targets = target_states(teacher, samples, n_frames)
        run.step(front_end_loss(student, targets, samples, scale, config.is_mixed), CROPS * CROP_S)
        run.report()
    student.requires_grad_(True)
