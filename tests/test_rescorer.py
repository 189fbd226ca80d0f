"""The decoder that reads the best texts again: against transformers, against itself without a tree, and in streams."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from planted import ALPHABET
from test_beam import frames
from test_training import write_ctranslate2
from torch import Tensor

from core.acoustic import AcousticModel
from core.beam import BeamDecoder
from core.checkpoint import load_model
from core.endpoint import EndpointConfig
from core.engine import Engine
from core.offline import transcribe_offline
from core.pieces import BEGIN, END, N_SPECIAL, Pieces, Tree
from core.precision import is_fast
from core.rescorer import FOLDER, Rescorer, RescorerConfig, RescorerError, is_rounded
from core.rounding import GROUP, SHARES, from_int4, from_integers, to_int4
from core.training.command import copy_companions, main
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
from core.transcript import Transcript
from core.wav2vec2 import Wav2Vec2ForCTC
from core.windows import StreamConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PIECES = (*LETTERS, *(f" {letter}" for letter in LETTERS), "at", "ng", "ing", "he", " the", " cat", " sat", " ca")
CONFIG = RescorerConfig(
    PIECES, 1, hidden_size=64, num_attention_heads=2, intermediate_size=128, max_length=40, weight=0.5, n_best=5
)
TEXTS = ["THE CAT SAT", "THE CAT", "THE CAT SAT ON", "A CAT SAT", "", "SINGING", "THE CAT SAT"]


def make(config: RescorerConfig = CONFIG, seed: int = 0) -> Rescorer:
    torch.manual_seed(seed)
    rescorer = Rescorer(config)
    with torch.no_grad():
        for parameter in rescorer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return rescorer.eval()


def states(n: int, seed: int = 1, hidden_size: int = 64) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, hidden_size)).astype(np.float32)


def test_words_are_cut_as_they_are_merged() -> None:
    pieces = Pieces(PIECES)

    def cut(text: str) -> list[str]:
        return [pieces.text(i) for i in pieces.encode(text)]

    assert cut("The CAT'S singing") == [" the", " cat", "'", "s", " s", "ing", "ing"]
    assert cut("CATALOGUE") == [" cat", "a", "l", "o", "g", "u", "e"]
    assert cut("NO CAFÉ 7") == [" n", "o", " ca", "f"]  # what is no letter is left out
    assert cut(" ") == [] and Pieces(("a",)).encode("A BA") == [2, 2]


def test_words_are_cut_as_by_a_library() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    texts = ["the cat sat on the mat", "that cat is singing things", "a cab, a cat's cab; sitting"]
    space = "Ġ"
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=[], show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    ids = theirs.get_vocab()
    merged = [piece.replace(space, " ") for piece in sorted(ids, key=ids.__getitem__) if len(piece) > 1]
    letters = sorted(set("".join(texts)) - {" "})
    pieces = Pieces((*letters, *(p for c in letters if (p := f" {c}") not in merged), *merged))
    for text in (*texts, "that thing is singing", "mat matting cats"):
        expected = [piece.replace(space, " ") for piece in theirs.encode(text).tokens]
        assert [pieces.text(i) for i in pieces.encode(text)] == expected, text


@pytest.mark.parametrize("n_prompt", [0, 3])
def test_a_tree_reads_what_its_texts_would_one_by_one(n_prompt: int) -> None:
    rescorer, heard = make(replace(CONFIG, n_prompt=n_prompt)), states(30)
    found = rescorer.score(heard, TEXTS)
    for text, score in zip(TEXTS, found, strict=True):
        ids = rescorer.pieces.encode(text)
        read = torch.tensor([[BEGIN, *ids]])
        with torch.no_grad():
            log_probs = rescorer(torch.from_numpy(heard)[None], read)[0].log_softmax(-1)
        expected = sum(float(log_probs[i, piece]) for i, piece in enumerate([*ids, END]))
        assert score == pytest.approx(expected, abs=1e-3), text
        assert rescorer.score(heard, [text])[0] == pytest.approx(expected, abs=1e-3)
    assert found[0] == found[-1] != found[1]
    assert rescorer.score(heard, []) == [] and rescorer.score(heard[:0], ["A"]) == [0.0]
    assert rescorer.score(states(30, seed=2), ["THE CAT"])[0] != pytest.approx(found[1], abs=0.1)


def test_a_tree_has_each_beginning_once() -> None:
    pieces, tree = Pieces(PIECES), Tree()
    walks = [tree.walk(pieces.encode(text)) for text in ("THE CAT SAT", "THE CAT", "THE SAT")]
    assert walks == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 4]]  # the beginning, the, the cat, the cat sat, the sat
    assert tree.places == [0, 1, 2, 3, 2] and list(map(len, tree.paths)) == [0, 1, 2, 3, 2]


def test_texts_go_on_as_one_after_a_difference() -> None:
    rescorer = make(replace(CONFIG, max_length=60))
    rest = " SAT ON THE CAT SINGING"
    texts = [f"THE CAT{rest}", f"A CAT{rest}"]
    pieces, tree = [rescorer.pieces.encode(text) for text in texts], Tree()
    one, other = map(tree.walk, pieces)
    assert len(tree.pieces) < 1 + len(pieces[0]) + len(pieces[1]) - 4  # most of the rest is there once
    assert one[-1] == other[-1] and one[1] != other[1]
    exact = [rescorer.score(states(30), [text])[0] for text in texts]
    found = rescorer.score(states(30), texts)
    assert found[0] == pytest.approx(exact[0], abs=1e-3)  # the first is read after its own beginning
    assert found[1] == pytest.approx(exact[1], abs=0.1 * abs(exact[1]))
    again, tree = "CAT SAT CAT SAT CAT SAT CAT SAT", Tree()  # a text goes never on in its own past
    for i, text in enumerate((again, f"THE {again}")):
        path = tree.walk(rescorer.pieces.encode(text))
        assert len(set(path)) == len(path) == 9 + i
    alone, beside = (rescorer.score(states(30), texts)[0] for texts in ([again], [again, "A"]))
    assert alone == pytest.approx(beside, abs=1e-3)


def test_long_texts_are_read_up_to_the_last_place() -> None:
    rescorer = make()
    long = "CAT " * 100
    assert rescorer.score(states(10), [long])[0] == rescorer.score(states(10), ["CAT " * 39])[0]
    read, said = rescorer.batch([rescorer.pieces.encode(long)])
    assert read.shape == said.shape == (1, CONFIG.max_length) and int(said[0, -1]) == END


def test_blocks_are_those_of_whisper() -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.WhisperConfig(
        vocab_size=N_SPECIAL + len(PIECES),
        d_model=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=128,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
    )
    torch.manual_seed(0)
    theirs = transformers.models.whisper.modeling_whisper.WhisperDecoder(settings).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    known = theirs.state_dict()
    ours = make()
    weights = ours.state_dict()
    weights |= {"embedding.weight": known["embed_tokens.weight"], "positions": known["embed_positions.weight"]}
    names = {
        "attention": "self_attn",
        "layer_norm": "self_attn_layer_norm",
        "cross_layer_norm": "encoder_attn_layer_norm",
        "final_layer_norm": "final_layer_norm",
        "feed_forward.intermediate_dense": "fc1",
        "feed_forward.output_dense": "fc2",
        "cross_attention": "encoder_attn",
    }
    for name in list(weights):
        if name.startswith("layers."):
            _, number, part = name.split(".", 2)
            head = next(head for head in names if part.startswith(f"{head}."))
            source = f"layers.{number}.{names[head]}{part.removeprefix(head)}"
            if "kv_proj" in source:
                k, v = (source.replace("kv_proj", f"{which}_proj") for which in "kv")
                weights[name] = torch.cat([known.get(k, torch.zeros(64)), known[v]])
            else:
                weights[name] = known.get(source, torch.zeros_like(weights[name]))  # keys have no bias there
        elif name.startswith("layer_norm."):
            weights[name] = known[name]
        elif name.startswith("state_norm."):
            weights[name] = torch.ones(64) if name.endswith("weight") else torch.zeros(64)
    ours.load_state_dict(weights)
    heard = torch.nn.functional.layer_norm(torch.randn(2, 25, 64), (64,))
    read = torch.randint(2, len(PIECES), (2, 12))
    with torch.no_grad():
        expected = (
            theirs(input_ids=read, encoder_hidden_states=heard).last_hidden_state @ known["embed_tokens.weight"].T
        )
        torch.testing.assert_close(ours(heard, read), expected, atol=1e-3, rtol=1e-4)


def test_padding_is_not_heard() -> None:
    rescorer = make()
    read, _ = rescorer.batch([rescorer.pieces.encode("THE CAT")])
    heard = torch.from_numpy(states(20))[None]
    padded = torch.nn.functional.pad(heard, (0, 0, 0, 12), value=3.0)
    mask = (torch.arange(32) < 20)[None, None, None]
    with torch.no_grad():
        torch.testing.assert_close(rescorer(padded, read, mask), rescorer(heard, read), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_packed_weights_read_nearly_the_same(dtype: torch.dtype) -> None:
    if not is_fast(dtype):
        pytest.skip(f"this processor does not multiply {dtype}")
    heard = states(300)
    expected = make().score(heard, TEXTS)
    packed = make().fit(torch.device("cpu"), dtype)
    assert packed.head is not None
    np.testing.assert_allclose(packed.score(heard, TEXTS), expected, rtol=0.03)
    plain = make().fit(torch.device("cpu"), torch.float32)
    assert plain.head is None and plain.score(heard, TEXTS) == expected


def test_four_bits_are_the_best_of_their_scales() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4 * GROUP) * torch.rand(6, 1)
    packed, scales = to_int4(weight)
    assert packed.shape == (6, 2 * GROUP) and packed.dtype == torch.uint8 and scales.shape == (6, 4)
    found = from_int4(packed, scales)
    assert float((found - weight).norm() / weight.norm()) < 0.12
    for row in range(6):
        for group in range(4):
            values = weight[row, group * GROUP :][:GROUP]
            errors = []
            for share in SHARES:
                scale = (share * values.abs().max() / 7).half().float()
                errors.append(float(((values / scale).round().clamp(-8, 7) * scale - values).square().sum()))
            error = float((found[row, group * GROUP :][:GROUP] - values).square().sum())
            assert error == pytest.approx(min(errors), rel=1e-4)
    torch.testing.assert_close(from_integers({"a": packed, "a_scale": scales})["a"], found)
    assert (from_int4(*to_int4(torch.zeros(2, GROUP))) == 0).all()
    with pytest.raises(ValueError, match="multiple of 64 columns"):
        to_int4(torch.zeros(2, 65))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    rescorer = make(replace(CONFIG, n_prompt=2))
    rescorer.save(tmp_path / FOLDER)
    again = Rescorer.load(tmp_path / FOLDER)
    assert again.config == rescorer.config
    for name, weight in rescorer.state_dict().items():
        error = float((again.state_dict()[name] - weight).norm() / weight.norm())
        assert error < (0.12 if weight.dim() == 2 and name not in ("positions", "prompt") else 1e-3), name
    again.save(tmp_path / "twice")
    assert Rescorer.load(tmp_path / "twice").score(states(9), TEXTS) == pytest.approx(
        again.score(states(9), TEXTS), 0.05
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "Expected config.json"),
        ("config.json", '{"pieces": ["a"]}', "n_blocks"),
        ("config.json", '{"pieces": [], "n_blocks": 1}', "at least one letter"),
        ("config.json", '{"pieces": ["a"], "n_blocks": 0}', "n_blocks must be at least 1"),
        ("config.json", '{"pieces": ["a"], "n_blocks": 1}', "size mismatch"),
        ("model.safetensors", "nothing", "Expected config.json and model.safetensors"),
    ],
)
def test_a_damaged_one_is_named(file: str, content: str, message: str, tmp_path: Path) -> None:
    make().save(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(RescorerError, match=message) as error:
        Rescorer.load(tmp_path)
    assert str(tmp_path) in str(error.value)


class Liking(Rescorer):
    """Likes texts as it is told."""

    def __init__(self, likes: dict[str, float], n_best: int = 10) -> None:
        super().__init__(replace(CONFIG, n_best=n_best, is_proposing=False))
        self.likes, self.heard = likes, [0]

    def score(self, states: NDArray[np.float32], texts: Sequence[str]) -> list[float]:
        self.heard.append(len(states))
        return [self.likes.get(text, 0.0) for text in texts]


def test_the_best_texts_are_ranked_again() -> None:
    rows = frames("THE CAT", {4: "S"})  # or SAT
    likes = {"THE SAT": 3.0}
    decoder = BeamDecoder(ALPHABET, rescorer=Liking(likes))
    assert decoder.n_blocks == 1

    def said(decoder: BeamDecoder, heard: NDArray[np.float32] | None) -> str:
        return " ".join(word.text for word in decoder(rows, 0, heard))

    assert said(decoder, None) == said(BeamDecoder(ALPHABET), states(len(rows))) == "THE CAT"
    assert said(decoder, states(len(rows))) == "THE SAT"
    assert said(BeamDecoder(ALPHABET, rescorer=Liking(likes, n_best=1)), states(len(rows))) == "THE CAT"
    assert said(decoder.with_hotwords({"CAT": 8.0}), states(len(rows))) == "THE CAT"  # 3 halves against 8
    silent = Liking({})
    assert BeamDecoder(ALPHABET, rescorer=silent)(rows[1::2], 0, states(7)) == [] and silent.heard == [0]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A checkpoint with a rescorer that counts for more than the search."""
    directory = tmp_path_factory.mktemp("read") / "model"
    shutil.copytree(tiny_model_dir, directory)
    make(replace(CONFIG, hidden_size=32, max_length=400, n_best=20, weight=3.0), seed=4).save(directory / FOLDER)
    model = AcousticModel.load(directory, "cpu", "float32")
    rescorer = model.rescorer()
    assert rescorer is not None
    return Engine(model, BeamDecoder(model.alphabet, rescorer=rescorer))


