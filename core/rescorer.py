"""A second reading: how likely each of a few texts is, given all that the encoder made of the audio.

CTC takes each frame's letter by itself. This small decoder reads a text piece by piece, each given those before it and
the frames that it attends to, and so ranks the best texts of a beam search again ("attention rescoring", Zhang et al.
2020, https://arxiv.org/abs/2012.05481). Its blocks are those of Whisper's decoder (Radford et al. 2022).

A checkpoint may bring one in a folder `rescorer`: `config.json`, which holds the pieces too, and `model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.checkpoint import Undrawn
from core.configuration import Wav2Vec2Config
from core.encoder import Attention, FeedForward
from core.pieces import BEGIN, END, N_SPECIAL, Pieces, Tree
from core.precision import is_fast, make_product, make_reader, narrow, pack_blocks
from core.rounding import GROUP, SUFFIX, from_integers, to_int4, to_int8

FOLDER = "rescorer"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
EMBEDDING = "embedding.weight"  # read with and written with: four bits of it would cost the most
ROUND, ROOM = 16, 64  # pieces and what they see are padded to multiples: kernels are made anew for each new shape


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
    n_prompt: int = 0  # what is always read before a text, as Whisper reads which language and task it is
    weight: float = 1.0  # of a text's log-probability beside the score that the search gave it
    n_best: int = 10  # texts of the search that are read
    is_proposing: bool = True  # texts that the search did not find (`core.proposals`)
    frames: float = 0.36  # weight of the frames' log-probability, where it proposes
    alone: float = 1.6  # in place of `weight` where it proposes without a language model

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
        return self.hear(x, k, v, mask)

    def hear(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """What follows the attention to pieces."""
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
        self.prompt = nn.Parameter(torch.zeros(config.n_prompt, d))  # with its positions
        self.state_norm = nn.LayerNorm(d)
        self.layers = nn.ModuleList(DecoderLayer(config.block) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(d)
        self.head: nn.Module | None = None  # the embedding again, packed
        self.kv_proj: nn.Module | None = None  # those of all blocks as one, packed

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
        states, places = self.state_norm(states), torch.arange(read.shape[1], device=read.device)
        x = torch.cat([self.prompt.expand(len(read), -1, -1), self.embed(read, places)], 1)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=read.device).tril()
        for layer in self.blocks():
            x = layer(x, causal, *layer.cross_attention.project(states), mask)
        return self.following(x[:, len(self.prompt) :])

    def blocks(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

    def embed(self, read: Tensor, places: Tensor) -> Tensor:
        """(text, piece, hidden) of ids at `places` (piece,)."""
        return torch.as_tensor(self.embedding(read) + self.positions[places.clamp(max=self.config.max_length - 1)])

    def following(self, x: Tensor) -> Tensor:
        """(text, piece, id) logits of what the last block leaves."""
        x = self.layer_norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else torch.as_tensor(self.head(x))

    def project(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (batch, head, frame, D / n_heads) of each block, for reading; `states` (batch, frame, D)."""
        if self.kv_proj is None:
            projected = (layer.cross_attention.project(states) for layer in self.blocks())
            return [(k.contiguous(), v.contiguous()) for k, v in projected]
        B, T, _ = states.shape
        rows = self.kv_proj(states).view(B, T, len(self.layers), 2, self.config.num_attention_heads, -1)
        return [(k, v) for k, v in rows.permute(2, 3, 0, 4, 1, 5).contiguous()]

    def score(self, states: NDArray[np.float32], texts: Sequence[str]) -> list[float]:
        """Natural log-probability of each text, given the (n_frames, hidden) states of the encoder."""
        if not texts or not len(states):
            return [0.0] * len(texts)
        reading = Reading(self, states)
        return [reading.log_prob(nodes) for nodes in reading.read(texts)]

    def rank(self, texts: Sequence[tuple[float, str]], states: NDArray[np.float32]) -> list[tuple[float, str]]:
        """The best of texts with scores, and what those are after reading them against the states."""
        best = sorted(texts, reverse=True)[: self.config.n_best]
        read = self.score(states, [text for _, text in best])
        return [(score + self.config.weight * more, text) for (score, text), more in zip(best, read, strict=True)]

    def fit(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Made ready to read on that device, in place; packed on processors that multiply that type."""
        self.eval().requires_grad_(False)
        if device.type != "cpu":
            return self.to(device, dtype)
        if dtype == torch.float32 or not is_fast(dtype):
            return self
        self.head = make_product(self.embedding.weight, None, dtype, out=torch.float32)
        pack_blocks(self, dtype, reads=True)
        crosses = [layer.cross_attention for layer in self.blocks()]
        weight, bias = (torch.cat([getattr(cross.kv_proj, name) for cross in crosses]) for name in ("weight", "bias"))
        self.kv_proj = make_product(weight, bias, dtype, out=narrow(dtype))
        for cross in crosses:
            for name in ("q_proj", "out_proj"):
                linear = getattr(cross, name)
                setattr(cross, name, make_reader(linear.weight, linear.bias, dtype, out=narrow(dtype)))
            del cross.kv_proj
        return self

    def save(self, directory: Path, is_rough: bool = True, rounded: Mapping[str, Tensor] | None = None) -> None:
        """Writes both files.

        Args:
            is_rough: matrices of the blocks as integers of four bits, the embedding of six (`core.rounding`); all
                else is float16.
            rounded: integers and scales of some matrices that are there already (`core.training.compensation`).
        """
        directory.mkdir(parents=True, exist_ok=True)
        weights = dict(rounded or {})
        for name, weight in self.state_dict().items():
            weight = weight.detach().cpu()
            if name in weights:
                continue
            if is_rough and is_rounded(name, weight):
                weights[name], weights[name + SUFFIX] = to_int4(weight)
            elif is_rough and name == EMBEDDING:
                weights[name], weights[name + SUFFIX] = to_int8(weight)
            else:
                weights[name] = weight.half()
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


class Reading:
    """What was read against the states of one audio, as a `Tree` that grows: each piece sees what leads to it alone.

    Keys and values of what was read are kept, so that only what is new is computed.
    """

    def __init__(self, rescorer: Rescorer, states: NDArray[np.float32]) -> None:
        self.rescorer, self.tree = rescorer, Tree()
        self.rows = np.zeros((0, N_SPECIAL + len(rescorer.config.pieces)), np.float32)  # with room behind those read
        self.n_read = 0  # nodes
        self.kept: list[tuple[Tensor, Tensor]] = []  # keys and values (1, head, room, D / n_heads) of each block
        device, dtype = rescorer.positions.device, rescorer.positions.dtype
        with torch.inference_mode():
            heard = rescorer.state_norm(torch.from_numpy(states)[None].to(device, dtype))
            self.heard = rescorer.project(heard)

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """(node, id) natural logarithms of what follows each node that was read."""
        return self.rows[: self.n_read]

    def encode(self, text: str) -> list[int]:
        """The pieces of a text, as many as are read."""
        return self.rescorer.pieces.encode(text)[: self.rescorer.config.max_length - 1]

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """The nodes of each text, all read."""
        found = [self.tree.walk(self.encode(text)) for text in texts]
        self.catch_up()
        return found

    def log_prob(self, nodes: Sequence[int]) -> float:
        """Natural logarithm of the probability of a text, given its nodes."""
        said = [*(self.tree.pieces[node] for node in nodes[1:]), END]
        return float(self.rows[nodes, said].sum())

    @torch.inference_mode()
    def catch_up(self) -> None:
        """Reads the nodes that are new."""
        first, end = self.n_read, len(self.tree.pieces)
        if first == end:
            return
        rescorer, device = self.rescorer, self.rescorer.positions.device
        n_prompt = len(rescorer.prompt)
        lead = 0 if self.kept else n_prompt  # rows of the prompt, which is read with the first pieces
        n = padded(lead + end - first) - lead
        room = -(-(n_prompt + end) // ROOM) * ROOM
        pieces, places = np.full((1, n), BEGIN), np.zeros(n, np.int64)
        pieces[0, : end - first], places[: end - first] = self.tree.pieces[first:], self.tree.places[first:]
        seen = np.zeros((lead + n, room), bool)
        seen[:lead, :n_prompt] = np.tri(lead, n_prompt)
        seen[lead:, : n_prompt + 1] = True  # the prompt and the beginning, also by what is padding
        for row, path in enumerate(self.tree.paths[first:]):
            seen[lead + row, [n_prompt + node for node in (*path, first + row)]] = True
        mask = torch.from_numpy(np.where(seen, 0, -np.inf)).to(device, self.heard[0][0].dtype)
        x = rescorer.embed(torch.from_numpy(pieces).to(device), torch.from_numpy(places).to(device))
        x = torch.cat([rescorer.prompt[:lead][None], x], 1)
        read = slice(n_prompt + first - lead, n_prompt + end)
        for i, layer in enumerate(rescorer.blocks()):
            q, *new = layer.attention.project(layer.layer_norm(x))
            if i == len(self.kept):
                self.kept.append((new[0][:, :, :0], new[1][:, :, :0]))
            k, v = (
                F.pad(kept, (0, 0, 0, room - kept.shape[2])) if kept.shape[2] < room else kept for kept in self.kept[i]
            )
            k[:, :, read], v[:, :, read] = (part[:, :, : lead + end - first] for part in new)
            self.kept[i] = k, v
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=layer.attention.scale)
            x = x + layer.attention.out_proj(mixed.transpose(1, 2).flatten(2))
            x = layer.hear(x, *self.heard[i])
        following = F.log_softmax(rescorer.following(x[:, lead:])[0, : end - first], -1, dtype=torch.float32)
        if end > len(self.rows):
            grown = np.empty((room + end, self.rows.shape[1]), np.float32)
            grown[:first] = self.log_probs
            self.rows = grown
        self.rows[first:end], self.n_read = following.cpu().numpy(), end


def padded(n: int) -> int:
    """A few sizes for any number of rows, not much larger: single rows are read one after another."""
    return -(-n // ROUND) * ROUND if n > ROUND // 2 else 1 << (n - 1).bit_length()


def is_rounded(name: str, weight: Tensor) -> bool:
    """Whether a weight is an integer of four bits on disk."""
    return name.startswith("layers.") and weight.dim() == 2 and weight.shape[1] % GROUP == 0


class RescorerError(ValueError):
    """The rescorer of a checkpoint cannot be used; the message is for the user."""
