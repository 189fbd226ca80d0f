from __future__ import annotations

import numpy as np
import pytest

from core.endpoint import (
    NEVER,
    Endpoint,
    EndpointConfig,
    Lull,
    Measure,
    find_cut,
    find_endpoint,
    find_lull,
    find_lulls,
    find_pause,
    longest_pause,
)

RULES = EndpointConfig(after_speech=10, loud_factor=3, before_speech=60, max_length=100)


def segment(line: str, quiet: float = 0.001) -> tuple[np.ndarray, Measure]:
    """`#` a letter, `o` the soft beginning of one, `.` a quiet pause, `-` a loud one: has_letter and energy."""
    energy = {"#": 1.0, "o": quiet, ".": quiet, "-": 1.0}
    return np.array([c in "#o" for c in line]), lambda: np.array([energy[c] for c in line], np.float32)


@pytest.mark.parametrize(
    ("line", "lasted"),
    [
        ("#####" + "." * 9, None),
        ("#####" + "." * 10, 15),
        ("#####" + "." * 12 + "#", 15),
        ("#####" + "." * 9 + "#", None),
        ("#####" + "." * 9 + "#" + "." * 10, 25),
        ("#####" + "-" * 10, None),  # a long vowel, or music: blank, but not silent
        ("#####" + "-" * 10 + "." * 4, None),
        ("#####" + "-" * 10 + "." * 5, 20),
        ("#####" + "-" * 29, None),
        ("#####" + "-" * 30, 35),
        ("." * 59, None),
        ("#." * 49, None),
    ],
)
def test_a_pause(line: str, lasted: int | None) -> None:
    assert RULES.slack == 1
    endpoint = Endpoint(lasted - 5, lasted + 1, is_pause=True) if lasted else None
    assert find_pause(*segment(line), RULES) == endpoint
    if lasted is None:
        return
    for end in range(len(line) + 1, 60):  # however late it is asked: the pass over the segment hears the same rows
        assert find_endpoint(*segment((line + "." + "#" * 60)[:end]), end, RULES) == endpoint
    assert find_endpoint(*segment(line), len(line), RULES) == (endpoint if len(line) > lasted else None)
    assert find_pause(*segment(line), RULES, first=len(line) + 1) is None
    assert find_pause(*segment(line), RULES, committed=len(line) - 4) is None


def test_pauses_that_begin_a_little_later_mostly_end_with_the_same_row() -> None:
    rules = EndpointConfig()
    ends = [
        find_pause(*segment("#" * n + "." * (rules.after_speech + rules.slack)), rules) for n in range(100, 100 + 24)
    ]
    assert all(end is not None and 3 <= end.end - (end.cut + 25) <= rules.slack for end in ends)
    assert len({end.end for end in ends if end}) in (8, 9)


def test_a_pause_that_seems_a_little_short_is_asked_for() -> None:
    for n in (9, 10 - 2 * RULES.slack):
        line = "#####" + "." * n + "oo####"
        assert find_endpoint(*segment(line), len(line), RULES) == Endpoint(10, 16, is_pause=True)
        assert find_endpoint(*segment(line), len(line), RULES, first=17) is None, "what was found to be none"
    line = "#####" + "." * 7 + "oo####"
    assert find_endpoint(*segment(line), len(line), RULES) is None


def test_silence_is_let_go_of() -> None:
    assert find_endpoint(*segment("." * 59), 59, RULES) is None
    for line in ("." * 60, "." * 80, "." * 62 + "#" * 10):
        assert find_endpoint(*segment(line), 60, RULES) == Endpoint(35, 60, has_speech=False)
    assert find_endpoint(*segment("." * 58 + "#" * 10), 60, RULES) is None


def test_maximum_length_cuts_in_the_longest_pause_of_the_latter_half() -> None:
    line = "#....#" + "#" * 60 + "..." + "#" * 20 + "." + "#" * 20
    found = find_endpoint(*segment(line), 100, RULES)
    assert found is not None and found.has_speech
    assert line[found.cut - 1 : found.cut + 1] == ".."


def test_a_cut_is_not_before_a_committed_word() -> None:
    line = "#" * 60 + "..." + "#" * 20 + "." + "#" * 16
    assert find_cut(segment(line)[0], RULES).cut == 62
    assert find_cut(segment(line)[0], RULES, 70).cut == 84
    assert find_cut(segment(line)[0], RULES, 95).cut == 95


def test_without_any_pause_the_cut_stays_inside() -> None:
    cut = longest_pause(np.ones(100, bool), 50)
    assert 50 <= cut <= 100


def slow_pause(has_letter: np.ndarray, measure: Measure, slack: int, committed: int, first: int) -> Endpoint | None:
    """`find_pause`, every row of every run by itself."""
    n, least, half, energy = len(has_letter), RULES.after_speech, RULES.after_speech // 2, measure()
    letters = np.flatnonzero(has_letter).tolist()
    for i, letter in enumerate(letters):
        last = min(letters[i + 1] + 2 * slack if i + 1 < len(letters) else n, n - slack)
        loud = RULES.quiet_ratio * float(energy[: letter + 1][has_letter[: letter + 1]].mean())
        for row in range(letter + 1 + least, last + 1):
            is_long = row >= letter + 1 + RULES.loud_factor * least
            if row >= max(first, committed + half) and (is_long or float(energy[row - half : row].mean()) <= loud):
                return Endpoint(row - half, row + RULES.slack, is_pause=True)
    return None


def test_pauses_are_those_that_every_row_is_asked_for() -> None:
    rng, n_found = np.random.default_rng(0), 0
    for _ in range(3000):
        runs = rng.integers(1, [6, 8, 30, 9, 40][int(rng.integers(5))], 12)
        line = "".join("#" if i % 2 else "." * int(n) for i, n in enumerate(runs))
        line = "".join("-" if c == "." and rng.random() < 0.1 else c for c in line)
        slack, committed, first = int(rng.integers(0, 2)), int(rng.integers(0, 20)), int(rng.integers(0, 60))
        found = find_pause(*segment(line), RULES, slack, committed, first)
        assert found == slow_pause(*segment(line), slack, committed, first)
        n_found += found is not None
    assert 500 < n_found < 2500


def test_most_rows_that_do_not_end_a_segment_are_told_by_their_lull() -> None:
    rng, n_told = np.random.default_rng(0), 0
    segments = []
    for _ in range(1000):
        n = int(rng.integers(1, 130))
        line = rng.random(n) < rng.choice([0.0, 0.02, 0.1, 0.5])
        line[: int(rng.integers(0, 70))] &= rng.random() < 0.5
        segments.append(line)
        lull = find_lull(line, RULES)
        for n_stable in (n // 2, n):
            endpoint = find_endpoint(line, lambda n=n: np.full(n, 0.001, np.float32), n_stable, RULES)
            assert endpoint is None or lull.may_end(n_stable, RULES)
            n_told += endpoint is None and not lull.may_end(n_stable, RULES)
    assert n_told > 500
    marks = [np.stack([2 * line, line, line], 1).astype(np.float32) for line in segments]  # id 2 is a letter
    for part in marks:
        part[:, 0] += (part[:, 0] == 0) & (rng.random(len(part)) < 0.5)  # id 1 is none
    is_letter = np.array([False, False, True])
    lulls = find_lulls(marks, [RULES.least_run] * len(marks), is_letter, 0)
    assert lulls == [find_lull(line, RULES) for line in segments]
    assert find_lulls([0 * marks[0]] * 3, [8] * 3, is_letter, 0) == [Lull(NEVER, len(marks[0]), False)] * 3
