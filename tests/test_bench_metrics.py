"""What benchmarks count, by hand and against the obvious slow version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.edit_distance import WordErrors, word_errors
from streamer.bench.metrics import (
    calibration_bins,
    calibration_error,
    common_prefix,
    edits,
    erased_words,
    fit_exponent,
    lagging_s,
    matches,
    percentiles,
    unstable_words,
)

WORDS = st.lists(st.sampled_from("ABC"), max_size=10)


@given(reference=WORDS, hypothesis=WORDS)
def test_edits_are_word_errors(reference: list[str], hypothesis: list[str]) -> None:
    quick, slow = edits(reference, hypothesis), word_errors(reference, hypothesis)
    assert (quick.total, quick.n_words) == (slow.total, slow.n_words)


@given(reference=WORDS, hypothesis=WORDS)
def test_matches_are_of_a_shortest_alignment(reference: list[str], hypothesis: list[str]) -> None:
    pairs = matches(reference, hypothesis)
    assert all(reference[i] == hypothesis[j] for i, j in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in zip(pairs, pairs[1:], strict=False))
    # Between two pairs, the longer side is what the alignment costs there.
    borders = [(-1, -1), *pairs, (len(reference), len(hypothesis))]
    gaps = [max(c - a, d - b) - 1 for (a, b), (c, d) in zip(borders, borders[1:], strict=False)]
    assert sum(gaps) == word_errors(reference, hypothesis).total


def test_matches_and_edits_by_hand() -> None:
    assert matches("A B C".split(), "A X C D".split()) == [(0, 0), (2, 2)]
    assert matches("FIVE FIVE FIVE".split(), "FIVE FIVE".split()) in ([(0, 0), (1, 1)], [(1, 0), (2, 1)])
    assert matches([], ["A"]) == matches(["A"], []) == []
    assert edits(list("ABXC"), list("ABYC")) == WordErrors(1, 0, 0, 4)
    assert edits("AAA", "AAAA").insertions == 1
    assert common_prefix("ABC", "ABD") == 2 and common_prefix("", "A") == 0 and common_prefix([1], [1]) == 1


def test_percentiles() -> None:
    assert percentiles([]) == {"n": 0}
    found = percentiles(list(range(101)))
    assert found == {"n": 101, "mean": 50.0, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


def test_lagging_by_hand() -> None:
    # Four words in 4 s are due at 0, 1, 2 and 3 s.
    assert lagging_s([1, 2, 3, 3.5], 4, 4) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    # Those at the end count once: the last word is not counted.
    assert lagging_s([1, 2, 4, 4], 4, 4) == pytest.approx((1 + 1 + 2) / 3)
    # All at the end: the first word lags by the whole recording.
    assert lagging_s([4, 4, 4], 3, 4) == 4
    assert lagging_s([5, 5], 2, 4) == 5
    # Too many words do not make a system faster, nor too few: the longer text sets the pace.
    assert lagging_s([1, 2], 4, 4) == pytest.approx((1 + 1) / 2)
    assert lagging_s([1, 2, 3, 3.5], 2, 4) == lagging_s([1, 2, 3, 3.5], 4, 4)
    with pytest.raises(ValueError, match="at least one word"):
        lagging_s([], 3, 4)


def test_unstable_words_by_hand() -> None:
    def words(*texts: str) -> list[list[str]]:
        return [text.split() for text in texts]

    assert unstable_words([]) == unstable_words(words("A")) == 0
    assert unstable_words(words("", "A", "A B", "A B C")) == 0
    assert unstable_words(words("A", "B", "B C")) == 1
    assert unstable_words(words("A X B", "A Y B", "A Y B")) == 1  # B stands where it stood
    assert unstable_words(words("A B C", "")) == 3
    growing = words("THE HEL", "THE HELLO", "THE HELLO W", "THE HELLO WORLD")
    assert unstable_words(growing) == 2
    assert unstable_words(growing, with_growth=False) == 0
    assert unstable_words(words("HEL", "HELLO"), with_growth=False) == 0
    assert unstable_words(words("HEL", "HOLLOW"), with_growth=False) == 1
    assert unstable_words(words("HEL B", "HELLO B"), with_growth=False) == 1  # no longer the last
    assert unstable_words(words("A X HEL", "A Y HELLO"), with_growth=False) == 2
    assert [erased_words(words(*texts)) for texts in (["A X B", "A Y B"], ["A", "A B"], ["A B", ""])] == [2, 0, 2]


def test_calibration_by_hand() -> None:
    assert calibration_error([], []) == 0
    assert calibration_error([1.0, 1.0, 0.0], [True, True, False]) == 0
    assert calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    # Three words at 0.85 of which two are right, one at 0.25 that is right.
    sure, right = [0.85, 0.85, 0.85, 0.25], [True, True, False, True]
    assert calibration_error(sure, right) == pytest.approx(0.75 * abs(0.85 - 2 / 3) + 0.25 * 0.75, abs=1e-4)
    assert calibration_bins(sure, right) == [
        {"from": 0.2, "n": 1, "confidence": 0.25, "right": 1.0},
        {"from": 0.8, "n": 3, "confidence": 0.85, "right": 0.6667},
    ]


@pytest.mark.parametrize("exponent", [0.5, 1, 3])
def test_the_exponent_that_was_planted_is_found(exponent: float) -> None:
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.05, 1, 20_000)
    right = rng.random(20_000) < sure**exponent
    assert fit_exponent(sure, right) == pytest.approx(exponent, rel=0.05)
    assert calibration_error(sure**exponent, right) < 0.015
    assert fit_exponent([1.0, 0.0], [True, False]) > 0
