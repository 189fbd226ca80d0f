"""The acoustic model behind the engine: windows of samples in, CTC log-probabilities out.

Stateless: one model serves every stream. Windows of equal length run as one batch; lengths are never
padded to each other, because zeros change what a group-norm model hears. `emit` is `emit_features` of `features`.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.parametrize import remove_parametrizations

from core.audio import Samples
from core.checkpoint import load_model, resolve
from core.decoder import Alphabet
from core.layout import lay_out
from core.precision import is_fast, pack
from core.rescorer import FOLDER, Rescorer, RescorerError
from core.statistics import Statistics
from core.stitcher import LogProbs
from core.tokenizer import Wav2Vec2Tokenizer
from core.wav2vec2 import Wav2Vec2ForCTC

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]  # (n_frames, hidden), what the encoder is given
ChannelNorm = NDArray[np.float32]  # (2, channel), factors and summands

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
SLOTS = 256  # streams of one latency whose windows a GPU holds, unless more are asked for
MAX_BATCH_SAMPLES = 16_000 * 600  # one call's worth of audio; more is split, so memory stays bounded


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU.

    Raises:
        ValueError: the device is not a device, or not of this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as e:
        raise ValueError(f"Expected a device of auto, cpu, cuda, cuda:N or mps. Found: {device!r}") from e
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"Device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("Device 'mps' is not there: this machine has no Apple GPU that PyTorch can use")
    return chosen


def choose_dtype(dtype: str, device: torch.device, is_rounded: bool = False) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and on processors that multiply it, float32 elsewhere; int8 is of the CPU.

    Weights that were rounded on disk lose nothing by being multiplied so: then it is int8 in place of float32,
    where the processor has instructions for that. Either is about twice as fast as float32.
    """
    if dtype == "auto":
        if device.type == "cuda" or device.type == "cpu" and is_fast(torch.bfloat16):
            return torch.bfloat16
        return torch.int8 if device.type == "cpu" and is_rounded and is_fast(torch.int8) else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"Expected a dtype of auto, {', '.join(DTYPES)}. Found: {dtype!r}")
    if dtype == "int8" and device.type != "cpu":
        raise ValueError(f"Expected the CPU for int8. Found: {device}")
    return DTYPES[dtype]


def fit(model: Wav2Vec2ForCTC, device: torch.device, dtype: str) -> Wav2Vec2ForCTC:
    """`model`, changed in place for inference on that device.

    Raises:
        ValueError: impossible dtype.
    """
    kind = choose_dtype(dtype, device, model.is_rounded)
    if device.type == "cpu" and dtype != "float32" and (kind == torch.int8 or is_fast(kind)):
        return pack(model, kind)
    remove_parametrizations(model.wav2vec2.encoder.pos_conv_embed.conv, "weight")  # the norm of weights, once
    if device.type == "cuda" and kind == torch.float32:
        torch.backends.cudnn.allow_tf32 = False  # float32 is what the others are compared with
    if device.type != "cuda":
        return model.to(device, kind)
    model = lay_out(model.to(device), kind)
    if find_spec("triton") is not None:
        from core.fused import fuse  # a second to import

        fuse(model)
    return model


