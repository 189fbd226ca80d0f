"""A second reading: how likely each of a few texts is, given all that the encoder made of the audio.

CTC takes each frame's letter by itself. This small decoder reads a text piece by piece, each given those before it and
the frames that it attends to, and so ranks the best texts of a beam search again ("attention rescoring", Zhang et al.
2020, https://arxiv.org/abs/2012.05481). Its blocks are those of Whisper's decoder (Radford et al. 2022).

A checkpoint may bring one in a folder `rescorer`: `config.json`, which holds the pieces too, and `model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.checkpoint import Undrawn
from core.configuration import Wav2Vec2Config
from core.encoder import Attention, FeedForward
from core.precision import Product, is_fast, pack_blocks
from core.rounding import GROUP, SUFFIX, from_integers, to_int4

FOLDER = "rescorer"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
END, BEGIN = 0, 1  # ids of what follows the last piece, and of what comes before the first
N_SPECIAL = 2
MERGE, NEAR = 4, 3  # texts go on as one where they had so many pieces alike, at places so near to each other
ROUND = 16  # pieces are padded to multiples of it, as processors' kernels are made anew for each new shape


@dataclass(frozen=True, slots=True)
class RescorerConfig:
    """Settings of the network, and how it is used.

    Raises:
        ValueError: a setting is impossible; the message holds it.
    """

    pieces: tuple[str, ...]  # of texts, those that begin a word with a space before them; every letter is one
    n_blocks: int  # after so many of the encoder's blocks its states are read
    hidden_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_length: int = 256  # pieces and their end; longer texts are read up to there
    weight: float = 0.8  # of a text's log-probability beside the score that the search gave it
    n_best: int = 20  # texts that are read

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", tuple(self.pieces))
        for name in ("n_blocks", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_length", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Found: {getattr(self, name)}")
        if not self.pieces or "" in self.pieces:
            raise ValueError("Expected pieces of at least one letter. Found: none, or an empty one")

    @property
    def block(self) -> Wav2Vec2Config:
        """Of one block, as the encoder's are made."""
        return Wav2Vec2Config(
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            num_conv_pos_embedding_groups=1,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
        )


@dataclass(frozen=True)
class Pieces:
    """What texts are made of: letters, syllables and words, which begin with a space where they begin a word."""

    texts: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.texts, N_SPECIAL)}

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.texts))

    def encode(self, text: str) -> list[int]:
        """The pieces of words, the longest that fit, from left to right. Letters that are none are left out."""
        ids: list[int] = []
        for word in text.lower().split():
            rest = f" {word}"
            while rest:
                n = next((n for n in range(min(self.longest, len(rest)), 0, -1) if rest[:n] in self.ids), 0)
                if n:
                    ids.append(self.ids[rest[:n]])
                rest = rest[max(n, 1) :]
        return ids


