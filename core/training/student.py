"""The architecture of `streamer-en`, and how it starts.

Whisper's blocks are taken over whole, and what they were trained on comes before them as convolutions of the waveform:
a spectrum (cosines and sines under a Hann window, squared), mel bands of it and their logarithms, then Whisper's own
two convolutions. Frames keep the hop of 320 and the receptive field of 400 samples of the published models, and two
neighbours on either side; the whole costs a tenth of their extractors.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from core.configuration import Wav2Vec2Config
from core.extractor import ConvLayer
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.whisper import MEL_HOP, N_FFT, WhisperEncoder, copy_blocks, mel_filters
from core.wav2vec2 import Wav2Vec2ForCTC

# The vocabulary of the wav2vec2-base-960h checkpoint: every tool for it fits.
VOCABULARY = "<pad> <s> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z".split()
N_MELS = 80


def student_config(blocks: Wav2Vec2Config) -> Wav2Vec2Config:
    """The student's settings around the blocks of `blocks`."""
    return replace(
        blocks,
        vocab_size=len(VOCABULARY),
        feat_extract_norm="none",
        conv_bias=True,
        conv_dim=(N_FFT, N_MELS, blocks.hidden_size, blocks.hidden_size),
        conv_kernel=(N_FFT, 1, 3, 3),
        conv_stride=(MEL_HOP, 1, 1, 2),
        conv_padding=(0, 0, 1, 1),
        conv_activation=("square", "log", "gelu", "gelu"),
        num_conv_pos_embeddings=16,
        add_sinusoids=True,
        layerdrop=0.0,
        final_dropout=0.0,
        mask_time_prob=0.0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )


def make_tokenizer(do_normalize: bool = False) -> Wav2Vec2Tokenizer:
    """Letters; the waveform goes in as it is, so that windows of one stream agree without statistics."""
    return Wav2Vec2Tokenizer({token: i for i, token in enumerate(VOCABULARY)}, do_normalize=do_normalize)


def spectrum() -> Tensor:
    """(N_FFT, N_FFT) filters: cosines of each frequency, then sines of all but the first and the last."""
    times = torch.arange(N_FFT, dtype=torch.float64)
    angles = 2 * math.pi * torch.outer(times[: N_FFT // 2 + 1], times) / N_FFT
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    return (torch.cat([angles.cos(), angles[1:-1].sin()]) * window).float()


def fit(conv: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    assert isinstance(conv, nn.Conv1d) and conv.bias is not None
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(torch.zeros_like(conv.bias) if bias is None else bias)


def make_student(teacher: WhisperEncoder, blocks: Wav2Vec2Config) -> Wav2Vec2ForCTC:
    """A student around the teacher's blocks, with its ears; only projection and head know nothing yet."""
    model = Wav2Vec2ForCTC(student_config(blocks))
    copy_blocks(teacher, model.wav2vec2)
    layers = [layer for layer in model.wav2vec2.feature_extractor.conv_layers if isinstance(layer, ConvLayer)]
    bands = mel_filters(N_MELS)
    fit(layers[0].conv, spectrum()[:, None])
    fit(layers[1].conv, torch.cat([bands, bands[:, 1:-1]], 1)[:, :, None])
    fit(layers[2].conv, teacher.conv1.weight, teacher.conv1.bias)
    fit(layers[3].conv, teacher.conv2.weight, teacher.conv2.bias)
    # The sinusoids tell positions; the positional convolution adds nothing until it is trained.
    positional = model.wav2vec2.encoder.pos_conv_embed.conv
    with torch.no_grad():
        positional.weight = positional.weight * 1e-3
        positional.bias.zero_()
    return model


def add_branch(model: Wav2Vec2ForCTC, teacher: WhisperEncoder, first: int) -> Wav2Vec2ForCTC:
    """`model`, whose blocks from `first` on are also told what the teacher's say; until it is trained, the same.

    The blocks before `first` are meant to be the teacher's, as `make_student` and `--freeze` leave them.

    Raises:
        ValueError: the blocks are of other sizes, `first` is none of the teacher's, or there is a branch already.
    """
    config, n_teacher = model.config, len(teacher.layers)
    if config.branch or not 0 <= first < min(n_teacher, config.num_hidden_layers):
        raise ValueError(
            f"Expected a model without a branch, and a block of both to leave from, below "
            f"{min(n_teacher, config.num_hidden_layers)}. Found: branch {config.branch}, block {first}"
        )
    ours, theirs = model.wav2vec2.encoder.layers, teacher.layers
    sizes = [{name: weight.shape for name, weight in blocks[0].state_dict().items()} for blocks in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"Expected a teacher with blocks of hidden size {config.hidden_size}. Found: others")
    n_layers = n_teacher + config.num_hidden_layers - first
    widened = Wav2Vec2ForCTC(replace(config, num_hidden_layers=n_layers, branch=(first, n_teacher)))
    widened.load_state_dict(model.state_dict(), strict=False)
    for i, layer in enumerate([*ours[:first], *theirs[first:], *ours[first:]]):
        widened.wav2vec2.encoder.layers[i].load_state_dict(layer.state_dict())
    branch = widened.wav2vec2.encoder.branch
    assert branch is not None
    nn.init.zeros_(branch.projection.weight)
    nn.init.zeros_(branch.projection.bias)
    return widened
