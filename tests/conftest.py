"""A tiny random checkpoint in hub layout, the real ones where they are, and a display."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.configuration import Wav2Vec2Config
from core.tokenizer import Wav2Vec2Tokenizer
from core.wav2vec2 import Wav2Vec2ForCTC

VOCABULARY = "<pad> <s> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z".split()
ASSETS = Path(__file__).parent.parent / "core" / "assets"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, loud enough that letters come out."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32, 32, 32),
        conv_kernel=(160, 2, 2),
        conv_stride=(80, 2, 2),
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
    )
    model = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        model.lm_head.weight *= 40
    model.save_pretrained(directory)
    Wav2Vec2Tokenizer({token: i for i, token in enumerate(VOCABULARY)}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real speech that ships with the package."""
    return ASSETS / "sample.wav"


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """The name of a virtual display, `:7`."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x720x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as file:
        number = file.readline().strip()
    assert number, "the display does not start"
    yield f":{number}"
    server.terminate()
    server.wait()
