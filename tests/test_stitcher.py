"""The seam suite on synthetic frames: whatever moves between two windows, letters come out once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ALPHABET, TOKENS

from core.decoder import decode_greedy
from core.stitcher import Emission, StitchedFrames, empty, find_seam, stitch

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


def test_a_stream_begins_with_its_first_window() -> None:
    frames = stitch(empty(0, N), Emission(rows("A_B_C"), 0), 3, ALPHABET.silent)
    assert (frames.start_frame, frames.n_stable, text(frames)) == (0, 3, "ABC")


def test_a_hole_is_refused() -> None:
    frames = stitch(empty(0, N), Emission(rows("A_B"), 0), 2, ALPHABET.silent)
    with pytest.raises(ValueError, match=r"\[5, 8\)"):
        stitch(frames, Emission(rows("C_D"), 5), 6, ALPHABET.silent)


def test_the_seam_lies_where_both_are_silent() -> None:
    older, newer = rows("A_B__C"), rows("AB___C")
    assert find_seam(older, newer, 0, 6, ALPHABET.silent) == 4


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
    seam = find_seam(older, newer, 0, 8, ALPHABET.silent)
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