@dataclass(frozen=True, slots=True)
class Tree:
    """The pieces of texts, those that are alike in one, and what each text says after which of them.

    The best texts of a search differ in a few words. Each beginning is there once, and some pieces after a difference
    the texts go on as one again: what follows is read after the first of both beginnings alone. Of the texts of 338
    recordings that leaves a third of the pieces, and the order as good as it was.
    """

    pieces: NDArray[np.int64]  # (node,) ids; the first is `BEGIN`
    places: NDArray[np.int64]  # (node,) in the text
    seen: NDArray[np.bool_]  # (node, node) those that lead to it, and itself
    rows: NDArray[np.int64]  # (step,) nodes, of all texts one after another
    said: NDArray[np.int64]  # (step,) what follows there
    of_text: NDArray[np.int64]  # (step,)

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Tree:
        nodes: dict[tuple[int, ...], int] = {}  # the newest by its last pieces
        made, places, paths = [(0, BEGIN)], [0], [frozenset[int]()]  # what is before each node, and its piece
        steps: list[tuple[int, int, int]] = []
        for number, text in enumerate(texts):
            node, last = 0, (BEGIN,) * MERGE
            for piece in text:
                steps.append((node, piece, number))
                last, place = (*last[1:], piece), places[node] + 1
                found = nodes.get(last, -1)
                if found < 0 or abs(places[found] - place) > NEAR or found in paths[node] or found == node:
                    found = nodes[last] = len(made)
                    made.append((node, piece))
                    places.append(place)
                    paths.append(paths[node] | {node})
                node = found
            steps.append((node, END, number))
        n = -(-len(made) // ROUND) * ROUND
        pieces, seen = np.full(n, BEGIN), np.eye(n, dtype=bool)
        for node, (_, piece) in enumerate(made):
            pieces[node] = piece
            seen[node, list(paths[node])] = True
        rows, said, of_text = np.array(steps).T
        return cls(pieces, np.pad(places, (0, n - len(places))), seen, rows, said, of_text)


class CrossAttention(nn.Module):
    """From pieces to frames."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        d = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.q_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.kv_proj = nn.Linear(d, 2 * d)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, head, frame, D / n_heads) of (batch, frame, D)."""
        B, T, _ = states.shape
        k, v = self.kv_proj(states).view(B, T, 2, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, piece, D) of the same; `mask` is bool (batch, 1, 1, frame), True where a key may be attended to."""
        B, L, D = x.shape
        # Pieces do not see each other here: all texts of one audio are one.
        q = self.q_proj(x).view(len(k), -1, self.n_heads, D // self.n_heads).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.as_tensor(self.out_proj(out.transpose(1, 2).reshape(B, L, D)))


class DecoderLayer(nn.Module):
    """Attention to the pieces so far, to the frames, and feed forward, each normalised before."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layer_norm, self.attention = nn.LayerNorm(config.hidden_size), Attention(config)
        self.cross_layer_norm, self.cross_attention = nn.LayerNorm(config.hidden_size), CrossAttention(config)
        self.final_layer_norm, self.feed_forward = nn.LayerNorm(config.hidden_size), FeedForward(config)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, causal: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.layer_norm(x), causal, False)[0])
        x = x + self.dropout(self.cross_attention(self.cross_layer_norm(x), k, v, mask))
        return torch.as_tensor(x + self.dropout(self.feed_forward(self.final_layer_norm(x))))


