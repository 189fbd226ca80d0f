"""The published sizes with random weights: neither time nor memory depends on what weights say."""

from __future__ import annotations

from pathlib import Path

import torch

from core.checkpoint import resolve, save_model
from core.configuration import Wav2Vec2Config
from core.tokenizer import Wav2Vec2Tokenizer
from core.wav2vec2 import Wav2Vec2ForCTC

LARGE = Wav2Vec2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    conv_bias=True,
    do_stable_layer_norm=True,
)
CONFIGS = {"base": Wav2Vec2Config(), "large": LARGE}


def random_model(size: str) -> Wav2Vec2ForCTC:
    """The same each time."""
    torch.manual_seed(0)
    return Wav2Vec2ForCTC(CONFIGS[size])


def save_random(size: str, model: str, directory: Path) -> None:
    """A checkpoint of that size with the tokenizer of `model`, and without a language model."""
    save_model(random_model(size), directory, dtype=torch.float16)
    Wav2Vec2Tokenizer.from_pretrained(resolve(model)).save_pretrained(directory)