class AcousticModel:
    """A CTC model with its tokenizer, on one device."""

    def __init__(
        self, model: Wav2Vec2ForCTC, tokenizer: Wav2Vec2Tokenizer, name: str = "", directory: Path | None = None
    ) -> None:
        config = model.config
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(f"The vocabulary has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
        self.model = model.eval()
        self.config = config
        self.tokenizer = tokenizer
        self.name = name
        self.directory = directory  # of the checkpoint, where it came from one
        self.hop = config.hop
        self.receptive_field = config.receptive_field
        self.halo = config.halo
        self.alphabet = alphabet_of(tokenizer, config.vocab_size)
        self.kind = model.dtype  # of what is multiplied; of packed weights `load` tells it
        self.normalises = tokenizer.do_normalize  # its input, over time
        self.norms_channels = config.feat_extract_norm == "group"  # of the first convolution, over time
        # Numbers a frame of its features, where these depend on its receptive field alone, whatever the window.
        self.n_features = config.hidden_size
        self.n_local_features = 0 if self.normalises or self.norms_channels else self.n_features
        # Streams whose windows may stay on the device (`core.slots`); without, every window is sent as a whole.
        self.n_slots = SLOTS if self.model.device.type == "cuda" else 0
        # Networks are surer than they are right: a word's confidence is its letters' probability to this power.
        self.confidence_exponent = float(config.extra.get("confidence_exponent", 1.0))

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path = "streamer-en",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
    ) -> AcousticModel:
        """Loads a checkpoint by name or directory.

        Args:
            dtype: on a CPU every choice but `float32`, the reference, packs the weights; see `core.precision`.
            threads: of PyTorch within this process; None leaves them as they are.

        Raises:
            CheckpointError: no such checkpoint, or it does not hold a Wav2Vec2 CTC model.
            ValueError: impossible device, dtype or thread count.
        """
        if threads is not None:
            if threads < 1:
                raise ValueError(f"Expected at least 1 thread. Found: {threads}")
            torch.set_num_threads(threads)
        chosen = choose_device(device)
        choose_dtype(dtype, chosen)  # what is impossible is said before anything is fetched
        directory = resolve(name_or_dir)
        tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
        if tokenizer.sampling_rate != 16_000:
            raise ValueError(f"Expected a model for 16000 Hz. Found: {tokenizer.sampling_rate} Hz in {name_or_dir}")
        model = load_model(Wav2Vec2ForCTC, directory)
        loaded = cls(fit(model, chosen, dtype), tokenizer, str(name_or_dir), directory)
        loaded.kind = choose_dtype(dtype, chosen, model.is_rounded)
        return loaded

    def rescorer(self) -> Rescorer | None:
        """The one that comes with the checkpoint, made ready beside the model; None where it has none.

        Raises:
            RescorerError: it cannot be used.
        """
        if self.directory is None or not (self.directory / FOLDER).is_dir():
            return None
        rescorer = Rescorer.load(self.directory / FOLDER)
        config = self.config
        if rescorer.config.hidden_size != config.hidden_size or rescorer.config.n_blocks > config.num_hidden_layers:
            raise RescorerError(
                f"Expected a rescorer for {config.num_hidden_layers} blocks of hidden size {config.hidden_size}. "
                f"Found: {rescorer.config.n_blocks} and {rescorer.config.hidden_size} in {self.directory / FOLDER}"
            )
        return rescorer.fit(self.model.device, self.kind)

    def reserve(self, n_streams: int) -> None:
        """Makes room on a GPU for the windows of so many streams; before the first one."""
        self.n_slots = n_streams if self.n_slots else 0

    def emit(self, windows: Sequence[Samples]) -> list[LogProbs]:
        """(n_frames, n_vocab) float32 log-probabilities of each window, in order.

        Windows shorter than one frame are padded with silence to one frame.
        """
        return self.in_batches(self.model.log_probs, self.padded(windows), MAX_BATCH_SAMPLES)

    def emit_with_states(self, windows: Sequence[Samples], n_blocks: int) -> list[tuple[LogProbs, Features]]:
        """As `emit`, and the (n_frames, hidden) states after so many of the encoder's blocks."""

        def run(input_values: Tensor) -> Tensor:
            return torch.cat(self.model.log_probs_and_states(input_values, n_blocks), -1)

        n_vocab = self.config.vocab_size
        rows = self.in_batches(run, self.padded(windows), MAX_BATCH_SAMPLES)
        return [(np.ascontiguousarray(of[:, :n_vocab]), np.ascontiguousarray(of[:, n_vocab:])) for of in rows]

    def padded(self, windows: Sequence[Samples]) -> list[Samples]:
        """Those shorter than one frame with silence behind."""
        short = self.receptive_field
        return [np.pad(window, (0, short - len(window))) if len(window) < short else window for window in windows]

    def statistics(self, is_running: bool = False) -> Statistics | None:
        """To be kept of a stream, where the model is one that normalises over time.

        Args:
            is_running: its features are kept in slots, too.
        """
        if self.norms_channels and (is_running or not self.n_slots):
            return Statistics.of(self.config.conv_kernel[0], self.config.conv_stride[0])
        return Statistics() if self.normalises else None

    def channel_norm(self, statistics: Statistics) -> ChannelNorm:
        """(2, channel) factors and summands that norm the first convolution of samples as they came."""
        with torch.inference_mode():
            return np.asarray(self.norms_of(torch.from_numpy(self.channel_moments(statistics))).float().numpy())

    def channel_moments(self, statistics: Statistics) -> NDArray[np.float64]:
        """What those follow from: mean (tap) and covariance (tap · tap) of the samples under the taps, and power."""
        power = float(statistics.moments[1]) ** 2 if self.normalises else 1.0
        return np.concatenate([statistics.mean, statistics.covariance.ravel(), [power]])

    def norms_of(self, moments: Tensor) -> Tensor:
        """(…, 2, channel) of `channel_moments` (…, n), on their device."""
        taps = self.config.conv_kernel[0]
        mean, covariance, power = moments[..., :taps], moments[..., taps:-1], moments[..., -1:]
        covariance = covariance.view(*mean.shape, taps)
        return torch.stack(self.model.wav2vec2.feature_extractor.channel_norm(mean, covariance, power), -2)

    def features(self, windows: Sequence[Samples], norms: Sequence[ChannelNorm] | None = None) -> list[Features]:
        """What the encoder is given of each window, of one frame at least; with the norms of its channels, if any."""
        return self.in_batches(self.model.embed, windows, MAX_BATCH_SAMPLES, norms)

    def emit_features(self, features: Sequence[Features]) -> list[LogProbs]:
        """Log-probabilities of windows whose features are known."""
        return self.in_batches(self.model.log_probs_of, features, MAX_BATCH_SAMPLES // self.hop)

    def in_batches(
        self,
        run: Callable[..., Tensor],
        arrays: Sequence[NDArray[np.float32]],
        most: int,
        others: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """`run` of each array, and of its place in `others`; those of one length together, `most` rows at a time."""
        columns = [arrays] if others is None else [arrays, others]
        groups: dict[int, list[int]] = defaultdict(list)
        for i, array in enumerate(arrays):
            groups[len(array)].append(i)
        results: dict[int, NDArray[np.float32]] = {}
        for length, members in groups.items():
            per_call = max(1, most // length)
            for first in range(0, len(members), per_call):
                part = members[first : first + per_call]
                batch = [torch.from_numpy(np.stack([column[i] for i in part])) for column in columns]
                rows = run(*(tensor.to(self.model.device) for tensor in batch))
                results.update(zip(part, rows.float().cpu().numpy(), strict=True))
        return [results[i] for i in range(len(arrays))]


def alphabet_of(tokenizer: Wav2Vec2Tokenizer, n_vocab: int) -> Alphabet:
    """The decoder's view of a tokenizer: letters as they are shown. Ids beyond the vocabulary count as special."""
    tokens = list(tokenizer.tokens)
    tokens += [""] * (n_vocab - len(tokens))
    # A vocabulary without a delimiter has words that only a long pause can part.
    delimiter = tokenizer.blank_id if tokenizer.delimiter_id is None else tokenizer.delimiter_id
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, ""}
    special = {i for i, token in enumerate(tokens) if token in named or re.fullmatch("<.*>", token)}
    if tokenizer.do_lower_case:
        tokens = [token if i in special else token.lower() for i, token in enumerate(tokens)]
    return Alphabet(tuple(tokens), tokenizer.blank_id, delimiter, frozenset(special - {tokenizer.blank_id, delimiter}))
