"""Greedy decoding against the definition of CTC's many-to-one map."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from planted import ALPHABET, TOKENS
from test_stitcher import rows

from core.acoustic import alphabet_of
from core.decoder import Alphabet, decode_greedy
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
