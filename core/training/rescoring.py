"""How a rescorer is made: blocks of a Whisper's decoder, trained on texts in the spelling of the CTC model.

It begins with the teacher's blocks and the pieces of its vocabulary that the texts use most, and learns from the states
that `core.training.states` keeps. Texts are cut and begun as the teacher's were, so that it reads well from the first
step on, and without dropout, which it never knew: with a tenth of it the first losses were 5.3 instead of 0.3, and what
it had known was lost. Some blocks can be left out (Gandhi et al. 2023, https://arxiv.org/abs/2311.00430): of base's the
fourth costs least, the second and third most. Its last steps are taken with the weights as they will be on disk, so
that those learn to live with being rounded (Jacob et al. 2018, section 3; gradients go to the weights before rounding).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from core.pieces import Pieces, merged
from core.rescorer import Rescorer, RescorerConfig, is_rounded
from core.rounding import from_int4, to_int4
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.run import Run, RunConfig
from core.training.states import ROUND, Heard, load
from core.training.whisper import read_ctranslate2, variable

SPACE = "Ġ"  # in vocabularies of byte pairs
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>")  # what Whisper reads first
START = "<|notimestamps|>"  # and last before a text


def read_vocabulary(path: Path) -> dict[str, int]:
    """The ids of a CTranslate2 model's `vocabulary.json` or `vocabulary.txt`, words beginning with a space.

    Raises:
        ValueError: it is no list of texts.
    """
    text = path.read_text(encoding="utf-8")
    try:
        tokens = json.loads(text) if path.suffix == ".json" else text.splitlines()
        return {token.replace(SPACE, " "): i for i, token in enumerate(tokens)}
    except (ValueError, AttributeError) as e:
        raise ValueError(f"Expected a list of tokens in {path}. Found: {e}") from e


def choose_pieces(texts: Sequence[str], vocabulary: dict[str, int], letters: Sequence[str], n: int) -> tuple[str, ...]:
    """The letters, and the `n` pieces that the texts use most, in the order in which the vocabulary merges them.

    Letters are there at the beginning of words and within, pieces with all that they are merged from.

    Raises:
        ValueError: the vocabulary lacks a letter.
    """
    small = [letter.lower() for letter in letters]
    single = [piece for letter in small for piece in (letter, f" {letter}")]
    if missing := [piece for piece in single if piece not in vocabulary]:
        raise ValueError(f"Expected a vocabulary with all letters. Found: none of {', '.join(map(repr, missing))}")
    pieces = {piece for piece in vocabulary if piece and set(piece.removeprefix(" ")) <= set(small) and piece != " "}
    known = Pieces(tuple(sorted(pieces, key=vocabulary.__getitem__)))
    used = Counter(i for text in texts for i in known.encode(text))
    left, chosen = [*single, *(known.text(i) for i, _ in used.most_common(n))], set[str]()
    while left:
        piece = left.pop()
        if piece in known.ids and piece not in chosen:
            chosen.add(piece)
            left += merged(list(piece), known.ids, below=known.ids[piece])
    return tuple(sorted(chosen, key=vocabulary.__getitem__))


def make_rescorer(
    teacher: Path, vocabulary: dict[str, int], pieces: Sequence[str], blocks: Sequence[int] | None, n_blocks: int
) -> Rescorer:
    """Some blocks of a teacher's decoder, with these pieces alone.

    Args:
        blocks: which; None: all.
        n_blocks: of the encoder, whose last is the teacher's last.

    Raises:
        ValueError: the file is no Whisper with such blocks.
    """
    raw = read_ctranslate2(teacher)
    known = [i for i in range(100) if f"decoder/layer_{i}/ffn/linear_0/weight" in raw]
    blocks = known if blocks is None else blocks
    if not blocks or not set(blocks) <= set(known):
        raise ValueError(f"Expected blocks of {known} in the decoder of {teacher}. Found: {list(blocks)}")

    def of(name: str) -> Tensor:
        return variable(raw, name)

    embedding, positions = of("decoder/embeddings/weight"), of("decoder/position_encodings/encodings")
    width = of(f"decoder/layer_{blocks[0]}/ffn/linear_0/weight").shape[0]
    d = embedding.shape[1]
    prompt = [vocabulary[token] for token in PROMPT if token in vocabulary]  # those of one language know it alone
    n_prompt = len(prompt)
    config = RescorerConfig(tuple(pieces), n_blocks, d, len(blocks), d // 64, width, n_prompt=n_prompt)
    rescorer = Rescorer(config)
    ids = [vocabulary["<|endoftext|>"], vocabulary[START], *(vocabulary[piece] for piece in pieces)]
    state = {
        "embedding.weight": embedding[ids],
        "positions": positions[n_prompt : n_prompt + config.max_length],
        "prompt": embedding[prompt] + positions[:n_prompt],
    }
    norms = {"state_norm": "encoder/layer_norm", "layer_norm": "decoder/layer_norm"}
    linears: dict[str, str] = {}
    for i, block in enumerate(blocks):
        ours, theirs = f"layers.{i}.", f"decoder/layer_{block}/"
        norms |= {
            ours + "layer_norm": theirs + "self_attention/layer_norm",
            ours + "cross_layer_norm": theirs + "attention/layer_norm",
            ours + "final_layer_norm": theirs + "ffn/layer_norm",
        }
        linears |= {
            ours + "attention.out_proj": theirs + "self_attention/linear_1",
            ours + "cross_attention.q_proj": theirs + "attention/linear_0",
            ours + "cross_attention.kv_proj": theirs + "attention/linear_1",
            ours + "cross_attention.out_proj": theirs + "attention/linear_2",
            ours + "feed_forward.intermediate_dense": theirs + "ffn/linear_0",
            ours + "feed_forward.output_dense": theirs + "ffn/linear_1",
        }
        for kind in ("weight", "bias"):
            parts = of(f"{theirs}self_attention/linear_0/{kind}").chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                state[f"{ours}attention.{name}.{kind}"] = part
    for ours, theirs in norms.items():
        state[ours + ".weight"], state[ours + ".bias"] = of(theirs + "/gamma"), of(theirs + "/beta")
    for ours, theirs in linears.items():
        state[ours + ".weight"], state[ours + ".bias"] = of(theirs + "/weight"), of(theirs + "/bias")
    rescorer.load_state_dict(state)
    return rescorer


def text_of(labels: Tensor, tokenizer: Wav2Vec2Tokenizer) -> str:
    return tokenizer.decode([int(i) for i in labels if i >= 0], group_tokens=False)


def reading_loss(
    rescorer: Rescorer, heard: Sequence[Heard], texts: Sequence[str], is_mixed: bool = True, as_on_disk: bool = False
) -> Tensor:
    """Mean cross-entropy of the pieces of texts, given the states that they were said in.

    Args:
        as_on_disk: by the matrices as `Rescorer.save` would write them.
    """
    read, said = rescorer.batch([rescorer.pieces.encode(text) for text in texts])
    longest = max(part.whole.hidden.shape[1] for part in heard)
    longest += -longest % ROUND
    states = torch.cat([F.pad(h.whole.hidden, (0, 0, 0, longest - h.whole.hidden.shape[1])) for h in heard])
    n_frames = torch.cat([part.n_frames for part in heard])
    device = rescorer.positions.device
    mask = (torch.arange(longest)[None] < n_frames[:, None])[:, None, None].to(device)
    weights: dict[str, Tensor] = dict(rescorer.named_parameters())
    if as_on_disk:
        weights |= {name: rounded(weight) for name, weight in weights.items() if is_rounded(name, weight)}
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        logits = functional_call(rescorer, weights, (states.to(device).float(), read.to(device), mask))
    return F.cross_entropy(logits.float().flatten(0, 1), said.flatten().to(device))


def rounded(weight: Tensor) -> Tensor:
    """What four bits make of a weight; gradients pass as if they were those of the weight."""
    known = weight.detach()
    return weight + (from_int4(*to_int4(known)) - known)


def set_dropout(rescorer: Rescorer, p: float) -> None:
    """Of what its blocks add, while training."""
    for module in rescorer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p


def freeze_known(rescorer: Rescorer) -> None:
    """Keeps what a short training would only lose: rare pieces, and what is heard in the states."""
    rescorer.embedding.requires_grad_(False)
    rescorer.positions.requires_grad_(False)
    rescorer.prompt.requires_grad_(False)
    rescorer.state_norm.requires_grad_(False)
    for layer in rescorer.blocks():
        layer.cross_attention.kv_proj.requires_grad_(False)


def train_rescorer(
    rescorer: Rescorer,
    files: Sequence[Path],
    tokenizer: Wav2Vec2Tokenizer,
    config: RunConfig,
    n_files: int = 4,
    rounded_steps: int = 0,
    share: float = 1.0,
) -> None:
    """Trains on kept states, `n_files` a step, in an order that the seed decides.

    Args:
        rounded_steps: so many last steps see the weights as they are on disk.
        share: of the trained weights in the result; the rest are those that it began with (Wortsman et al. 2022).
    """
    first = {name: weight.detach().clone() for name, weight in rescorer.named_parameters()}
    freeze_known(rescorer)
    run = Run(rescorer, config)
    rescorer.train()
    while not run.is_done:
        chosen = np.random.default_rng((config.seed, run.step_count)).choice(len(files), n_files)
        heard = [load(files[i]) for i in chosen]
        texts = [text_of(labels, tokenizer) for part in heard for labels in part.labels]
        as_on_disk = run.step_count >= config.steps - rounded_steps
        loss = reading_loss(rescorer, heard, texts, config.is_mixed, as_on_disk)
        run.step(loss, sum(part.seconds for part in heard))
        run.report()
    run.finish()
    with torch.no_grad():
        for name, weight in rescorer.named_parameters():
            weight.lerp_(first[name], 1 - share)
    rescorer.eval()
