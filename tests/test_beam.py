"""Beam search on made frames: what the language model and hot words change, and what they must leave alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ASSETS
from planted import ALPHABET, TOKENS, PlantedModel, plant

from core.beam import DRAFT, FOLDER, BeamDecoder, LanguageModel, LanguageModelError, make_decoder, parse_hotwords
from core.decoder import Alphabet, GreedyDecoder, decode_greedy, draft
from core.engine import Engine
from core.offline import transcribe_offline
from core.training.ngram import count_grams, estimate, write_arpa
from core.windows import StreamConfig

TEXT = ["THE CAT SAT ON THE MAT", "THE DOG SAT", "A CAT AND A DOG", "WE SEE THE SEA", "THE SEA IS WIDE"] * 3


def frames(text: str, doubts: dict[int, str] | None = None, sure: float = 0.55) -> np.ndarray:
    """Rows that spell `text`, two frames a letter; `doubts`: at a letter's place another, nearly as likely."""
    rows = []
    for place, letter in enumerate(text):
        row = np.full(len(TOKENS), 0.001)
        row[TOKENS.index("|" if letter == " " else letter)] = 0.95
        if doubts and place in doubts:
            row[TOKENS.index(letter)] = sure
            row[TOKENS.index(doubts[place])] = 0.95 - sure
        blank = np.full(len(TOKENS), 0.001)
        blank[0] = 0.95
        rows += [row, blank]
    probs = np.array(rows)
    return np.log(probs / probs.sum(1, keepdims=True)).astype(np.float32)