def finals(events: Sequence[object]) -> list[Transcript]:
    return [event for event in events if isinstance(event, Transcript) and event.is_final]


def test_streams_read_again_what_one_pass_would(engine: Engine) -> None:
    rng = np.random.default_rng(5)
    loud = 0.3 * rng.standard_normal(7 * 16_000).astype(np.float32)
    samples = np.concatenate([loud, np.zeros(24_000, np.float32), loud[: 5 * 16_000]])
    config = StreamConfig.preset("low", EndpointConfig(max_length=200), commit_after=10**9)
    expected = transcribe_offline(engine, samples, config)
    plain = transcribe_offline(engine, samples, config, BeamDecoder(engine.alphabet))
    assert len(expected) >= 2 and len(plain) >= 2
    assert [final.text for final in expected] != [final.text for final in plain]  # it is asked
    for seed in range(3):
        stream, events = engine.new_stream(config), []
        cuts = np.sort(np.random.default_rng(seed).integers(0, len(samples), 40))
        for part in np.split(samples, cuts):
            stream.push(part)
            events += engine.drain(stream)
        stream.finish()
        assert finals(events + engine.drain(stream)) == expected
        assert stream.states is None
    short = samples[: 3 * 16_000]  # one window: its only pass is the final one
    stream = engine.new_stream(config)
    stream.push(short)
    stream.finish()
    assert finals(engine.drain(stream)) == transcribe_offline(engine, short, config)


