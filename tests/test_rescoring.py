"""How a rescorer is made: the pieces it knows, its teacher's weights, what a training leaves of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_rescorer import LETTERS, make
from test_training import write_ctranslate2
from torch import Tensor

from core.rescorer import FOLDER, Rescorer, is_rounded
from core.rounding import GROUP, from_int4, to_int4
from core.training.command import main
from core.training.rescoring import (
    choose_pieces,
    make_rescorer,
    read_vocabulary,
    reading_loss,
    rounded,
    train_rescorer,
)
from core.training.run import RunConfig
from core.training.states import Heard, States, save
from core.training.student import VOCABULARY, make_tokenizer


def decoder_variables(n_layers: int, tokens: Sequence[str], d: int = 64) -> dict[str, NDArray[np.float32]]:
    """Random weights of a Whisper's decoder under CTranslate2's names."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    out = {"decoder/embeddings/weight": draw(len(tokens), d), "decoder/position_encodings/encodings": draw(300, d)}
    norms = ["encoder/layer_norm", "decoder/layer_norm"]
    for i in range(n_layers):
        at = f"decoder/layer_{i}/"
        shapes = {"self_attention/linear_0": (3 * d, d), "self_attention/linear_1": (d, d)}
        shapes |= {"attention/linear_0": (d, d), "attention/linear_1": (2 * d, d), "attention/linear_2": (d, d)}
        shapes |= {"ffn/linear_0": (2 * d, d), "ffn/linear_1": (d, 2 * d)}
        for name, shape in shapes.items():
            out |= {f"{at}{name}/weight": draw(*shape), f"{at}{name}/bias": draw(shape[0])}
        norms += [f"{at}{part}/layer_norm" for part in ("self_attention", "attention", "ffn")]
    for name in norms:
        out |= {f"{name}/gamma": 1 + draw(d), f"{name}/beta": draw(d)}
    return out


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A Whisper's decoder of three blocks, with its vocabulary beside it."""
    tokens = [
        "!",
        *LETTERS,
        *(f"Ġ{c}" for c in LETTERS),
        "Ġth",
        "Ġthe",
        "at",
        "Ġcat",
        "ng",
        "ing",
        "Ġbad",
        "<|endoftext|>",
    ]
    tokens += ["<|notimestamps|>", "<|startoftranscript|>"]
    (tmp_path / "vocabulary.json").write_text(json.dumps(tokens))
    write_ctranslate2(tmp_path / "model.bin", decoder_variables(3, tokens))
    return tmp_path / "model.bin"


