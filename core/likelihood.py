"""How likely texts are by CTC frames: the sum over all their alignments (Graves et al. 2006, section 4.1).

As searches count, and `core.aligner` draws them, frames around a word may say blank or delimiter as they like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.stitcher import LogProbs

SCALED = 8  # frames after which probabilities are scaled anew
LEAST = 1e-60  # of a text's likeliest state: states that are below it in all texts are left out


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
    either = probs.shape[1]  # an id of its own: blank or delimiter
    probs = np.concatenate([probs, probs[:, [blank]] + probs[:, [delimiter]]], 1)
    n_states = 2 * max(map(len, texts), default=0) + 1
    shape = (len(texts), n_states)  # labels at odd places, silence before, between and after
    emitted = np.full(shape, blank)
    exists, stays, skips, ends = np.zeros(shape), np.ones(shape), np.zeros(shape), np.zeros(shape)
    for i, text in enumerate(texts):
        labels, n = np.array(text, np.int64), 2 * len(text)
        emitted[i, 1:n:2], exists[i, : n + 1] = labels, 1
        emitted[i, 0] = emitted[i, n] = either
        is_delimiter = labels == delimiter
        emitted[i, 2 : n + 1 : 2][is_delimiter] = either  # one delimiter, then silence of any kind
        stays[i, 1:n:2][is_delimiter] = 0
        skips[i, 3:n:2] = labels[1:] != labels[:-1]
        ends[i, max(0, n - 1) : n + 1] = 1
    if not texts or not len(probs):
        return np.where(ends[:, 0] > 0, 0.0, -np.inf)
    before = np.zeros((len(texts), n_states + 2))  # two more in front, which are never reached
    before[:, 2:4] = probs[0][emitted[:, :2]] * exists[:, :2]
    scales = np.zeros(len(texts))
    first, end = 0, min(2, n_states)  # states that are followed
    for frame in range(1, len(probs)):
        end = min(end + 2, n_states)
        now = slice(first, end)
        states = before[:, first + 2 : end + 2] * stays[:, now]
        states += before[:, first + 1 : end + 1]
        states += before[:, first:end] * skips[:, now]
        states *= probs[frame][emitted[:, now]]
        states *= exists[:, now]
        before[:, first + 2 : end + 2] = states
        if frame % SCALED == 0:
            most = states.max(1, keepdims=True)
            most[most == 0] = 1
            before /= most
            scales += np.log(most[:, 0])
            followed = np.flatnonzero((states > LEAST * most).any(0))
            if len(followed):
                before[:, 2 : first + followed[0] + 2] = 0
                before[:, first + followed[-1] + 3 :] = 0
                first, end = first + int(followed[0]), first + int(followed[-1]) + 1
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.log((before[:, 2:] * ends).sum(1)) + scales
    return found
