"""Where the words of a known text lie in CTC frames: forced alignment.

The likeliest of all CTC paths that spell the text, by Viterbi's algorithm over the labels with blanks between them
(Graves et al. 2006, section 4.1). Around words the path may say blank or delimiter as often as it likes, as
models do in a pause. CTC marks where a letter is recognised, not where its sound begins and ends: words come out
somewhat shorter than they were spoken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from core.decoder import Alphabet, WordSpan
from core.stitcher import LogProbs

SILENCE = -1  # a frame between letters


def align(log_probs: LogProbs, labels: Sequence[int], silent: tuple[int, int]) -> NDArray[np.int64]:
    """(n_frames,) which of `labels` each frame says, or `SILENCE`.

    Args:
        log_probs: (n_frames, n_vocab).
        labels: ids in their order, a delimiter between words where the vocabulary has one.
        silent: blank and delimiter.

    `A B` over `A A _ B` -> `0 0 -1 1`.

    Raises:
        ValueError: more labels than the frames can hold.
    """
    blank, delimiter = silent
    states = np.full(2 * len(labels) + 1, blank)  # labels at odd places, silence before, between and after
    states[1::2] = labels
    repeats = states[3::2] == states[1:-2:2]  # need a blank between
    n, needed = len(log_probs), len(labels) + int(repeats.sum())
    if n < needed:
        raise ValueError(f"Expected at least {needed} frames for {len(labels)} labels. Found: {n}")
    if not n:
        return np.zeros(0, np.int64)
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = ~repeats
    is_border = np.zeros(len(states), bool)  # silence at the ends and beside a delimiter
    is_border[[0, -1]] = True
    is_border[:-1] |= states[1:] == delimiter
    is_border[1:] |= states[:-1] == delimiter
    is_border[1::2] = False
    emitted = log_probs[:, states]  # (frame, state)
    emitted[:, is_border] = log_probs[:, list(silent)].max(1, keepdims=True)
    path = _best_path(emitted.astype(np.float64), may_skip)
    return np.where(path % 2, path // 2, SILENCE)


def _best_path(emitted: NDArray[np.float64], may_skip: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n_frames,) the state of each frame on the likeliest way from the first two states to the last two.

    Args:
        emitted: (n_frames, n_states) log-probabilities.
        may_skip: (n_states,) whether the silence before a state may be left out.
    """
    n, n_states = emitted.shape
    is_one, is_two = np.zeros((2, n, n_states), bool)  # whether the best way came forward by one state, by two
    padded = np.full(n_states + 2, -np.inf)  # two more in front, which are never reached
    scores, one, two = padded[2:], padded[1:-1], padded[:-2]
    scores[:2] = emitted[0, :2]
    barred = np.where(may_skip, 0.0, -np.inf)
    best, skipped = np.empty((2, n_states))
    for frame in range(1, n):
        np.greater(one, scores, out=is_one[frame])
        np.maximum(scores, one, out=best)
        np.add(two, barred, out=skipped)
        np.greater(skipped, best, out=is_two[frame])
        np.maximum(best, skipped, out=best)
        np.add(best, emitted[frame], out=scores)
    moves = np.where(is_two, 2, is_one)  # by how many states the best way came forward
    path = np.empty(n, np.int64)
    path[-1] = n_states - 2 + int(np.argmax(scores[-2:])) if n_states > 1 else 0
    for frame in range(n - 1, 0, -1):
        path[frame - 1] = path[frame] - moves[frame, path[frame]]
    return path


def align_words(log_probs: LogProbs, start_frame: int, text: str, alphabet: Alphabet) -> list[WordSpan]:
    """The words of `text` with their frames; the confidence is the geometric mean of their letters' best frames.

    Args:
        log_probs: (n_frames, n_vocab), raw frames with blanks.
        start_frame: the stream's frame of row 0.
        text: words parted by white space, in letters of the alphabet, the longest that fit; upper and lower case are
            the same.

    Raises:
        ValueError: a letter is not in the alphabet, or the frames cannot hold the text.
    """
    words = text.split()
    has_delimiter = alphabet.delimiter != alphabet.blank
    labels: list[int] = []
    bounds: list[tuple[int, int]] = []  # of each word in `labels`
    for word in words:
        if labels and has_delimiter:
            labels.append(alphabet.delimiter)
        spelled = spell(word, alphabet)
        bounds.append((len(labels), len(labels) + len(spelled)))
        labels += spelled
    said = align(log_probs, labels, alphabet.silent)
    spoken = np.flatnonzero(said != SILENCE)
    starts = np.full(len(labels), len(said))
    np.minimum.at(starts, said[spoken], spoken)
    ends = np.zeros(len(labels), np.int64)
    np.maximum.at(ends, said[spoken], spoken + 1)
    best = np.full(len(labels), -np.inf)
    np.maximum.at(best, said[spoken], log_probs[spoken, np.array(labels, np.int64)[said[spoken]]])
    return [
        WordSpan(
            word,
            start_frame + int(starts[first]),
            start_frame + int(ends[last - 1]),
            min(1.0, round(float(np.exp(best[first:last].mean())), 4)),
        )
        for word, (first, last) in zip(words, bounds, strict=True)
    ]


@lru_cache(1 << 14)
def spell(word: str, alphabet: Alphabet) -> tuple[int, ...]:
    """The ids of a word's letters. Longer ones win: with `c`, `h` and `ch`, `chac` -> `ch a c`."""
    known = alphabet.ids()
    longest = max(map(len, known), default=0)
    spelled: list[int] = []
    start = 0
    while start < len(word):
        pieces = (word[start : start + n] for n in range(longest, 0, -1))
        forms = ((piece, form) for piece in pieces for form in (piece, piece.upper(), piece.lower()))
        found = next(((piece, known[form]) for piece, form in forms if form in known), None)
        if found is None:
            raise ValueError(f"Expected a text in the model's letters. Found: {word[start]!r}")
        start += len(found[0])
        spelled.append(found[1])
    return tuple(spelled)
