"""What a model's frozen half makes of the training audio, kept on disk.

With most blocks frozen, most of a step's time goes into states that are the same each time the audio is heard. Here
they are computed once for each batch, augmented as it was then, and for the window of `core.training.consistency`, if
it has one; a later pass over the same batches hears them in a new order. On processors that trains the upper half
more than twice as fast.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.encoder import Encoder, EncoderLayer
from core.masking import mask_spans
from core.training.consistency import choose_window, divergence
from core.training.corpus import Batch, Corpus
from core.wav2vec2 import Wav2Vec2ForCTC

ORIGIN_NAME = "states.json"
AHEAD = 4  # files that are read before they are needed
ROUND = 64  # frames: batches are padded to multiples of it, as processors' kernels are made anew for each new shape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Between two blocks, (batch, frame, hidden) each; one tensor where no branch is open."""

    hidden: Tensor
    trunk: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A batch as the upper half is given it."""

    whole: States
    n_frames: Tensor  # (batch,)
    labels: Tensor  # (batch, label), −100 behind the labels
    seconds: float  # with the padding
    start: int = 0  # the window's first frame
    window: States | None = None


def blocks(encoder: Encoder, states: States, first: int, end: int, frame_mask: Tensor | None) -> States:
    """Through the blocks [first, end)."""
    attention_mask = None if frame_mask is None else frame_mask[:, None, None]
    hidden, trunk = states.hidden, states.trunk
    for i in range(first, end):
        layer = encoder.layers[i]
        assert isinstance(layer, EncoderLayer)
        if encoder.branch is not None:
            hidden, trunk = encoder.branch(i, hidden, trunk)
        hidden, _ = layer(hidden, attention_mask, False)
    return States(hidden, trunk)


def lower_parts(model: Wav2Vec2ForCTC, n_blocks: int) -> list[nn.Module]:
    """What comes before the encoder's blocks, the first of those, and the branch if it ends in them."""
    network, encoder = model.wav2vec2, model.wav2vec2.encoder
    parts = [network.feature_extractor, network.feature_projection, encoder.pos_conv_embed, *encoder.layers[:n_blocks]]
    if encoder.branch is not None and n_blocks > encoder.branch.end:
        parts.append(encoder.branch)
    return parts


def lower(model: Wav2Vec2ForCTC, hidden: Tensor, frame_mask: Tensor | None, n_blocks: int) -> States:
    """Projected features through the first blocks, to bfloat16."""
    encoder = model.wav2vec2.encoder
    hidden = encoder.begin(hidden, frame_mask)
    states = blocks(encoder, States(hidden, hidden), 0, n_blocks, frame_mask)
    branch, hidden = encoder.branch, states.hidden.bfloat16()
    is_open = branch is not None and branch.first < n_blocks <= branch.end
    return States(hidden, states.trunk.bfloat16() if is_open else hidden)


def upper(model: Wav2Vec2ForCTC, states: States, frame_mask: Tensor | None, n_blocks: int) -> Tensor:
    """(batch, frame, vocab) logits of what the first blocks made."""
    encoder = model.wav2vec2.encoder
    hidden = blocks(encoder, states, n_blocks, len(encoder.layers), frame_mask).hidden
    logits: Tensor = model.lm_head(model.dropout(encoder.layer_norm(hidden) if encoder.is_stable else hidden))
    return logits.float()


@torch.no_grad()
def hear(model: Wav2Vec2ForCTC, batch: Batch, n_blocks: int, consistency: float, is_mixed: bool) -> Heard:
    """A batch, with a window in a share of `consistency` of all."""
    network, device = model.wav2vec2, model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        frame_mask = network.frame_mask(batch.attention_mask.to(device))
        hidden, _ = network.embed(batch.input_values.to(device))
        whole, n_frames = lower(model, hidden, frame_mask, n_blocks), frame_mask.sum(1)
        span = choose_window(int(n_frames.min())) if float(torch.rand(())) < consistency else None
        if span is None:
            return Heard(whole, n_frames, batch.labels, batch.seconds)
        window = lower(model, hidden[:, slice(*span)], None, n_blocks)
        return Heard(whole, n_frames, batch.labels, batch.seconds, span[0], window)


def save(heard: Heard, path: Path) -> None:
    """Whole or not at all."""

    def tensors(states: States | None) -> list[Tensor]:
        if states is None:
            return []
        return [states.hidden.cpu()] if states.trunk is states.hidden else [states.hidden.cpu(), states.trunk.cpu()]

    part = path.with_suffix(".part")
    rest = heard.n_frames.cpu(), heard.labels, heard.seconds, heard.start
    torch.save((tensors(heard.whole), tensors(heard.window), rest), part)
    part.replace(path)


def load(path: Path) -> Heard:
    whole, window, rest = torch.load(path, weights_only=True)
    n_frames, labels, seconds, start = rest
    of_window = States(window[0], window[-1]) if window else None
    return Heard(States(whole[0], whole[-1]), n_frames, labels, seconds, start, of_window)


