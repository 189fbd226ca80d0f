"""Stage A: a student that hears as a Whisper encoder does.

Blocks and convolutions are the teacher's (`core.training.student`), so all that is left to find is the projection
between them, which has to undo the layer norm before it: by least squares over some minutes of any audio, without text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.training.corpus import Speech
from core.training.whisper import FRAME_SHIFT, WhisperEncoder
from core.wav2vec2 import Wav2Vec2ForCTC

CROP_S = 5.0
CROPS = 8  # heard at once
RIDGE = 1e-5  # of each channel's variance, which is one


@dataclass(frozen=True, slots=True)
class Likeness:
    """Mean cosines between student and teacher, over frames that neither hears an edge in."""

    first: float  # of what the first block is given
    last: float  # of the last states

    def __str__(self) -> str:
        return f"cosine to the teacher's block input {self.first:.4f}, to its last states {self.last:.4f}"


@torch.no_grad()
def fit_projection(student: Wav2Vec2ForCTC, speech: Speech, n_steps: int) -> None:
    """Sets the projection so that the first block is given what the convolutions say; hears `n_steps` times 40 s."""
    network = student.wav2vec2
    projection = network.feature_projection.projection
    d = projection.in_features
    square = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    product = torch.zeros(d + 1, projection.out_features, dtype=torch.float64)
    n = 0
    for number in range(n_steps):
        features = network.feature_extractor(speech.crops(number, CROPS, CROP_S).to(student.device))
        targets = features.transpose(1, 2).flatten(0, 1)
        normed = F.pad(network.feature_projection.layer_norm(targets), (0, 1), value=1.0).double().cpu()
        square += normed.T @ normed
        product += normed.T @ targets.double().cpu()
        n += len(targets)
    square += RIDGE * n * torch.eye(d + 1, dtype=torch.float64)
    solution = torch.linalg.solve(square, product).to(projection.weight)
    projection.weight.copy_(solution[:-1].T)
    projection.bias.copy_(solution[-1])


@torch.no_grad()
def likeness(student: Wav2Vec2ForCTC, teacher: WhisperEncoder, samples: Tensor) -> Likeness:
    """Of (batch, sample)."""
    first, last = teacher(samples[:, FRAME_SHIFT:])
    network = student.wav2vec2
    hidden, _ = network.embed(samples)
    states = network.encoder(hidden)[0]
    inner = slice(2, min(hidden.shape[1], first.shape[1]) - 2)
    cosines = [F.cosine_similarity(a[:, inner], b[:, inner], dim=-1) for a, b in ((hidden, first), (states, last))]
    return Likeness(*(float(cosine.mean()) for cosine in cosines))


def distil(student: Wav2Vec2ForCTC, teacher: WhisperEncoder, speech: Speech, n_steps: int) -> Likeness:
    """Fits the projection, and says how much the student, on audio that it was not fitted on, is like the teacher."""
    fit_projection(student, speech, n_steps)
    return likeness(student, teacher, speech.crops(n_steps, CROPS, CROP_S).to(student.device))
