"""Greedy decoding against the definition of CTC's many-to-one map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from planted import ALPHABET, TOKENS
from test_stitcher import rows

from core.acoustic import alphabet_of
from core.decoder import Alphabet, Path, WordSpan, confidence_of, confidences, decode_greedy, decode_path, spell_paths
from core.tokenizer import Wav2Vec2Tokenizer


def collapse(path: str) -> list[str]:
    """The map B of the paper: repeats first, then blanks; `|` ends a word."""
    letters = "".join(letter for letter, _ in itertools.groupby(path)).replace("_", "")
    return [word for word in letters.split("|") if word]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_all_short_paths_collapse_as_defined(n: int) -> None:
    for path in itertools.product("_|AB", repeat=n):
        line = "".join(path)
        assert [word.text for word in decode_greedy(rows(line), 0, ALPHABET)] == collapse(line)


def test_frames_confidence_and_closing() -> None:
    log_probs = rows("_AA_A|__B", sure=0.9)
    first, second = decode_greedy(log_probs, 100, ALPHABET)
    assert (first.text, first.start_frame, first.end_frame) == ("AA", 101, 105)
    assert (second.text, second.start_frame, second.end_frame) == ("B", 108, 109)
    assert first.confidence == pytest.approx(0.9, abs=1e-3)


def test_special_tokens_are_not_text_but_part_repeats() -> None:
    alphabet = Alphabet(TOKENS, 0, 1, frozenset({TOKENS.index("'")}))
    assert [word.text for word in decode_greedy(rows("A'A"), 0, alphabet)] == ["AA"]


def test_lower_case_letters_where_the_checkpoint_wants_them() -> None:
    """As its tokenizer, and with it transformers, decodes."""
    vocab = {"[PAD]": 0, "|": 1, "Ä": 2, "B": 3, "[UNK]": 4}
    ids = np.array([2, 0, 3, 1, 4, 3])
    log_probs = np.log(np.where(np.arange(6) == ids[:, None], 0.9, 0.02)).astype(np.float32)
    for do_lower_case, expected in ((False, "ÄB B"), (True, "äb b")):
        tokenizer = Wav2Vec2Tokenizer(vocab, pad_token="[PAD]", unk_token="[UNK]", do_lower_case=do_lower_case)
        words = decode_greedy(log_probs, 0, alphabet_of(tokenizer, 6))
        assert " ".join(word.text for word in words) == expected
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected


def test_a_second_of_blank_parts_two_words() -> None:
    line = "AB" + "_" * 50 + "CD"
    assert [word.text for word in decode_greedy(rows(line), 0, ALPHABET)] == ["AB", "CD"]


def test_without_a_delimiter_a_pause_alone_parts_words() -> None:
    alphabet = Alphabet(TOKENS, 0, 0)  # as of a vocabulary that has none
    assert [word.text for word in decode_greedy(rows("_A__BB_B" + "_" * 50 + "A"), 0, alphabet)] == ["ABB", "A"]


def test_nothing_says_nothing() -> None:
    assert decode_greedy(np.zeros((0, len(TOKENS)), np.float32), 0, ALPHABET) == []


def spoken(rng: np.random.Generator) -> Path:
    """Frames with repeats, pauses and perhaps without anything."""
    n = int(rng.integers(0, 200))
    ids = rng.integers(0, rng.integers(2, 8), n) * (rng.random(n) < rng.choice([0.1, 0.5, 0.9]))
    ids = np.repeat(ids, rng.integers(1, 4, n))
    if rng.random() < 0.3:
        ids[len(ids) // 3 :][: int(rng.integers(40, 60))] = 0
    return Path(ids, -rng.exponential(rng.choice([0.01, 1]), len(ids)).astype(np.float32), int(rng.integers(1000)))


def together(paths: Sequence[Path], alphabet: Alphabet) -> list[list[WordSpan]]:
    """The words of each path, by way of all at once."""
    marks = [np.stack([path.ids, path.scores, path.scores], 1).astype(np.float32) for path in paths]
    spelled = spell_paths([(of, path.start_frame) for of, path in zip(marks, paths, strict=True)], alphabet)
    places = spelled.starts.tolist(), spelled.ends.tolist()
    spans = [WordSpan(*of) for of in zip(spelled.texts, *places, spelled.confidences, strict=True)]
    return [spans[a:b] for a, b in itertools.pairwise(spelled.bounds.tolist())]


@pytest.mark.parametrize("alphabet", [ALPHABET, Alphabet(TOKENS, 0, 0), Alphabet(TOKENS, 0, 1, frozenset({3, 4}))])
def test_many_paths_at_once_are_decoded_as_each_alone(alphabet: Alphabet) -> None:
    rng = np.random.default_rng(0)
    n_words = 0
    for _ in range(60):
        paths = [spoken(rng) for _ in range(int(rng.integers(6, 12)))]
        alone = [decode_path(path, alphabet) for path in paths]
        assert together(paths, alphabet) == alone
        n_words += sum(map(len, alone))
    assert n_words > 500
    nothing = Path(np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
    assert together([nothing] * 6, alphabet) == [[]] * 6


def test_the_best_frame_of_a_letter_counts() -> None:
    path = Path(np.array([2, 2, 0, 2]), np.log([0.25, 0.5, 0.9, 0.5]).astype(np.float32), 7)
    for spans in (decode_path(path, ALPHABET), *together([path] * 6, ALPHABET)):
        assert spans == [WordSpan("AA", 7, 11, 0.5)]


def test_confidences_are_rounded_as_each_alone() -> None:
    """Also half-way between two of four decimals."""
    means = np.log((np.arange(1, 20000, dtype=np.float64)) / 20000)
    means = np.concatenate([means, np.nextafter(means, 0), np.nextafter(means, -1), [0.0, 1e-9, -50.0]])
    assert confidences(means) == [confidence_of(float(mean)) for mean in means]
