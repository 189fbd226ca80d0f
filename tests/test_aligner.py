"""The aligner against every path there is, and against text planted in known frames."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.aligner import SILENCE, align, align_words, spell
from core.decoder import Alphabet, decode_greedy
from tests.planted import ALPHABET, TOKENS, PlantedModel, plant

SILENT = (0, 1)
SMALL = 4  # ids: blank, delimiter, two letters


def random_rows(n: int, n_vocab: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (n, n_vocab))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def spelled(path: tuple[int, ...]) -> list[int]:
    """What a path says: collapsed, without blanks; delimiters at the ends gone and runs of them one."""
    ids = [token for token, _ in groupby(path) if token != 0]
    merged = [token for i, token in enumerate(ids) if token != 1 or (i and ids[i - 1] != 1)]
    return merged[:-1] if merged and merged[-1] == 1 else merged


def best_of_all(log_probs: np.ndarray, labels: list[int]) -> float:
    """The score of the likeliest of all paths that spell the labels."""
    paths = [path for path in product(range(SMALL), repeat=len(log_probs)) if spelled(path) == labels]
    return max(float(sum(log_probs[i, token] for i, token in enumerate(path))) for path in paths)


def score_of(log_probs: np.ndarray, labels: list[int], said: np.ndarray) -> float:
    """Of the likeliest path that an alignment allows; checks that it is one."""
    spoken = [i for i, _ in groupby(said.tolist()) if i != SILENCE]
    assert spoken == list(range(len(labels)))
    borders = (-1, len(labels), *(i for i, token in enumerate(labels) if token == 1))
    total = 0.0
    for frame, index in enumerate(said.tolist()):
        if index == SILENCE:
            before = int(said[:frame].max(initial=-1))
            is_border = before in borders or before + 1 in borders
            total += float(log_probs[frame, list(SILENT)].max() if is_border else log_probs[frame, 0])
        else:
            total += float(log_probs[frame, labels[index]])
    return total


LABELS = [[], [2], [2, 2], [2, 3], [2, 1, 2], [2, 1, 3, 3], [2, 2, 1, 2], [3, 2, 3]]


@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("n", [1, 4, 6])
def test_the_best_of_all_paths(labels: list[int], n: int) -> None:
    if n < len(labels) + sum(a == b for a, b in zip(labels, labels[1:], strict=False)):
        with pytest.raises(ValueError, match=rf"for {len(labels)} labels. Found: {n}"):
            align(random_rows(n, SMALL, 0), labels, SILENT)
        return
    for seed in range(3):
        log_probs = random_rows(n, SMALL, seed)
        said = align(log_probs, labels, SILENT)
        assert said.shape == (n,)
        assert score_of(log_probs, labels, said) == pytest.approx(best_of_all(log_probs, labels), abs=1e-4)


def test_no_frame_and_no_label() -> None:
    assert align(np.zeros((0, 4), np.float32), [], SILENT).tolist() == []
    assert align(random_rows(3, 4, 0), [], SILENT).tolist() == [SILENCE] * 3
    assert align_words(random_rows(3, len(TOKENS), 0), 7, "  ", ALPHABET) == []


WORDS = st.lists(st.text("ABCX'", min_size=1, max_size=6), min_size=1, max_size=6)


@settings(deadline=None, max_examples=100)
@given(words=WORDS, gap=st.integers(1, 4), start=st.integers(0, 10_000))
def test_planted_frames_are_found_exactly(words: list[str], gap: int, start: int) -> None:
    text = " ".join(words)
    log_probs = PlantedModel().read(plant(text, gap, tail=5))
    frame, expected = start, []
    for word in words:
        end = frame + (len(word) - 1) * (gap + 1) + 1
        expected.append((word, frame, end))
        frame = end + gap + 1 + gap
    aligned = align_words(log_probs, start, text.lower(), ALPHABET)
    assert [(word.text.upper(), word.start_frame, word.end_frame) for word in aligned] == expected
    assert all(word.confidence == pytest.approx(0.98, abs=1e-4) for word in aligned)
    greedy = decode_greedy(log_probs, start, ALPHABET)
    assert [(w.start_frame, w.end_frame) for w in greedy] == [(w.start_frame, w.end_frame) for w in aligned]


def test_a_word_that_the_model_did_not_hear_lies_between_its_neighbours() -> None:
    log_probs = PlantedModel().read(plant("ONE~THREE", 2))
    one, two, three = align_words(log_probs, 0, "ONE TWO THREE", ALPHABET)
    assert one.end_frame <= two.start_frame < two.end_frame <= three.start_frame
    assert two.confidence < 0.05 < one.confidence == three.confidence == 0.98


def test_a_vocabulary_without_delimiter() -> None:
    alphabet = Alphabet(("_", "A", "B"), 0, 0)
    log_probs = np.log(np.full((6, 3), 0.01, np.float32))
    log_probs[range(6), [1, 1, 0, 1, 2, 0]] = np.log(0.98)
    first, second = align_words(log_probs, 0, "A AB", alphabet)
    assert (first.start_frame, first.end_frame, second.start_frame, second.end_frame) == (0, 2, 3, 5)


def test_letters_of_several_characters() -> None:
    alphabet = Alphabet(("_", "|", "C", "H", "CH", "A"), 0, 1)
    ids = [4, 4, 0, 5, 1, 2, 3, 0]
    log_probs = np.log(np.where(np.arange(6) == np.array(ids)[:, None], 0.95, 0.01)).astype(np.float32)
    assert [word.text for word in decode_greedy(log_probs, 0, alphabet)] == ["CHA", "CH"]
    first, _ = align_words(log_probs, 0, "CHA CH", alphabet)
    assert (first.start_frame, first.end_frame, first.confidence) == (0, 4, 0.95)
    assert spell("chaCHhc", alphabet) == (4, 5, 4, 3, 2)
    with pytest.raises(ValueError, match="Found: 'X'"):
        align_words(log_probs, 0, "CHX", alphabet)


def test_letters_that_the_model_does_not_have() -> None:
    log_probs = random_rows(20, len(TOKENS), 0)
    for text in ("A1", "A|B", "A_"):
        with pytest.raises(ValueError, match="Expected a text in the model's letters"):
            align_words(log_probs, 0, text, ALPHABET)
