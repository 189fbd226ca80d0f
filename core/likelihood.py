"""How likely texts are by CTC frames: the sum over all their alignments (Graves et al. 2006, section 4.1).

As searches count, and `core.aligner` draws them, frames around a word may say blank or delimiter as they like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.stitcher import LogProbs

SCALED = 8  # frames after which probabilities are scaled anew
CERTAIN = -1e-3  # log-probability
LEAST = 1e-60  # of a text's likeliest state: states that are below it in all texts are left out


def without_pauses(log_probs: LogProbs, blank: int) -> LogProbs:
    """The frames, but of each run in which blanks are certain the first alone: the others say nothing of a text."""
    is_blank = log_probs[:, blank] > CERTAIN
    said: LogProbs = log_probs[~(is_blank & np.append(False, is_blank[:-1]))]
    return said


def log_likelihoods(
    log_probs: LogProbs, texts: Sequence[Sequence[int]], silent: tuple[int, int]
) -> NDArray[np.float64]:
    """(text,) natural log-probabilities; −inf for texts that the frames cannot hold.

    Texts that differ little are cheap together: only the states that any of them may be in are followed.

    Args:
        log_probs: (n_frames, n_vocab).
        texts: ids of each, a delimiter between words.
        silent: blank and delimiter.
    """
    blank, delimiter = silent
    probs = np.exp(np.asarray(log_probs, np.float64))
    either, never = probs.shape[1], probs.shape[1] + 1  # ids of their own: blank or delimiter, and of no state
    added = probs[:, blank] + probs[:, delimiter], np.zeros(len(probs))
    probs = np.ascontiguousarray(np.concatenate([probs.T, added]))  # (id, frame)
    n_states = 2 * max(map(len, texts), default=0) + 1
    shape = (n_states, len(texts))  # labels at odd places, silence before, between and after
    emitted = np.full(shape, never)
    stays, skips, ends = np.ones(shape), np.zeros(shape), np.zeros(shape)
    for i, text in enumerate(texts):
        labels, n = np.array(text, np.int64), 2 * len(text)
        emitted[2:n:2, i], emitted[1:n:2, i] = blank, labels
        emitted[[0, n], i] = either
        is_delimiter = labels == delimiter
        emitted[2 : n + 1 : 2, i][is_delimiter] = either  # one delimiter, then silence of any kind
        stays[1:n:2, i][is_delimiter] = 0
        skips[3:n:2, i] = labels[1:] != labels[:-1]
        ends[max(0, n - 1) : n + 1, i] = 1
    if not texts or not len(log_probs):
        return np.where(ends[0] > 0, 0.0, -np.inf)
    before = np.zeros((n_states + 2, len(texts)))  # two more in front, which are never reached
    before[2:4] = probs[:, 0][emitted[:2]]
    scales = np.zeros(len(texts))
    first, end = 0, min(2, n_states)  # states that are followed
    for start in range(1, probs.shape[1], SCALED):
        frames = range(start, min(start + SCALED, probs.shape[1]))
        last = min(end + 2 * len(frames), n_states)
        room = np.empty((2, last - first, len(texts)))
        heard = probs[emitted[first:last], start : frames.stop].transpose(2, 0, 1).copy()  # (frame, state, text)
        for emission in heard:
            end = min(end + 2, n_states)
            now = slice(first, end)
            states, skipped = room[:, : end - first]
            np.multiply(before[first + 2 : end + 2], stays[now], out=states)
            np.multiply(before[first:end], skips[now], out=skipped)
            states += before[first + 1 : end + 1]
            states += skipped
            np.multiply(states, emission[: end - first], out=before[first + 2 : end + 2])
        states = before[first + 2 : end + 2]
        most = states.max(0)
        most[most == 0] = 1
        before /= most
        scales += np.log(most)
        followed = np.flatnonzero((states > LEAST * most).any(1))
        if len(followed):
            before[2 : first + followed[0] + 2] = 0
            before[first + followed[-1] + 3 :] = 0
            first, end = first + int(followed[0]), first + int(followed[-1]) + 1
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.log((before[2:] * ends).sum(0)) + scales
    return found