@dataclass(frozen=True, slots=True, eq=False)
class StateCorpus:
    """Batches of a corpus as states: the first `n_kept` again and again, in an order that the seed decides."""

    model: Wav2Vec2ForCTC
    corpus: Corpus
    folder: Path
    n_kept: int
    n_blocks: int  # the frozen ones
    consistency: float = 0.0
    is_mixed: bool = True

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}.pt"

    def origin(self) -> dict[str, object]:
        """All that decides what the files hold."""
        weights, audio = hashlib.sha256(), hashlib.sha256()
        for part in lower_parts(self.model, self.n_blocks):
            for name, weight in part.state_dict().items():
                weights.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        corpus = self.corpus
        for clip in corpus.clips:
            audio.update(f"{len(clip.samples)} {clip.weight} {clip.transcript}\n".encode())
        return {
            "weights": weights.hexdigest(),
            "clips": audio.hexdigest(),
            "vocabulary": hashlib.sha256(repr(corpus.tokenizer.tokens).encode()).hexdigest(),
            "n_blocks": self.n_blocks,
            "batch_s": corpus.batch_s,
            "seed": corpus.seed,
            "consistency": self.consistency,
            "is_mixed": self.is_mixed,
        }

    def check_origin(self) -> None:
        """Notes in the folder what its files are of.

        Raises:
            ValueError: they are of something else.
        """
        path, origin = self.folder / ORIGIN_NAME, self.origin()
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if differing := [name for name in origin if found.get(name) != origin[name]]:
                raise ValueError(
                    f"Expected states of this model and audio in {self.folder}. "
                    f"Found: others ({', '.join(differing)} differ); give another folder, or empty this one"
                )
        elif any(self.folder.glob("*.pt")):  # put together by hand, of several runs
            logger.warning("%s: has no %s; its states are taken as they are", self.folder, ORIGIN_NAME)
        else:
            path.write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")

    def batches(self, first: int = 0, n_workers: int = 1) -> Iterator[Heard]:
        """Without end, from number `first` on.

        Raises:
            ValueError: the folder has states of another model or of other audio.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check_origin()
        yield from self.make(first, n_workers)
        yield from self.repeat(max(0, first - self.n_kept))

    def make(self, first: int, n_workers: int) -> Iterator[Heard]:
        """The first pass from number `first` on: computes what is not there yet, also of what came before."""
        known = 0
        while self.path(known).exists():
            known += 1
        for number in range(first, min(known, self.n_kept)):
            yield load(self.path(number))
        fresh = self.corpus.batches(known, n_workers)
        for number, batch in zip(range(known, self.n_kept), fresh, strict=False):
            with torch.random.fork_rng(devices=[]):  # what is drawn here must not hang on what is known already
                torch.manual_seed(self.corpus.seed + number)
                is_training = self.model.training
                heard = hear(self.model.eval(), batch, self.n_blocks, self.consistency, self.is_mixed)
                self.model.train(is_training)
            save(heard, self.path(number))
            if number >= first:
                yield heard

    def repeat(self, first: int) -> Iterator[Heard]:
        numbers = (
            int(number)
            for again in count()
            for number in np.random.default_rng((self.corpus.seed, again)).permutation(self.n_kept)
        )
        read: deque[Future[Heard]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for number in islice(numbers, first, None):
                read.append(pool.submit(load, self.path(number)))
                if len(read) > AHEAD:
                    yield read.popleft().result()


def mask(states: States, n_frames: Tensor, model: Wav2Vec2ForCTC) -> States:
    """SpecAugment on states: spans of frames and of channels are zero."""
    config = model.config
    B, T, D = states.hidden.shape
    kept = torch.ones(B, T, D, dtype=torch.bool)
    if config.mask_time_prob > 0:
        kept &= ~mask_spans(n_frames.tolist(), T, config.mask_time_prob, config.mask_time_length)[:, :, None]
    if config.mask_feature_prob > 0:
        kept &= ~mask_spans([D] * B, D, config.mask_feature_prob, config.mask_feature_length)[:, None]
    kept = kept.to(states.hidden.device)
    return States(states.hidden * kept, states.trunk * kept)


def states_loss(model: Wav2Vec2ForCTC, heard: Heard, n_blocks: int, is_mixed: bool = True) -> Tensor:
    """CTC, and how far the window's frames are from the whole's."""
    device = model.device

    def floats(states: States, n_more: int = 0) -> States:
        hidden, trunk = (F.pad(part.to(device).float(), (0, 0, 0, n_more)) for part in (states.hidden, states.trunk))
        return States(hidden, trunk)

    whole = floats(heard.whole, -heard.whole.hidden.shape[1] % ROUND)
    n_frames = heard.n_frames.to(device)
    frame_mask = torch.arange(whole.hidden.shape[1], device=device)[None] < n_frames[:, None]
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        logits = upper(model, mask(whole, n_frames, model), frame_mask, n_blocks)
        loss = model.ctc_loss_of(logits, heard.labels.to(device), n_frames)
        if heard.window is not None:
            of_window = upper(model, floats(heard.window), None, n_blocks)
            loss = loss + divergence(of_window, logits, heard.start, int(n_frames.min()))
    return loss
