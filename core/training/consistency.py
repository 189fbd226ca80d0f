"""Windows of a stream shall read as the whole does: a loss for the frames of cuts.

A model that was trained on whole utterances spells differently near the edges of a window. Here a batch's projected
features, which depend on their own samples alone where norms are per frame, go through the encoder once more, cut to
one window; its frames are drawn towards those of the whole, which stay where they are (self-distillation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.wav2vec2 import Wav2Vec2ForCTC

STEADY = (150, 200, 300)  # frames of a window amid speech
YOUNG = (50, 200)  # least and most frames at the beginning of a stream
RIGHT = (10, 12, 25, 50)  # frames at a window's end that know too little of what follows
SETTLING = 50  # frames at a window's beginning that know too little of what came before
SCALE = 3.3  # frames a letter, about: the loss is of the size of CTC's, which is counted by letter


def choose_window(n_frames: int) -> tuple[int, int] | None:
    """First frame and the one after the last; None where all are too few. Of three windows one begins a stream."""
    least, most = YOUNG[0], min(n_frames - 20, max(STEADY))
    if most <= least:
        return None
    if float(torch.rand(())) < 1 / 3:
        return 0, int(torch.randint(least, min(most, YOUNG[1]) + 1, ()))
    length = min(most, STEADY[int(torch.randint(len(STEADY), ()))])
    start = int(torch.randint(n_frames - length + 1, ()))
    return start, start + length


def weights(start: int, end: int, n_frames: int) -> Tensor:
    """(frame,) how much each frame of a window counts: less towards edges that are not the utterance's own."""
    weight = torch.ones(end - start)
    if end < n_frames:
        right = RIGHT[int(torch.randint(len(RIGHT), ()))]
        weight[-right:] = torch.linspace(1, 0, right) ** 2
    if start > 0:
        n = min(SETTLING, end - start)
        weight[:n] *= torch.linspace(0, 1, SETTLING)[:n]
    return weight


def window_divergence(model: Wav2Vec2ForCTC, hidden: Tensor, logits: Tensor, n_frames: int) -> Tensor:
    """Kullback-Leibler divergence of a random window's frames from the whole's, per letter.

    Args:
        hidden: (batch, frame, hidden) projected features.
        logits: (batch, frame, vocab) of the whole.
        n_frames: that every utterance of the batch has.
    """
    window = choose_window(n_frames)
    if window is None:
        return logits.new_zeros(())
    start, end = window
    states = model.wav2vec2.encoder(hidden[:, start:end], None, False, False)[0]
    return divergence(model.lm_head(states).float(), logits, start, n_frames)


def divergence(of_window: Tensor, of_whole: Tensor, start: int, n_frames: int) -> Tensor:
    """Of a window's logits (batch, frame, vocab), whose first frame is `start`, from the whole's."""
    end = start + of_window.shape[1]
    log_probs, targets = of_window.log_softmax(-1), of_whole[:, start:end].detach().float().log_softmax(-1)
    by_frame = (targets.exp() * (targets - log_probs)).sum(-1)
    weight = weights(start, end, n_frames).to(by_frame.device)
    result: Tensor = SCALE * (by_frame * weight).sum() / (weight.sum() * len(by_frame))
    return result
