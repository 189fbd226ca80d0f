"""Joins the CTC frames of overlapping windows into one sequence on the stream's absolute frame grid.

Every window starts on a multiple of the hop, so frame f of one window is frame f of every other: joining
is choosing, inside the overlap, one *seam* before which the older rows stay and after which the newer rows
stand. A fixed seam doubles or drops a letter whose spike lies on different sides of it in the two windows;
text matching loses words that are said twice. Here the seam is put where both windows have said the same
letters so far and both are sure that no letter is there. Raw frames are kept, blanks included, so that
collapsing repeats works across the seam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LogProbs = NDArray[np.float32]

MARGIN = 20  # frames before the overlap that tell a letter which moved from a letter which is new
MAX_MOVE = 6  # frames that a letter moves at most between two windows
MOVE = 0.05  # cost of each frame that a letter moved: of two ways to pair letters the nearer is right
DISAGREEMENT = 8.0  # cost of each letter by which the windows differ before the seam
DELAY = 0.01  # cost of every frame that keeps the older row, which knew less of what follows


@dataclass(frozen=True, slots=True, eq=False)
class Emission:
    """Log-probabilities of one window: row i is frame `start_frame + i` of the stream."""

    log_probs: LogProbs  # (n_frames, n_vocab), rows sum to 1 in probability
    start_frame: int

    @property
    def end_frame(self) -> int:
        return self.start_frame + len(self.log_probs)

    def since(self, frame: int) -> Emission:
        """The rows from `frame` on."""
        if frame <= self.start_frame:
            return self
        return Emission(self.log_probs[frame - self.start_frame :], frame)


@dataclass(frozen=True, slots=True, eq=False)
class StitchedFrames:
    """Rows `[:n_stable]` never change again; the rest is replaced by the next windows."""

    log_probs: LogProbs  # (n_frames, n_vocab)
    ids: NDArray[np.int64]  # (n_frames,) the likeliest of each row
    start_frame: int
    n_stable: int

    @property
    def end_frame(self) -> int:
        return self.start_frame + len(self.log_probs)

    @property
    def stable_frame(self) -> int:
        """First frame that may still change."""
        return self.start_frame + self.n_stable

    def since(self, frame: int) -> StitchedFrames:
        """The rows from `frame` on: what the next segment starts with."""
        n = min(max(0, frame - self.start_frame), len(self.log_probs))
        return StitchedFrames(self.log_probs[n:], self.ids[n:], frame, max(0, self.n_stable - n))

    def until(self, n: int) -> StitchedFrames:
        """The first `n` rows, which are stable rows and more."""
        return replace(self, log_probs=self.log_probs[:n], ids=self.ids[:n])


def empty(start_frame: int, n_vocab: int) -> StitchedFrames:
    return StitchedFrames(np.zeros((0, n_vocab), np.float32), np.zeros(0, np.int64), start_frame, 0)


def beginnings(ids: NDArray[np.int64], blank: int) -> NDArray[np.bool_]:
    """Where letters begin: rows (last dimension) with another id than the row before, blank excepted."""
    begins: NDArray[np.bool_] = ids != blank
    begins[..., 1:] &= ids[..., 1:] != ids[..., :-1]
    return begins


def prefix_distances(
    a: list[tuple[int, int]], b: list[tuple[int, int]], is_beginning: bool = False
) -> NDArray[np.float64]:
    """(len(a) + 1, len(b) + 1): the edit distance of prefixes of `a` from prefixes of `b`.

    Letters further than `MAX_MOVE` rows apart are never the same one, so that repeats do not pair wrongly. One
    that near to row 0 may miss its partner for nothing, as it can lie before, unless nothing does.
    Prefixes of which one ends `MAX_MOVE` rows after the other's next letter are infinitely far: none of what ends
    before one row does, and no way to those leads through.
    """
    margin = -1 if is_beginning else MAX_MOVE
    places = [place for _, place in b]
    line = [0.0]
    for place in places:
        line.append(line[-1] + (place > margin))
    table, width = [line], len(line)
    following = [row for _, row in a[1:]] + [math.inf] * bool(a)
    first = last = 0  # columns of the line
    for (token, row), after in zip(a, following, strict=True):
        above = line
        while first < len(b) and places[first] < row - MAX_MOVE:
            first += 1
        while last < len(b) and places[last] <= after + MAX_MOVE:
            last += 1
        line = [math.inf] * width
        if not first:
            line[0] = above[0] + (row > margin)
        for j in range(max(0, first - 1), last):
            move = abs(row - places[j])
            paired = above[j] + ((token != b[j][0]) + MOVE * move if move <= MAX_MOVE else 2)
            alone = 1 + min(above[j + 1], line[j])
            line[j + 1] = paired if paired < alone else alone
        table.append(line)
    return np.array(table)


def find_seam(
    older: LogProbs, newer: LogProbs, first: int, last: int, silent_ids: tuple[int, int], is_beginning: bool = False
) -> int:
    """Index i in [first, last]: rows before i are taken from `older`, from i on from `newer`.

    Args:
        older: (n, n_vocab) the frames that two windows share, as the earlier one saw them.
        newer: (n, n_vocab) the same frames as the later window saw them.
        first, last: where the seam may lie; the rows before are there to compare.
        silent_ids: blank and word delimiter.
        is_beginning: whether nothing was said before row 0.

    The letters before a good seam are the same in both, so that a spike which moved across it is neither
    lost nor doubled: their edit distance counts most. Then both should be sure of silence on either side
    of the seam; then the earlier is the better, since `newer` knows more of what follows.
    """
    if last <= first:
        return first
    older, newer = older[:last], newer[:last]  # what follows tells nothing
    ids = np.array([older.argmax(1), newer.argmax(1)])
    begins = beginnings(ids, silent_ids[0])
    differs = (begins[0] != begins[1]) | (begins[0] & (ids[0] != ids[1]))
    row = int(differs.argmax())
    alike = 1 + (row if differs[row] else last)  # before this row both have the same letters
    silences = np.exp(np.concatenate([rows.take(silent_ids, 1) for rows in (older, newer)], 1))
    doubt = 2 - silences.sum(1)  # in [0, 2]
    cost = doubt + DELAY * np.arange(last)
    cost[1:] += doubt[:-1]
    cost[0] += doubt[0]
    if alike > first and (is_beginning or alike > MAX_MOVE + 1):
        best = first + int(cost[first:alike].argmin())
        if alike >= last or cost[best] <= cost[alike:].min() + DISAGREEMENT * MOVE:  # no later row costs less
            return best
    # Letters that both have first, in the same rows, are the same: most, where the windows agree.
    counts = np.cumsum(begins, 1) - begins - begins[0, : alike - 1].sum()
    old_letters, new_letters = (
        [(int(ids[i, row]), row) for row in np.flatnonzero(begins[i]).tolist() if row >= alike - 1] for i in (0, 1)
    )
    distances = prefix_distances(old_letters, new_letters, is_beginning)
    cost += DISAGREEMENT * distances[counts[0].clip(0), counts[1].clip(0)]
    return first + int(cost[first:].argmin())


def stitch(frames: StitchedFrames, window: Emission, stable_frame: int, silent_ids: tuple[int, int]) -> StitchedFrames:
    """`frames` continued by `window`; all before `stable_frame` is stable from now on.

    Raises:
        ValueError: the window leaves a hole after the rows so far, or ends before them.
    """
    whole, window = window, window.since(frames.stable_frame)
    if window.start_frame > frames.end_frame or window.end_frame < frames.end_frame:
        raise ValueError(
            f"Expected a window that reaches from at most frame {frames.end_frame} beyond it. "
            f"Found: [{window.start_frame}, {window.end_frame})"
        )
    # Both windows' rows from `MARGIN` before the first unstable frame to the end of the rows so far.
    base = max(whole.start_frame, frames.start_frame, frames.stable_frame - MARGIN)
    older = frames.log_probs[base - frames.start_frame :]
    newer = whole.log_probs[base - whole.start_frame :][: len(older)]
    # The seam lies among the frames that become stable now: later ones are better known to `window`.
    last = min(frames.end_frame, max(stable_frame, window.start_frame)) - base
    is_beginning = base == frames.start_frame
    seam = base + find_seam(older, newer, window.start_frame - base, last, silent_ids, is_beginning)
    n, new = seam - frames.start_frame, whole.log_probs[seam - whole.start_frame :]
    rows, ids = np.concatenate([frames.log_probs[:n], new]), np.concatenate([frames.ids[:n], new.argmax(1)])
    n_stable = min(max(frames.n_stable, stable_frame - frames.start_frame), len(rows))
    return StitchedFrames(rows, ids, frames.start_frame, n_stable)