def test_pieces_are_those_that_texts_use(teacher: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(tmp_path / "vocabulary.json")
    single = (*LETTERS, *(f" {c}" for c in LETTERS))
    assert choose_pieces(["THE CAT SINGS", "THE CAB"], vocabulary, LETTERS.upper(), 1) == (*single, " th", " the")
    found = choose_pieces(["THE CAT SINGS"], vocabulary, LETTERS, 100)
    assert found == (*single, " th", " the", "at", " cat", "ng", "ing")  # as they are merged, and what of
    with pytest.raises(ValueError, match="all letters. Found: none of 'é', ' é'"):
        choose_pieces(["A"], vocabulary, "aé", 5)
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(ValueError, match="list of tokens"):
        read_vocabulary(tmp_path / "other.json")
    (tmp_path / "plain.txt").write_text("a\nĠb\n")
    assert read_vocabulary(tmp_path / "plain.txt") == {"a": 0, " b": 1}


def test_it_begins_as_its_teacher(teacher: Path, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(tmp_path / "vocabulary.json")
    rescorer = make_rescorer(teacher, vocabulary, [" the", "ing"], [2, 0], 4)
    assert rescorer.config.num_hidden_layers == 2 and rescorer.config.n_blocks == 4
    variables = decoder_variables(3, list(vocabulary))
    expected = variables["decoder/embeddings/weight"]
    ids = [vocabulary[token] for token in ("<|endoftext|>", "<|notimestamps|>", " the", "ing")]
    assert np.array_equal(rescorer.embedding.weight.detach().numpy(), expected[ids])
    places = variables["decoder/position_encodings/encodings"]  # before a text there is the prompt, here of one token
    assert np.array_equal(rescorer.positions.detach().numpy(), places[1:257])
    assert np.array_equal(rescorer.prompt.detach().numpy(), expected[-1:] + places[:1])
    first = rescorer.state_dict()["layers.0.cross_attention.kv_proj.weight"].numpy()
    assert np.array_equal(first, variables["decoder/layer_2/attention/linear_1/weight"])
    with pytest.raises(ValueError, match="blocks of \\[0, 1, 2\\]"):
        make_rescorer(teacher, vocabulary, [" the"], [3], 4)


def kept(folder: Path, n: int) -> None:
    """States in which a few texts are easy to tell."""
    folder.mkdir()
    texts = ["A BAD CAB", "THE CAT", "SING", "CAT THE BAD"]
    for number in range(n):
        rng = np.random.default_rng(number)
        chosen = rng.integers(0, len(texts), 2)
        hidden = torch.zeros(2, 20, 64)
        for i, which in enumerate(chosen):
            hidden[i, :, 8 * int(which) : 8 * int(which) + 8] = 3
        hidden += 0.1 * torch.randn(hidden.shape)
        labels = torch.full((2, 20), -100)
        for i, which in enumerate(chosen):
            ids = [VOCABULARY.index("|" if letter == " " else letter) for letter in texts[int(which)]]
            labels[i, : len(ids)] = torch.tensor(ids)
        part = States(hidden.bfloat16(), hidden.bfloat16())
        save(Heard(part, torch.tensor([20, 17]), labels, 1.0), folder / f"{number:06}.pt")


def test_the_command_makes_one_that_reads(teacher: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    kept(tmp_path / "states", 12)
    (tmp_path / "text.tsv").write_text("1\tA bad cab the cat\n2\tsing the cat\n")
    output = tmp_path / "made" / FOLDER
    command = ["rescorer", str(tmp_path / "text.tsv"), "--model", str(tiny_model_dir), "--teacher", str(teacher)]
    command += ["--vocabulary", str(tmp_path / "vocabulary.json"), "--states", str(tmp_path / "states"), "--output"]
    settings = ["--blocks", "0", "2", "--pieces", "4", "--encoder-blocks", "3", "--steps", "60", "--files", "2"]
    settings += ["--rounded", "20", "--learning-rate", "3e-3", "--warmup", "5", "--dtype", "float32", "--device", "cpu"]
    settings += ["--share", "0.9", "--average", "0"]
    assert main([*command, str(output), *settings]) == 0
    rescorer = Rescorer.load(output)
    assert rescorer.config.n_blocks == 3 and {" the", " cat"} <= set(rescorer.config.pieces)
    heard = np.zeros((20, 64), np.float32)
    heard[:, 8:16] = 3
    scores = rescorer.score(heard, ["A BAD CAB", "THE CAT", "SING", "CAT THE BAD"])
    assert int(np.argmax(scores)) == 1 and scores[1] > -2
    lines = (output / "training.csv").read_text().splitlines()
    assert float(lines[-1].split(",")[2]) < 0.5 * float(lines[1].split(",")[2])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_its_teacher_knew_stays(share: float, tmp_path: Path) -> None:
    kept(tmp_path / "states", 4)
    files = sorted((tmp_path / "states").glob("*.pt"))
    rescorer, before = make(), make().state_dict()
    config = RunConfig(tmp_path / "run", 3, 1e-2, warmup=1, log_every=0, save_every=0, is_mixed=False)
    train_rescorer(rescorer, files, make_tokenizer(), config, 2, share=share)
    moved = {name for name, weight in rescorer.state_dict().items() if not torch.equal(weight, before[name])}
    still = ("embedding", "positions", "prompt", "state_norm", "cross_attention.kv_proj")
    assert not any(part in name for name in moved for part in still)
    assert bool(moved) == (share > 0) and (not moved or "layers.0.cross_attention.q_proj.weight" in moved)
    step = float((rescorer.state_dict()["layer_norm.bias"] - before["layer_norm.bias"]).abs().max())
    assert step == pytest.approx(share * 0.0225, rel=0.2)  # rates of 1, 5/6 and 5/12 hundredths, by Adam


def test_rounded_weights_are_what_is_learned_with() -> None:
    rescorer = make()
    for parameter in rescorer.parameters():
        parameter.requires_grad_(True)
    hidden = torch.randn(2, 10, 64)
    heard = [Heard(States(hidden, hidden), torch.tensor([10, 9]), torch.zeros(2, 1), 1.0)]
    texts = ["THE CAT", "SING"]
    on_disk = make()
    with torch.no_grad():
        for name, parameter in on_disk.named_parameters():
            if is_rounded(name, parameter):
                parameter.copy_(from_int4(*to_int4(parameter)))
    found = reading_loss(rescorer, heard, texts, is_mixed=False, as_on_disk=True)
    expected = reading_loss(on_disk, heard, texts, is_mixed=False)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(found.detach()) != pytest.approx(float(reading_loss(rescorer, heard, texts, False).detach()), rel=1e-4)
    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    theirs = dict(on_disk.named_parameters())
    for name, parameter in rescorer.named_parameters():
        ours, other = parameter.grad, theirs[name].grad
        assert isinstance(ours, Tensor) and isinstance(other, Tensor)
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)
    weight = torch.randn(2, GROUP, requires_grad=True)
    rounded(weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and (weight.grad == 1).all()
