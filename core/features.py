"""Utterances as model input: checked, zero mean and unit variance, padded to one length.

The steps of `Wav2Vec2Tokenizer.__call__`, which holds a checkpoint's settings for them. Left out: cutting long
utterances, padding on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.audio import Samples, check_samples

PADDINGS = (False, True, "longest", "max_length", "do_not_pad")
VARIANCE_FLOOR = 1e-7  # as published checkpoints were fed; keeps silence finite

RawSpeech = NDArray[Any] | Tensor | Sequence[float] | Sequence[NDArray[Any]] | Sequence[Sequence[float]]
Values = list[NDArray[Any]] | NDArray[Any] | Tensor


class AudioFeatures(dict[str, Values]):
    """Model input: `model(**features)`. A list of arrays, or one (batch, sample) array or tensor."""

    @property
    def input_values(self) -> Values:
        """float32 (batch, sample)."""
        return self["input_values"]

    @property
    def attention_mask(self) -> Values | None:
        """int32 (batch, sample), 1 for audio and 0 for padding; None where the checkpoint wants none."""
        return self.get("attention_mask")


def check_call(
    padding: bool | str, max_length: int | None, pad_to_multiple_of: int | None, return_tensors: str | None
) -> None:
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(map(repr, PADDINGS))}. Found: {padding!r}")
    if padding == "max_length" and max_length is None:
        raise ValueError("padding='max_length' needs max_length, in samples")
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of must be at least 1. Found: {pad_to_multiple_of}")
    if return_tensors == "tf":
        raise ValueError("TensorFlow tensors are not made here: return_tensors must be 'pt', 'np' or None. Found: 'tf'")
    if return_tensors not in (None, "pt", "np"):
        raise ValueError(f"return_tensors must be 'pt', 'np' or None. Found: {return_tensors!r}")


def split_utterances(raw_speech: RawSpeech) -> list[Samples]:
    """One float32 vector an utterance, checked: mono, not empty, finite."""
    if len(raw_speech) == 0:
        raise ValueError("Expected at least one sample. Found none")
    utterances = list(raw_speech) if np.ndim(raw_speech[0]) else [raw_speech]
    vectors = [check_samples(np.asarray(x, dtype=np.float32)) for x in utterances]
    for i, x in enumerate(vectors):
        if not len(x):
            raise ValueError(f"Expected at least one sample in each utterance. Found none in utterance {i}")
    return vectors


def normalize(samples: Samples) -> Samples:
    """Zero mean and unit variance over all samples of one utterance."""
    normed: Samples = (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)
    return normed


def padded_lengths(
    lengths: list[int], padding: bool | str, max_length: int | None, pad_to_multiple_of: int | None
) -> list[int]:
    """The length of each utterance after padding; longer ones keep theirs."""
    if padding is False or padding == "do_not_pad":
        return lengths
    target = max_length if padding == "max_length" and max_length is not None else max(lengths)
    multiple = pad_to_multiple_of or 1
    target = -(-target // multiple) * multiple
    return [max(n, target) for n in lengths]


def as_tensors(rows: list[NDArray[Any]], kind: str | None) -> Values:
    if kind is None:
        return rows
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(f"Utterances of {lengths} samples make no tensor: padding=True makes them equal")
    stacked = np.stack(rows)
    return torch.from_numpy(stacked) if kind == "pt" else stacked
