"""An acoustic model that reads planted text out of the samples: every frame's first sample is its token.

Real frames come from a network that sees context; here the edges of a window can be made unsure, and spikes
be moved, on purpose, so that the engine and the stitcher can be tried against a known truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from core.audio import HOP, RECEPTIVE_FIELD, Samples, n_frames, n_samples_for
from core.decoder import Alphabet

TOKENS = ("_", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'")
ALPHABET = Alphabet(TOKENS, 0, 1)


def plant(text: str, gap: int = 2, tail: int = 0) -> Samples:
    """Samples whose frames spell `text`: a letter is one frame, then `gap` blanks; `~` is a second of silence."""
    ids: list[int] = []
    for letter in text:
        if letter == "~":
            ids += [0] * 50
        else:
            ids += [TOKENS.index("|" if letter == " " else letter)] + [0] * gap
    ids += [0] * tail
    samples = np.zeros(n_samples_for(len(ids)), np.float32)
    for frame, token in enumerate(ids):
        samples[HOP * frame] = token / 64
        # Letters sound, silence does not.
        samples[HOP * frame + 1 : HOP * (frame + 1)] = 0.2 if token > 1 else 0.0
    return samples


@dataclass
class PlantedModel:
    """Duck-typed `AcousticModel`. `edge`: frames at a window's end (not the stream's) that read as blank.

    `jitter`: letters of a window move by this many frames, in a direction that depends on the window.
    """

    edge: int = 0
    jitter: int = 0
    lengths: list[int] = field(default_factory=list)
    hop: int = HOP
    receptive_field: int = RECEPTIVE_FIELD
    halo: int = 0
    name: str = "planted"
    confidence_exponent: float = 1.0
    n_features: int = 0
    n_local_features: int = 0
    normalises: bool = False
    n_slots: int = 0
    alphabet: Alphabet = ALPHABET
    tokenizer: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(do_normalize=False))
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(extra={}))
    model: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(device=torch.device("cpu")))

    def statistics(self, is_running: bool = False) -> None:
        """It normalises nothing."""

    def reserve(self, n_streams: int) -> None:
        """Needs no room."""

    def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
        self.lengths.append(len(windows))
        return [self.read(window) for window in windows]

    def read(self, window: Samples) -> np.ndarray:
        n = max(1, n_frames(len(window)))
        padded = np.zeros(max(len(window), n_samples_for(n)), np.float32)
        padded[: len(window)] = window
        ids = np.rint(padded[: HOP * n : HOP] * 64).astype(int)
        if self.jitter:
            move = self.jitter if len(window) % 3 else -self.jitter
            letters = np.flatnonzero(ids > 1)
            moved = np.where(ids > 1, 0, ids)
            for at in letters:
                to = at + move
                if 0 <= to < n and moved[to] == 0:
                    moved[to] = ids[at]
                else:
                    moved[at] = ids[at]
            ids = moved
        log_probs = np.full((n, len(TOKENS)), np.log(0.02 / (len(TOKENS) - 1)), np.float32)
        log_probs[np.arange(n), ids] = np.log(0.98)
        if self.edge:
            log_probs[-self.edge :] = np.log(0.3 / (len(TOKENS) - 1))
            log_probs[-self.edge :, 0] = np.log(0.7)
        return log_probs