class Rescorer(nn.Module):
    """Log-probabilities of texts, given the encoder's states."""

    def __init__(self, config: RescorerConfig) -> None:
        super().__init__()
        self.config = config
        self.pieces = Pieces(config.pieces)
        n, d = N_SPECIAL + len(config.pieces), config.hidden_size
        self.embedding = nn.Embedding(n, d)
        self.positions = nn.Parameter(torch.zeros(config.max_length, d))
        self.state_norm = nn.LayerNorm(d)
        self.layers = nn.ModuleList(DecoderLayer(config.block) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(d)
        self.head: Product | None = None  # the embedding again, packed

    def batch(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """What is read and what it should say, (text, piece) ids each; the latter −100 behind a text's end."""
        texts = [text[: self.config.max_length - 1] for text in texts]
        n = min(self.config.max_length, -(-(max(map(len, texts)) + 1) // ROUND) * ROUND)
        read, said = np.full((len(texts), n), END), np.full((len(texts), n), -100)
        for i, text in enumerate(texts):
            read[i, 0], said[i, len(text)] = BEGIN, END
            read[i, 1 : len(text) + 1] = said[i, : len(text)] = text
        return torch.from_numpy(read), torch.from_numpy(said)

    def forward(self, states: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
        """What follows each piece, for training.

        Args:
            states: (text, frame, hidden) of the encoder.
            read: (text, piece) ids, the first `BEGIN`.
            mask: bool (text, 1, 1, frame), False for padding.

        Returns:
            (text, piece, id) logits.
        """
        places = torch.arange(read.shape[1], device=read.device)
        return self.run(states, read, places, places[:, None] >= places, mask)

    def run(self, states: Tensor, read: Tensor, places: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `forward`, of pieces at `places` (piece,); each sees those of its row of `seen` (piece, piece)."""
        states = self.state_norm(states)
        x = self.embedding(read) + self.positions[places.clamp(max=self.config.max_length - 1)]
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer(x, seen, *layer.cross_attention.project(states), mask)
        x = self.layer_norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else torch.as_tensor(self.head(x))

    @torch.inference_mode()
    def score(self, states: NDArray[np.float32], texts: Sequence[str]) -> list[float]:
        """Natural log-probability of each text, given the (n_frames, hidden) states of the encoder.

        The texts are read at once, as a `Tree`, each piece of which sees what leads to it alone.
        """
        if not texts or not len(states):
            return [0.0] * len(texts)
        tree = Tree.of([self.pieces.encode(text)[: self.config.max_length - 1] for text in texts])
        device = self.positions.device
        read, places, seen = (torch.from_numpy(part).to(device) for part in (tree.pieces, tree.places, tree.seen))
        heard = torch.from_numpy(states)[None].to(device, self.positions.dtype)
        logits = self.run(heard, read[None], places, seen)[0]
        log_probs = F.log_softmax(logits, -1, dtype=torch.float32)
        said = log_probs[torch.from_numpy(tree.rows), torch.from_numpy(tree.said)].cpu().numpy()
        scores: list[float] = np.bincount(tree.of_text, said, len(texts)).tolist()
        return scores

    def rank(self, texts: Sequence[tuple[float, str]], states: NDArray[np.float32]) -> list[tuple[float, str]]:
        """The best of texts with scores, and what those are after reading them against the states."""
        best = sorted(texts, reverse=True)[: self.config.n_best]
        read = self.score(states, [text for _, text in best])
        return [(score + self.config.weight * more, text) for (score, text), more in zip(best, read, strict=True)]

    def fit(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Made ready to read on that device, in place; packed on processors that multiply bfloat16."""
        self.eval().requires_grad_(False)
        if device.type != "cpu":
            return self.to(device, dtype)
        if dtype == torch.float32 or not is_fast(torch.bfloat16):
            return self
        self.head = Product(self.embedding.weight, None, torch.bfloat16, out=torch.float32)
        pack_blocks(self, torch.bfloat16)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            cross = layer.cross_attention
            for name in ("q_proj", "kv_proj", "out_proj"):
                linear = getattr(cross, name)
                setattr(cross, name, Product(linear.weight, linear.bias, torch.bfloat16))
        return self

    def save(self, directory: Path, is_rough: bool = True) -> None:
        """Writes both files; matrices as integers of four bits (`core.rounding`) if rough, the rest in float16."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {}
        for name, weight in self.state_dict().items():
            if is_rough and is_rounded(name, weight):
                weights[name], weights[name + SUFFIX] = to_int4(weight.detach().cpu())
            else:
                weights[name] = weight.detach().cpu().half()
        save_file(weights, directory / WEIGHTS_NAME, metadata={"format": "pt"})
        text = json.dumps(asdict(self.config), ensure_ascii=False)
        (directory / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The one in a folder, in float32 on the CPU.

        Raises:
            RescorerError: it cannot be read.
        """
        try:
            settings = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
            known = {field.name for field in fields(RescorerConfig)}
            config = RescorerConfig(**{name: value for name, value in settings.items() if name in known})
            with Undrawn():
                rescorer = cls(config)
            weights = from_integers(load_file(directory / WEIGHTS_NAME))
            rescorer.load_state_dict({name: weight.float() for name, weight in weights.items()})
        except Exception as e:  # damaged files make their readers raise anything
            why = " ".join(str(e).split())[:200]
            raise RescorerError(f"Expected {CONFIG_NAME} and {WEIGHTS_NAME} of a rescorer in {directory}: {why}") from e
        return rescorer.eval()


def is_rounded(name: str, weight: Tensor) -> bool:
    """Whether a weight is an integer of four bits on disk."""
    return weight.dim() == 2 and name != "positions" and weight.shape[1] % GROUP == 0


class RescorerError(ValueError):
    """The rescorer of a checkpoint cannot be used; the message is for the user."""
