"""The seam suite on synthetic frames: whatever moves between two windows, letters come out once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ALPHABET, TOKENS

from core.decoder import decode_greedy
from core.seam import (
    DELAY,
    DISAGREEMENT,
    Letters,
    Marks,
    doubts,
    find_seam,
    find_seams,
    letters,
    prefix_distances,
    seam_costs,
)
from core.stitcher import BLOCK, Emission, StitchedFrames, empty, mark, stitch, stitch_all

N = len(TOKENS)


def rows(line: str, sure: float = 0.95) -> np.ndarray:
    """`A_A|B` to log-probabilities, one frame a character."""
    log_probs = np.full((len(line), N), np.log((1 - sure) / (N - 1)), np.float32)
    for i, letter in enumerate(line):
        log_probs[i, TOKENS.index(letter)] = np.log(sure)
    return log_probs


def text(frames: StitchedFrames) -> str:
    return " ".join(word.text for word in decode_greedy(frames.log_probs, frames.start_frame, ALPHABET))


def spell(words: str, gap: int) -> str:
    """Letters one frame each, `gap` blanks after each, delimiter between words."""
    return "".join(("|" if letter == " " else letter) + "_" * gap for letter in words)


def jittered(line: str, moves: list[int]) -> str:
    """Letter i of `line` moved by `moves[i]`, where the place is free and the order stays."""
    places = [i for i, letter in enumerate(line) if letter != "_"]
    out = ["_"] * len(line)
    last = -1
    for number, at in enumerate(places):
        following = places[number + 1] if number + 1 < len(places) else len(line)
        to = min(max(at + moves[number % len(moves)], last + 2, 0), following, len(line) - 1)
        if out[to] != "_" or to <= last:
            to = at
        out[to] = line[at]
        last = to
    return "".join(out)


def seam_of(older: Marks, newer: Marks, first: int = 0, is_beginning: bool = True) -> int:
    """`find_seam` of rows that two windows share."""
    sides = [letters(of[:, 0].astype(int).tolist(), ALPHABET.blank) for of in (older, newer)]
    return find_seam(*sides, seam_costs(doubts(older, newer)).tolist(), first, is_beginning)


def seam_between(older: np.ndarray, newer: np.ndarray) -> int:
    return seam_of(*(mark(of, ALPHABET.silent) for of in (older, newer)))


def test_a_stream_begins_with_its_first_window() -> None:
    frames = stitch(empty(0, N), Emission(rows("A_B_C"), 0), 3, ALPHABET.silent)
    assert (frames.start_frame, frames.n_stable, text(frames)) == (0, 3, "ABC")


def test_a_hole_is_refused() -> None:
    frames = stitch(empty(0, N), Emission(rows("A_B"), 0), 2, ALPHABET.silent)
    with pytest.raises(ValueError, match=r"\[5, 8\)"):
        stitch(frames, Emission(rows("C_D"), 5), 6, ALPHABET.silent)


def test_the_seam_lies_where_both_are_silent() -> None:
    assert seam_between(rows("A_B__C"), rows("AB___C")) == 4


def test_stable_rows_never_change() -> None:
    frames = stitch(empty(0, N), Emission(rows("A_B_C_D_"), 0), 5, ALPHABET.silent)
    before = frames.log_probs[:5].copy()
    frames = stitch(frames, Emission(rows("X_X_X_X_X_"), 2), 9, ALPHABET.silent)
    np.testing.assert_array_equal(frames.log_probs[:5], before)
    assert frames.n_stable == 9 and frames.end_frame == 12


@pytest.mark.parametrize("words", ["VERY VERY GOOD", "FIVE FIVE FIVE", "BOOKKEEPER", "LLAMA SEES AARDVARK"])
@pytest.mark.parametrize("hop", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("gap", [1, 2, 4])
def test_every_offset_of_the_cut_keeps_repeats_and_double_letters(words: str, hop: int, gap: int) -> None:
    line = spell(words, gap) + "_" * 8
    log_probs = rows(line)
    for first in range(1, 12, 2):
        frames, stable = empty(0, N), 0
        end = first + 4
        while True:
            end = min(end, len(line))
            stable = end if end == len(line) else max(stable, end - 4)
            start = max(0, frames.stable_frame - 6)
            frames = stitch(frames, Emission(log_probs[start:end], start), stable, ALPHABET.silent)
            if end == len(line):
                break
            end += hop
        assert text(frames) == words


@settings(deadline=None, max_examples=300)
@given(
    words=st.lists(st.text("ABC", min_size=1, max_size=6), min_size=2, max_size=8),
    moves=st.lists(st.lists(st.integers(-1, 1), min_size=1, max_size=7), min_size=2, max_size=4),
    hop=st.integers(8, 20),
    right=st.integers(12, 24),
)
def test_spikes_that_move_between_windows_are_neither_lost_nor_doubled(
    words: list[str], moves: list[list[int]], hop: int, right: int
) -> None:
    said = " ".join(words)
    line = spell(said, 7) + "_" * 30
    frames, stable, number = empty(0, N), 0, 0
    while stable < len(line):
        end = min(len(line), stable + hop + right)
        stable = len(line) if end == len(line) else stable + hop
        start = max(0, stable - hop - 30)
        seen = jittered(line, moves[number % len(moves)])
        frames = stitch(frames, Emission(rows(seen)[start:end], start), stable, ALPHABET.silent)
        number += 1
    assert text(frames) == said


def test_a_fixed_seam_would_double_the_letter_that_moved() -> None:
    older, newer = rows("__A_____"), rows("_____A__")
    fixed = np.concatenate([older[:4], newer[4:]])
    assert [w.text for w in decode_greedy(fixed, 0, ALPHABET)] == ["AA"]
    seam = seam_between(older, newer)
    chosen = np.concatenate([older[:seam], newer[seam:]])
    assert [w.text for w in decode_greedy(chosen, 0, ALPHABET)] == ["A"]


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("move", range(-3, 4))
def test_the_first_letter_of_all_may_move_too(place: int, move: int) -> None:
    there = max(0, place + move)
    older, newer = (rows("_" * at + "A" + "_" * (20 - at) + "B" + "_" * 9) for at in (place, there))
    frames = stitch(empty(0, len(TOKENS)), Emission(older, 0), 5, ALPHABET.silent)
    frames = stitch(frames, Emission(newer, 0), 10, ALPHABET.silent)
    assert text(frames) == "AB"


def slow_seam(older: Letters, newer: Letters, costs: list[int], first: int, is_beginning: bool) -> int:
    """`find_seam`, by the distance of what lies before every row."""
    while older and newer and older[0] == newer[0]:
        older, newer = older[1:], newer[1:]
    table = list(prefix_distances(older, newer, is_beginning))
    before = [[sum(row < seam for row, _ in side) for side in (older, newer)] for seam in range(len(costs))]
    whole = [cost + DISAGREEMENT * table[i][j] for cost, (i, j) in zip(costs, before, strict=True)]
    return first + int(np.argmin(whole[first:]))


def moved(rng: np.random.Generator, line: list[int]) -> Letters:
    """Letters with some of them a little elsewhere, and some lost, new or others."""
    found = {}
    for row, token in enumerate(line):
        kind = rng.random()
        place = row + int(rng.integers(-7, 8)) * (kind < 0.3)
        if token and 0 <= place < len(line) and kind < 0.95:
            found[place] = token if kind < 0.9 else 4
    return sorted(found.items())


@pytest.mark.parametrize("seed", range(8))
def test_the_quick_way_finds_what_all_distances_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(500):
        n = int(rng.integers(1, 60))
        line = (rng.integers(1, 4, n) * (rng.random(n) < rng.choice([0.05, 0.3, 0.7]))).tolist()
        older, newer = ([(row, token) for row, token in enumerate(line) if token], moved(rng, line))
        costs = (rng.integers(0, rng.choice([100_000, 4_000_000]), n) + DELAY * np.arange(n)).tolist()
        arguments = older, newer, costs, int(rng.integers(0, n)), bool(rng.random() < 0.3)
        assert find_seam(*arguments) == slow_seam(*arguments)


def test_many_streams_at_once_are_stitched_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    alone = [empty(0, N) for _ in range(12)]
    together = list(alone)
    for turn in range(40):
        joints = []
        for i, frames in enumerate(alone):
            stable, right = frames.stable_frame + int(rng.integers(1, 30)), int(rng.integers(10, 30))
            start = max(0, frames.stable_frame - int(rng.integers(0, 60)))
            end = max(frames.end_frame, stable + right)
            line = np.where(rng.random(end - start) < 0.7, 0, rng.integers(0, 5, end - start))
            window = rng.normal(0, 1, (end - start, N)) + 4 * np.eye(N)[line]
            log_probs = window - np.log(np.exp(window).sum(1, keepdims=True))
            joints.append((frames, Emission(log_probs.astype(np.float32), start), stable))
            if turn == 20 and i % 2:
                alone[i] = together[i] = frames.since(frames.stable_frame - 7).until(20)
                joints[-1] = (alone[i], *joints[-1][1:])
        alone = [stitch(*joint, ALPHABET.silent) for joint in joints]
        together = stitch_all([(of, *joint[1:]) for of, joint in zip(together, joints, strict=True)], ALPHABET.silent)
        for a, b in zip(alone, together, strict=True):
            assert (a.start_frame, a.n_stable) == (b.start_frame, b.n_stable)
            np.testing.assert_array_equal(a.log_probs, b.log_probs)
            np.testing.assert_array_equal(a.ids, b.ids)
    assert stitch_all([], ALPHABET.silent) == []


@pytest.mark.parametrize("seed", range(4))
def test_seams_of_many_streams_are_those_of_each(seed: int) -> None:
    """Also where costs are equal, letters are lost or new, and nothing overlaps."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        sides: list[list[np.ndarray]] = [[], []]
        n_streams = int(rng.integers(6, 20))
        lengths, is_beginning = rng.integers(0, 60, n_streams), rng.random(n_streams) < 0.5
        first = np.array([rng.integers(n + 1) for n in lengths])
        for n in lengths:
            line = rng.integers(0, 5, n) * (rng.random(n) < rng.choice([0.1, 0.4, 0.7]))
            other = np.zeros(n, np.int64)
            for row, token in moved(rng, line.tolist()):
                other[row] = token
            for marks, path in zip(sides, (line, other), strict=True):
                silence = rng.random(n).astype(np.float32)
                silence = silence.round(int(rng.integers(0, 3)))  # some are equal
                marks.append(np.stack([path, np.zeros(n), silence], 1).astype(np.float32))
        older, newer = map(np.concatenate, sides)
        ends = np.cumsum(lengths)
        ends, expected = np.cumsum(lengths), []
        for n, end, *of in zip(lengths, ends, first.tolist(), is_beginning.tolist(), strict=True):
            expected.append(seam_of(older[end - n : end], newer[end - n : end], *of))
        assert find_seams(older, newer, lengths, first, is_beginning, ALPHABET.blank).tolist() == expected


def test_rows_that_were_put_aside_are_still_there() -> None:
    rng, frames = np.random.default_rng(1), empty(0, N)
    whole = np.log(rng.dirichlet(np.ones(N), 10 * BLOCK)).astype(np.float32)
    for end in range(40, len(whole), 15):
        frames = stitch(frames, Emission(whole[max(0, end - 80) : end], max(0, end - 80)), end - 20, ALPHABET.silent)
        np.testing.assert_array_equal(frames.scores, whole[:end].max(1))
        for first in (0, 1, BLOCK - 1, BLOCK, end - 30, end):
            np.testing.assert_array_equal(frames.rows(first), whole[first:end])
            np.testing.assert_array_equal(frames.since(first).log_probs, whole[first:end])
        np.testing.assert_array_equal(frames.until(frames.n_stable + 5).log_probs, whole[: frames.n_stable + 5])
        np.testing.assert_array_equal(frames.ids, whole[:end].argmax(1))
        assert len(frames.recent) < 3 * BLOCK
