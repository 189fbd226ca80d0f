"""The architecture of `streamer-en`, and how its extractor starts.

Whisper's blocks are taken over whole; in front of them convolutions hear the waveform: windows of 10 ms every 5 ms
(a learned filter bank), then twice two neighbours into one, with a layer of single frames between. Frames keep the hop
of 320 and the receptive field of 400 samples of the published models, at a tenth of their cost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from core.audio import SAMPLE_RATE
from core.configuration import Wav2Vec2Config
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.whisper import WhisperEncoder, copy_blocks
from core.wav2vec2 import ConvLayer, Wav2Vec2ForCTC

# The vocabulary of the wav2vec2-base-960h checkpoint: every tool for it fits.
VOCABULARY = "<pad> <s> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z".split()
PHASES = 4  # filters a band, a quarter of a wave apart, so that their rectified sum follows the band's level


def student_config(blocks: Wav2Vec2Config) -> Wav2Vec2Config:
    """The student's settings around the blocks of `blocks`."""
    return replace(
        blocks,
        vocab_size=len(VOCABULARY),
        feat_extract_norm="layer",
        conv_bias=True,
        conv_dim=(512,) * 6,
        conv_kernel=(160, 1, 2, 1, 2, 1),
        conv_stride=(80, 1, 2, 1, 2, 1),
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


def start_as_filter_bank(conv: nn.Conv1d) -> None:
    """Fills a first convolution with Gabor filters, mel-spaced from 80 to 7600 Hz, high ones louder."""
    n, _, taps = conv.weight.shape
    mels = np.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 7600 / 700), n // PHASES)
    centres = 700 * (10 ** (mels / 2595) - 1)  # Hz
    times = (np.arange(taps) - (taps - 1) / 2) / SAMPLE_RATE  # s
    window = np.hanning(taps + 2)[1:-1]
    with torch.no_grad():
        for band, centre in enumerate(centres):
            envelope = np.exp(-0.5 * (2 * times * np.clip(0.2 * centre, 100, 600)) ** 2) * window
            gain = (1 + centre / 500) / np.sqrt(np.square(envelope).sum())
            for phase in range(PHASES):
                wave = gain * envelope * np.cos(2 * np.pi * centre * times + phase * np.pi / 2)
                conv.weight[PHASES * band + phase, 0] = torch.from_numpy(wave)


def make_student(teacher: WhisperEncoder, blocks: Wav2Vec2Config) -> Wav2Vec2ForCTC:
    """An untrained student around the teacher's blocks."""
    model = Wav2Vec2ForCTC(student_config(blocks))
    copy_blocks(teacher, model.wav2vec2)
    first = model.wav2vec2.feature_extractor.conv_layers[0]
    assert isinstance(first, ConvLayer)
    start_as_filter_bank(first.conv)
    # The sinusoids tell positions; the positional convolution is for what Whisper's wider windows hear.
    positional = model.wav2vec2.encoder.pos_conv_embed.conv
    with torch.no_grad():
        positional.weight = positional.weight * 0.3
    return model