def said(decoder: BeamDecoder, rows: np.ndarray) -> str:
    return " ".join(word.text for word in decoder(rows, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lm") / FOLDER
    directory.mkdir()
    write_arpa(estimate(count_grams(TEXT, 2)), directory / "2gram.arpa.gz")
    (directory / "attrs.json").write_text(json.dumps({"alpha": 0.7, "beta": 1.0, "unk_score_offset": -5.0}))
    return directory


def test_without_a_model_sure_frames_read_as_greedy_does() -> None:
    rows = frames("BOOKKEEPER SEES LLAMAS")
    words, greedy = BeamDecoder(ALPHABET)(rows, 7), decode_greedy(rows, 7, ALPHABET)
    assert [(w.text, w.start_frame, w.confidence) for w in words] == [
        (w.text, w.start_frame, w.confidence) for w in greedy
    ]
    assert BeamDecoder(ALPHABET)(rows[:0], 0) == []


def test_the_language_model_puts_a_misheard_letter_right(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = frames("THE CAT SET ON THE MAT", {9: "A"})
    decoder = BeamDecoder(ALPHABET, LanguageModel.load(folder))
    assert said(BeamDecoder(ALPHABET), rows) == "THE CAT SET ON THE MAT"
    assert said(decoder, rows) == "THE CAT SAT ON THE MAT"
    assert capfd.readouterr().err == ""  # KenLM would draw a progress bar


def test_settings_come_from_attrs_and_words_from_the_arpa(folder: Path) -> None:
    model = LanguageModel.of_checkpoint(folder.parent)
    assert model is not None
    assert (model.alpha, model.beta, model.unknown, model.score_boundary) == (0.7, 1.0, -5.0, True)
    assert model.words is not None and set(model.words) == set(" ".join(TEXT).split())
    assert LanguageModel.of_checkpoint(folder) is None


def test_frames_that_count_for_more_are_mended_less(folder: Path) -> None:
    rows, model = frames("THE CAT SET ON THE MAT", {9: "A"}), LanguageModel.load(folder)
    said_at = {power: said(BeamDecoder(ALPHABET, replace(model, acoustic=power)), rows) for power in (0.5, 1, 60)}
    assert said_at == {0.5: "THE CAT SAT ON THE MAT", 1: "THE CAT SAT ON THE MAT", 60: "THE CAT SET ON THE MAT"}
    assert model.acoustic == 1 and LanguageModel.load(ASSETS / "streamer-en" / FOLDER).acoustic == 0.6


def test_a_language_model_that_cannot_be_used_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = SimpleNamespace(alphabet=ALPHABET, directory=folder.parent, name="mine", rescorer=lambda: None)
    assert isinstance(make_decoder(model), BeamDecoder) and not caplog.records
    monkeypatch.setattr("core.beam.is_installed", lambda: False)
    assert isinstance(make_decoder(model), GreedyDecoder)
    assert "mine goes without its language model" in caplog.text and "streamer[lm]" in caplog.text
    caplog.clear()
    assert isinstance(make_decoder(model, "none"), GreedyDecoder) and not caplog.records


def test_no_word_is_made_up_where_nobody_speaks(folder: Path) -> None:
    rows = np.full((60, len(TOKENS)), np.log(1e-3), np.float32)
    rows[:, 0] = np.log(0.95)
    rows[30, TOKENS.index("A")] = np.log(0.02)
    eager = BeamDecoder(ALPHABET, replace(LanguageModel.load(folder), beta=9.0), {"mat": 8.0})
    assert eager(rows, 0) == []
    assert said(eager, np.concatenate([rows, frames("A CAT")])).endswith("CAT")


def test_hot_words_lift_the_rare_and_leave_the_rest(folder: Path) -> None:
    model = LanguageModel.load(folder)
    doubtful = frames("SEE THE OTTER", {8: "U"}, sure=0.3)  # the greedy path reads UTTER
    plain = BeamDecoder(ALPHABET, model)
    hot = plain.with_hotwords({"otter": 8.0})
    assert said(plain, doubtful) != "SEE THE OTTER"
    assert said(hot, doubtful) == "SEE THE OTTER"
    other = frames("THE CAT SAT ON THE MAT")
    assert said(hot, other) == said(plain, other) == "THE CAT SAT ON THE MAT"
    assert hot.engine is plain.engine


def test_words_that_the_language_model_lacks_are_spared_its_charge(folder: Path) -> None:
    model = LanguageModel.load(folder)  # charges 5 for a word that it lacks
    hot = BeamDecoder(ALPHABET, model, {"cat": 4.0, "otter": 4.0, "sea cat": 4.0, "sea otter": 4.0})
    assert hot.weights == {"CAT": 4.0, "OTTER": 9.0, "SEA CAT": 4.0, "SEA OTTER": 9.0}
    assert hot.with_hotwords(hot.hotwords).weights == hot.weights
    assert BeamDecoder(ALPHABET, None, {"otter": 4.0}).weights == {"OTTER": 4.0}
    doubtful = frames("THE CAT SET ON THE MAT", {9: "A"})
    assert said(BeamDecoder(ALPHABET, model), doubtful) == "THE CAT SAT ON THE MAT"
    assert said(BeamDecoder(ALPHABET, model, {"set": 8.0}), doubtful) == "THE CAT SET ON THE MAT"


def test_a_word_that_begins_like_a_hot_word_is_left_alone() -> None:
    rows = frames("CAR AND CARTS", {0: "K", 8: "K"}, sure=0.6)
    for weight in (8.0, 30.0):
        assert said(BeamDecoder(ALPHABET, hotwords={"KATE": weight, "KARTING": weight}), rows) == "CAR AND CARTS"


def test_each_hot_word_has_its_own_weight() -> None:
    rows = frames("KATE", {0: "C"}, sure=0.3)  # CATE is likelier
    assert said(BeamDecoder(ALPHABET, hotwords={"KATE": 6.0, "CATE": 0.5}), rows) == "KATE"
    assert said(BeamDecoder(ALPHABET, hotwords={"KATE": 0.5, "CATE": 6.0}), rows) == "CATE"


def test_finals_of_a_stream_are_those_of_one_pass(folder: Path) -> None:
    decoder = BeamDecoder(ALPHABET, LanguageModel.load(folder))
    engine = Engine(PlantedModel(), decoder)  # type: ignore[arg-type]
    samples = plant("THE CAT SAT ON THE MAT AND THE DOG SAT ON THE CAT ~~WE SEE THE SEA", gap=9)
    stream = engine.new_stream(StreamConfig.preset("low"))
    events = []
    for start in range(0, len(samples), 5000):
        stream.push(samples[start : start + 5000])
        events += engine.drain(stream)
    stream.finish()
    events += engine.drain(stream)
    finals = [event.text for event in events if event.is_final]
    assert finals == ["THE CAT SAT ON THE MAT AND THE DOG SAT ON THE CAT", "WE SEE THE SEA"]
    assert finals == [event.text for event in transcribe_offline(engine, samples)]
    # Long stretches are decoded once: what a partial shows of them stays.
    partials = [event.text for event in events if not event.is_final and event.segment == 0]
    assert len(partials[-1].split()) >= 12 and finals[0].startswith(partials[-1])


@pytest.mark.parametrize(
    ("letters", "word", "expected"),
    [
        ("АБВГД", "абв гд", "АБВ ГД"),
        ("абвгд", "АБВ", "абв"),
        ("ABCDabcd", "Abc", "Abc"),
        ("ABRÖßE", "aßö", "AßÖ"),
        ("ABS", "aß", "ASS"),
        ("abce", "DEB", "Deb"),
    ],
)
def test_hot_words_take_the_case_of_the_vocabulary(letters: str, word: str, expected: str) -> None:
    assert BeamDecoder(Alphabet(("<pad>", "|", *letters), 0, 1)).spell(word) == expected


def test_letters_of_several_characters() -> None:
    alphabet = Alphabet(("_", "|", *"ABDEŽ", "DŽ"), 0, 1)
    rows = np.full((10, 8), 0.01)
    rows[range(10), [3, 0, 2, 0, 7, 7, 0, 5, 1, 2]] = 0.93
    rows[4:6, 7], rows[4:6, 4] = 0.4, 0.54
    log_probs = np.log(rows / rows.sum(1, keepdims=True)).astype(np.float32)
    assert said(BeamDecoder(alphabet), log_probs) == "BADE A"
    words = BeamDecoder(alphabet, hotwords={"badže": 8.0})(log_probs, 0)
    assert [(word.text, word.start_frame, word.end_frame) for word in words] == [("BADŽE", 0, 8), ("A", 9, 10)]


def test_hot_word_files() -> None:
    lines = ["# names", "Okafor", "Siobhan:3.5  # a friend", "", "New York : 5"]
    assert parse_hotwords(lines) == {"Okafor": 8.0, "Siobhan": 3.5, "New York": 5.0}
    with pytest.raises(ValueError, match="line 2.*'b:much'"):
        parse_hotwords(["a", "b:much"])
    for weight in ("nan", "inf", "-inf", "1e999"):
        with pytest.raises(ValueError, match=f"line 1.*'b:{weight}'"):
            parse_hotwords([f"b:{weight}"])
        with pytest.raises(ValueError, match="Expected finite weights of hot words. Found: .* of 'B'"):
            BeamDecoder(ALPHABET, hotwords={"b": float(weight)})
    with pytest.raises(ValueError, match="7"):
        BeamDecoder(ALPHABET, hotwords={"7UP": 1.0})


@pytest.mark.parametrize("content", ["", "nothing of the kind\n", "\\data\\\nngram 1=1\n"])
def test_what_is_no_language_model_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.arpa"
    path.write_text(content)
    with pytest.raises(LanguageModelError, match=r"x\.arpa"):
        LanguageModel.load(path)
    for wrong in (tmp_path, tmp_path / "none.arpa"):
        if wrong == tmp_path:
            path.unlink()
        with pytest.raises(LanguageModelError, match=str(wrong)):
            LanguageModel.load(wrong)
    compiled = tmp_path / "x.bin"
    compiled.write_bytes(b"not KenLM")
    with pytest.raises(LanguageModelError, match=r"x\.bin"):
        BeamDecoder(ALPHABET, LanguageModel.load(compiled))


def test_partials_are_decoded_by_a_narrower_search(folder: Path) -> None:
    decoder = BeamDecoder(ALPHABET, LanguageModel.load(folder), {"KAT": 2.0})
    assert draft(decoder) is decoder.draft and decoder.draft.search == DRAFT != decoder.search
    assert (decoder.draft.engine, decoder.draft.hotwords) == (decoder.engine, decoder.hotwords)
    greedy = GreedyDecoder(ALPHABET)
    assert draft(greedy) is greedy
