"""The encoder of Whisper (Radford et al. 2022, https://arxiv.org/abs/2212.04356) as a teacher.

Its blocks are the Wav2Vec2 blocks with stable layer norm at the same frame rate, so their weights start
the student (`copy_blocks`), and its states are the student's targets. Weights are read from the
CTranslate2 `model.bin` that the package registry carries (MIT licence).
Left out: the decoder (`core.training.rescoring` takes that), and the padding to 30 s (the teacher sees the crop alone).
"""

from __future__ import annotations

import math
import struct
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.configuration import Wav2Vec2Config
from core.encoder import EncoderLayer
from core.wav2vec2 import Wav2Vec2Model

N_FFT, MEL_HOP = 400, 160  # samples
# A teacher's frame t is centred on sample 320 t, ours on 320 t + 200: it hears the crop from there.
FRAME_SHIFT = 200
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: str | Path) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 `model.bin` (format version 4 and later) by name."""
    data = Path(path).read_bytes()
    at = 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return int(value)

    def take_string() -> str:
        nonlocal at
        n = take("H")
        text = data[at : at + n].rstrip(b"\0").decode()
        at += n
        return text

    version = take("I")
    if version < 4:
        raise ValueError(f"Expected a CTranslate2 model of version 4 or later in {path}. Found: {version}")
    take_string(), take("I")  # name and revision of the specification
    variables: dict[str, np.ndarray] = {}
    for _ in range(take("I")):
        name = take_string()
        shape = [take("I") for _ in range(take("B"))]
        dtype = DTYPES[take("B")]
        n_bytes = take("I")
        variables[name] = np.frombuffer(data, dtype, n_bytes // np.dtype(dtype).itemsize, at).reshape(shape)
        at += n_bytes
    for _ in range(take("I")):  # aliases
        alias = take_string()
        variables[alias] = variables[take_string()]
    return variables


def variable(variables: dict[str, np.ndarray], name: str) -> Tensor:
    """One as float32, its integers scaled."""
    values = torch.from_numpy(np.array(variables[name])).float()
    scale = variables.get(name + "_scale")
    return values if scale is None else values / torch.from_numpy(np.array(scale)).float()[:, None]


def mel_filters(n_mels: int = 80, sample_rate: int = 16_000) -> Tensor:
    """(n_mels, N_FFT / 2 + 1) triangular filters on Slaney's mel scale, each of area one."""

    def to_hz(mel: np.ndarray) -> np.ndarray:
        linear = mel * 200 / 3
        return np.where(mel < 15, linear, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    top = 15 + 27 * math.log(sample_rate / 2 / 1000) / math.log(6.4)
    edges = to_hz(np.linspace(0, top, n_mels + 2))
    bins = np.linspace(0, sample_rate / 2, N_FFT // 2 + 1)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


class WhisperEncoder(nn.Module):
    """log-mel, two convolutions, sinusoids, blocks. All states are (batch, frame, hidden)."""

    filters: Tensor
    window: Tensor
    positions: Tensor

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        d = config.hidden_size
        self.conv1 = nn.Conv1d(80, d, 3, padding=1)
        self.conv2 = nn.Conv1d(d, d, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(d)
        self.register_buffer("filters", mel_filters())
        self.register_buffer("window", torch.hann_window(N_FFT))
        self.register_buffer("positions", torch.zeros(1500, d))

    def log_mel(self, samples: Tensor) -> Tensor:
        """(batch, sample) to (batch, 80, n_samples / 160)."""
        spectrum = torch.stft(samples, N_FFT, MEL_HOP, window=self.window, return_complex=True)[..., :-1]
        mel = (self.filters @ spectrum.abs().square()).clamp_min(1e-10).log10()
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4

    def front_end(self, samples: Tensor) -> Tensor:
        """(batch, sample) to the input of the first block, without the sinusoids."""
        x = F.gelu(self.conv1(self.log_mel(samples)))
        return F.gelu(self.conv2(x)).transpose(1, 2)

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the input of the first block (without sinusoids) and the normalised last state."""
        first = self.front_end(samples)
        x = first + self.positions[: first.shape[1]]
        for layer in self.layers:
            x, _ = layer(x, None, False)
        return first, self.layer_norm(x)


def load_teacher(path: str | Path) -> tuple[WhisperEncoder, Wav2Vec2Config]:
    """The frozen teacher, and the config of the blocks that a student takes over."""
    raw = {k.removeprefix("encoder/"): v for k, v in read_ctranslate2(path).items() if k.startswith("encoder/")}
    tensor = partial(variable, raw)
    n_layers = 1 + max(
        int(k.split("/")[0].removeprefix("layer_")) for k in raw if k.startswith("layer_") and k[6].isdigit()
    )
    d = tensor("layer_norm/gamma").shape[0]
    config = Wav2Vec2Config(
        hidden_size=d,
        num_hidden_layers=n_layers,
        num_attention_heads=d // 64,
        intermediate_size=4 * d,
        do_stable_layer_norm=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
    )
    state = {
        "conv1.weight": tensor("conv1/weight"),
        "conv1.bias": tensor("conv1/bias"),
        "conv2.weight": tensor("conv2/weight"),
        "conv2.bias": tensor("conv2/bias"),
        "positions": tensor("position_encodings/encodings"),
        "layer_norm.weight": tensor("layer_norm/gamma"),
        "layer_norm.bias": tensor("layer_norm/beta"),
    }
    for i in range(n_layers):
        ours, theirs = f"layers.{i}.", f"layer_{i}/"
        qkv, bias = tensor(theirs + "self_attention/linear_0/weight"), tensor(theirs + "self_attention/linear_0/bias")
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            state[f"{ours}attention.{name}.weight"] = qkv[part * d : (part + 1) * d]
            state[f"{ours}attention.{name}.bias"] = bias[part * d : (part + 1) * d]
        for a, b in (
            ("attention.out_proj", "self_attention/linear_1"),
            ("feed_forward.intermediate_dense", "ffn/linear_0"),
            ("feed_forward.output_dense", "ffn/linear_1"),
        ):
            state[f"{ours}{a}.weight"] = tensor(f"{theirs}{b}/weight")
            state[f"{ours}{a}.bias"] = tensor(f"{theirs}{b}/bias")
        for a, b in (("layer_norm", "self_attention/layer_norm"), ("final_layer_norm", "ffn/layer_norm")):
            state[f"{ours}{a}.weight"] = tensor(f"{theirs}{b}/gamma")
            state[f"{ours}{a}.bias"] = tensor(f"{theirs}{b}/beta")
    teacher = WhisperEncoder(config)
    missing, unexpected = teacher.load_state_dict(state, strict=False)
    if set(missing) - {"filters", "window"} or unexpected:
        raise ValueError(f"{path} is no Whisper encoder: missing {missing}, unexpected {unexpected}")
    return teacher.eval().requires_grad_(False), config


def copy_blocks(teacher: WhisperEncoder, student: Wav2Vec2Model) -> None:
    """Starts the student's blocks and last norm from the teacher's."""
    student.encoder.layers.load_state_dict(teacher.layers.state_dict())
    student.encoder.layer_norm.load_state_dict(teacher.layer_norm.state_dict())
