from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from core.beam import LanguageModel
from core.training.language_model import build_language_model, read_text
from core.training.ngram import BEGIN, END, UNKNOWN, Ngrams, continuation_counts, count_grams, estimate, write_arpa

TEXT = ["the cat sat on the mat", "the dog sat on the cat", "a cat and a dog", "the mat", "on and on", "sat"] * 2 + [
    "a bird sat",
    "the bird and the dog sat on a mat",
    "three blind mice",
]


def total(model: Ngrams, context: tuple[str, ...]) -> float:
    words = [gram[0] for gram in model.log_probs[0] if gram != (BEGIN,)]
    return sum(math.exp(model.log_prob((*context, word))) for word in words)


@pytest.mark.parametrize("least", [(), (1, 1, 2), (1, 2, 3)])
def test_every_context_sums_to_one(least: tuple[int, ...]) -> None:
    model = estimate(count_grams(TEXT, 3), least)
    for context in [
        (),
        ("the",),
        (BEGIN,),
        (BEGIN, "the"),
        ("sat", "on"),
        ("never", "seen"),
        ("mice",),
        ("blind", "mice"),
    ]:
        assert total(model, context) == pytest.approx(1, abs=1e-6), context


def test_listed_words_are_as_likely_as_unknown_ones(tmp_path: Path) -> None:
    model = estimate(count_grams(TEXT, 3), (), ["zebra", "cat"])
    assert model.log_prob(("the", "zebra")) == model.log_prob(("the", "quagga"))  # which nobody listed
    assert model.log_prob(("the", "cat")) > model.log_prob(("the", "zebra"))
    for context in [(), ("the",), (BEGIN, "the")]:
        assert total(model, context) == pytest.approx(1, abs=1e-6)
    text, words = tmp_path / "text.txt", tmp_path / "words"
    text.write_text("The cat sat. The dog sat.", encoding="utf-8")
    words.write_text("zebra\ncat\n\nO'Hara\n42\n", encoding="utf-8")
    build_language_model([text], tmp_path / "lm", [1, 1], LanguageModel(Path()), [words])
    assert {"ZEBRA", "CAT", "O'HARA"} < set(LanguageModel.load(tmp_path / "lm").words or ())


def test_words_count_by_the_company_they_keep() -> None:
    """`francisco` is frequent, but follows one word only, so that it says little about other places."""
    counts = count_grams(["san francisco"] * 8 + ["a tea", "the tea", "my tea", "some tea"], 2)
    assert continuation_counts(counts)[0][("francisco",)] == 1
    assert continuation_counts(counts)[0][("tea",)] == 4
    model = estimate(counts)
    assert model.log_prob(("black", "tea")) > model.log_prob(("black", "francisco"))
    assert model.log_prob(("san", "francisco")) > model.log_prob(("san", "tea"))


def test_a_known_sentence_is_likelier_than_its_words_shuffled() -> None:
    model = estimate(count_grams(TEXT, 3))

    def score(sentence: str) -> float:
        words = (BEGIN, *sentence.split(), END)
        return sum(model.log_prob(words[: i + 1]) for i in range(1, len(words)))

    assert score("the cat sat on the mat") > score("mat cat on the sat the")
    assert model.log_prob(("platypus",)) == model.log_prob((UNKNOWN,))


def test_arpa_holds_the_model(tmp_path: Path) -> None:
    model = estimate(count_grams(TEXT, 3), (1, 1, 2))
    path = tmp_path / "lm.arpa.gz"
    write_arpa(model, path)
    text = gzip.decompress(path.read_bytes()).decode()
    sections = text.split("\n\n")
    assert sections[0].splitlines()[0] == "\\data\\" and text.rstrip().endswith("\\end\\")
    for n in (1, 2, 3):
        lines = sections[n].splitlines()
        assert lines[0] == f"\\{n}-grams:"
        assert f"ngram {n}={len(lines) - 1}" in sections[0]
        for line in lines[1:]:
            value, words, *weight = line.split("\t")
            gram = tuple(words.split())
            if gram != (BEGIN,):
                assert float(value) * math.log(10) == pytest.approx(model.log_probs[n - 1][gram], abs=0.012)
            assert len(weight) == (n < 3 and gram[-1] != END)
    write_arpa(model, tmp_path / "again.arpa.gz")
    assert (tmp_path / "again.arpa.gz").read_bytes()[10:] != b""


def test_prose_and_tsv_become_a_folder_that_beam_search_loads(tmp_path: Path) -> None:
    prose, table = tmp_path / "book.txt", tmp_path / "lines.tsv"
    prose.write_text('It was 7 o\'clock. "Mr. Hale\nsat down;" nobody spoke.')
    table.write_text("id-1\tTHE CAT SAT\nid-2\tA DOG SAT\n")
    assert list(read_text(prose)) == ["IT WAS SEVEN O'CLOCK", "HALE SAT DOWN", "NOBODY SPOKE"]
    output = tmp_path / "lm"
    settings = LanguageModel(output, alpha=0.3, beta=2.0, unknown=-4.0)
    build_language_model([prose, table], output, (1, 1), settings)
    model = LanguageModel.load(output)
    assert (model.path.name, model.alpha, model.beta, model.unknown) == ("2gram.arpa.gz", 0.3, 2.0, -4.0)
    assert model.words is not None and {"CAT", "O'CLOCK", "HALE"} <= set(model.words)
    with pytest.raises(ValueError, match="do not fall"):
        build_language_model([prose], output, (2, 1), settings)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        build_language_model([tmp_path / "empty.txt"], output, (1,), settings)