def test_streams_of_other_decoders_run_beside(engine: Engine) -> None:
    rng = np.random.default_rng(6)
    samples = 0.3 * rng.standard_normal(2 * 16_000).astype(np.float32)

    def alone(decode: BeamDecoder | None) -> list[Transcript]:
        stream = engine.new_stream(None, decode)
        stream.push(samples)
        stream.finish()
        return finals(engine.drain(stream))

    other = BeamDecoder(engine.alphabet)
    pair = [engine.new_stream(), engine.new_stream(None, other)]
    found: list[list[object]] = [[], []]
    for stream in pair:
        stream.push(samples)
        stream.finish()
    while any(stream.is_ready for stream in pair):
        for events, new in zip(found, engine.step(pair), strict=True):
            events += new
    assert [finals(events) for events in found] == [alone(None), alone(other)]


def test_one_of_another_model_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert AcousticModel.load(tiny_model_dir, "cpu").rescorer() is None
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    make().save(tmp_path / "model" / FOLDER)
    with pytest.raises(RescorerError, match="1 blocks of hidden size 32. Found: 1 and 64"):
        AcousticModel.load(tmp_path / "model", "cpu").rescorer()


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


def test_it_goes_with_models_that_it_can_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    make(replace(CONFIG, hidden_size=32)).save(source / FOLDER)
    model = load_model(Wav2Vec2ForCTC, source)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        copy_companions(source, tmp_path / "head", model)
        model.wav2vec2.encoder.layers[0].feed_forward.output_dense.weight.mul_(1.1)
        copy_companions(source, tmp_path / "blocks", model)
    assert sorted(path.name for path in (tmp_path / "head" / FOLDER).iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "blocks").exists()
    copy_companions(source, source, model)  # of a model that is written over nothing is copied
