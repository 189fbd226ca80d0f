"""The decoder that reads the best texts again: against transformers, against itself without a tree, and in streams."""

from __future__ import annotations

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

from core.acoustic import AcousticModel
from core.beam import BeamDecoder
from core.checkpoint import load_model
from core.endpoint import EndpointConfig
from core.engine import Engine
from core.offline import transcribe_offline
from core.pieces import BEGIN, END, N_SPECIAL, Pieces, Tree
from core.precision import is_fast
from core.rescorer import FOLDER, Rescorer, RescorerConfig, RescorerError
from core.rounding import GROUP, SHARES, from_int4, from_integers, to_int4
from core.training.command import copy_companions
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
    # With int8 beside bfloat16 the one piece of no text is most of a nat off, of these random weights.
    apart = 1.0 if dtype == torch.int8 and is_fast(torch.bfloat16) else 0.0
    np.testing.assert_allclose(packed.score(heard, TEXTS), expected, rtol=0.03, atol=apart)
    if is_fast(torch.bfloat16):
        assert np.abs(np.subtract(packed.score(heard, TEXTS), expected)).max() < 0.02 * np.abs(expected).max()
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
