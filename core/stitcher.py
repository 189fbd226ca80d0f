"""Joins the CTC frames of overlapping windows into one sequence on the stream's absolute frame grid.

Every window starts on a multiple of the hop, so frame f of one window is frame f of every other: joining
is choosing, inside the overlap, one *seam* before which the older rows stay and after which the newer rows
stand. A fixed seam doubles or drops a letter whose spike lies on different sides of it in the two windows;
text matching loses words that are said twice. Here the seam is put where both windows have said the same
letters so far and both are sure that no letter is there. Raw frames are kept, blanks included, so that
collapsing repeats works across the seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.seam import FEW, Marks, doubts, find_seam, find_seams, letters, seam_costs

LogProbs = NDArray[np.float32]
Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

BLOCK = 50  # stable rows that are put aside at once
MARGIN = 20  # frames before the overlap that tell a letter which moved from a letter which is new


@dataclass(slots=True, eq=False)  # not frozen, as what follows: many are made
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


def mark(rows: LogProbs, silent_ids: tuple[int, int]) -> Marks:
    """What stitching and greedy decoding need to know of (n, n_vocab) rows."""
    blank, delimiter = silent_ids
    marks = np.empty((len(rows), 3), np.float32)
    marks[:, 0] = likeliest = rows.argmax(1)
    marks[:, 1] = rows[np.arange(len(rows)), likeliest]
    marks[:, 2] = np.exp(rows[:, blank]) + np.exp(rows[:, delimiter])
    return marks


@dataclass(slots=True, eq=False)
class StitchedFrames:
    """Rows `[:n_stable]` never change again; the rest is replaced by the next windows."""

    marks: Marks  # (n_frames, 3)
    start_frame: int
    n_stable: int
    past: tuple[LogProbs, ...] = ()  # stable rows in blocks of `BLOCK`, which are shared with what follows, not copied
    recent: LogProbs | None = None  # (n_frames - BLOCK * blocks, n_vocab), the rows after those; None: none are kept

    @property
    def ids(self) -> Ids:
        """(n_frames,) the likeliest of each row"""
        return self.marks[:, 0].astype(np.int64)

    @property
    def scores(self) -> Scores:
        """(n_frames,) its log-probability"""
        return self.marks[:, 1]

    @property
    def log_probs(self) -> LogProbs:
        """(n_frames, n_vocab)"""
        return self.rows(0)

    @property
    def end_frame(self) -> int:
        return self.start_frame + len(self.marks)

    @property
    def stable_frame(self) -> int:
        """First frame that may still change."""
        return self.start_frame + self.n_stable

    def rows(self, first: int) -> LogProbs:
        """The rows from index `first` on.

        Raises:
            ValueError: they are not kept.
        """
        if self.recent is None:
            raise ValueError("Expected frames that keep their rows. Found: frames of a stream that needs none")
        n_past = BLOCK * len(self.past)
        if first >= n_past:
            return self.recent[first - n_past :]
        return np.concatenate([*self.past[first // BLOCK :], self.recent])[first % BLOCK :]

    def since(self, frame: int) -> StitchedFrames:
        """The rows from `frame` on: what the next segment starts with."""
        n = min(max(0, frame - self.start_frame), len(self.marks))
        recent = None if self.recent is None else self.rows(n)
        return StitchedFrames(self.marks[n:], frame, max(0, self.n_stable - n), (), recent)

    def until(self, n: int) -> StitchedFrames:
        """The first `n` rows, which are stable rows and more."""
        recent = None if self.recent is None else self.recent[: n - BLOCK * len(self.past)]
        return replace(self, recent=recent, marks=self.marks[:n])

    def unheard_until(self, frame: int, token: int) -> StitchedFrames:
        """All rows stable, and others up to `frame` that no window has heard, with that token."""
        marks, n = self.marks, frame - self.end_frame
        recent = None if self.recent is None else np.pad(self.recent, ((0, n), (0, 0)))
        marks = np.concatenate([marks, np.full((n, 3), (token, 0, 0), np.float32)])
        return replace(self, marks=marks, n_stable=len(marks), recent=recent)

    def followed_by(self, marks: Marks, rows: LogProbs, seam: int, n: int, n_stable: int) -> StitchedFrames:
        """The first `n` rows, the stable ones among them, and others after those.

        Args:
            marks: (n_frames, 3) of all of them.
            rows: those others from index `seam` on, which are kept if the rows so far are.
        """
        past, recent = self.past, self.recent
        if recent is not None:
            n_past = BLOCK * len(past)
            while n_past + BLOCK + MARGIN <= self.n_stable:  # the next seam looks at what is recent
                past, recent, n_past = (*past, recent[:BLOCK].copy()), recent[BLOCK:], n_past + BLOCK
            recent = np.concatenate([recent[: n - n_past], rows[seam:]])
        return StitchedFrames(marks, self.start_frame, n_stable, past, recent)


Joint = tuple[StitchedFrames, Emission, int]  # as the arguments of `stitch`


def empty(start_frame: int, n_vocab: int) -> StitchedFrames:
    """Without rows; of a vocabulary of none they are never kept."""
    recent = np.zeros((0, n_vocab), np.float32) if n_vocab else None
    return StitchedFrames(np.zeros((0, 3), np.float32), start_frame, 0, (), recent)


def stitch(frames: StitchedFrames, window: Emission, stable_frame: int, silent_ids: tuple[int, int]) -> StitchedFrames:
    """`frames` continued by `window`; all before `stable_frame` is stable from now on.

    Raises:
        ValueError: the window leaves a hole after the rows so far, or ends before them.
    """
    begin, end, stable = frames.start_frame, frames.end_frame, frames.stable_frame
    first = max(window.start_frame, stable)
    if first > end or window.end_frame < end:
        raise bad_window(end, window.start_frame, window.end_frame)
    # The seam lies among the frames that become stable now: later ones are better known to the window. Rows before
    # are compared, too, from `base` on.
    base, last = max(window.start_frame, begin, stable - MARGIN), min(end, max(stable_frame, first))
    rows = window.log_probs[base - window.start_frame :]
    newer, older = mark(rows, silent_ids), frames.marks[base - begin : last - begin]
    costs = seam_costs(doubts(older, newer[: len(older)])).tolist()
    old, new = (letters(of[: len(older), 0].astype(np.int64).tolist(), silent_ids[0]) for of in (older, newer))
    seam = find_seam(old, new, costs, first - base, base == begin)
    kept = base - begin + seam
    marks = np.concatenate([frames.marks[:kept], newer[seam:]])
    n_stable = min(max(frames.n_stable, stable_frame - begin), len(marks))
    return frames.followed_by(marks, rows, seam, kept, n_stable)


def bad_window(end: int, window_start: int, window_end: int) -> ValueError:
    return ValueError(
        f"Expected a window that reaches from at most frame {end} beyond it. Found: [{window_start}, {window_end})"
    )


def stitch_all(joints: Sequence[Joint], silent_ids: tuple[int, int]) -> list[StitchedFrames]:
    """`stitch` of many streams: the same, with most of the work done at once."""
    if len(joints) < FEW:
        return [stitch(*joint, silent_ids) for joint in joints]
    bounds = [
        (of.start_frame, len(of.marks), of.n_stable, window.start_frame, len(window.log_probs), stable_frame)
        for of, window, stable_frame in joints
    ]
    start, n, n_stable, window_start, n_window, stable = np.array(bounds).T
    end, window_end = start + n, window_start + n_window
    first = np.maximum(window_start, start + n_stable)
    if ((first > end) | (window_end < end)).any():
        wrong = int(np.argmax((first > end) | (window_end < end)))
        raise bad_window(end[wrong], window_start[wrong], window_end[wrong])
    last = np.minimum(end, np.maximum(stable, first))
    base = np.maximum(np.maximum(window_start, start), start + n_stable - MARGIN)
    lengths = last - base
    rows = [window.log_probs[at:] for (_, window, _), at in zip(joints, (base - window_start).tolist(), strict=True)]
    newer = mark(np.concatenate(rows), silent_ids)
    begins = np.cumsum(window_end - base) - (window_end - base)  # of each stream's rows there
    spans = zip(joints, *columns(base - start, last - start, begins, begins + lengths), strict=True)
    older, shared = list[Marks](), list[Marks]()
    for (frames, _, _), low, high, begin, stop in spans:
        older.append(frames.marks[low:high])
        shared.append(newer[begin:stop])
    compared = np.concatenate(older), np.concatenate(shared)
    seams = find_seams(*compared, lengths, first - base, base == start, silent_ids[0])

    kept, begins = base - start + seams, begins + seams
    n_all = kept + window_end - base - seams
    pieces = list[Marks]()
    for (frames, _, _), n_kept, begin, stop in zip(joints, *columns(kept, begins, begins + n_all - kept), strict=True):
        pieces += [frames.marks[:n_kept], newer[begin:stop]]
    together, ends = np.concatenate(pieces), np.cumsum(n_all)
    n_stable = np.minimum(np.maximum(n_stable, stable - start), n_all)
    places = zip(joints, rows, *columns(seams, kept, ends - n_all, ends, n_stable), strict=True)
    # A view would keep the marks of all streams alive.
    return [
        frames.followed_by(together[low:high].copy(), of, seam, n_kept, n)
        for (frames, _, _), of, seam, n_kept, low, high, n in places
    ]


def columns(*arrays: NDArray[np.int64]) -> list[list[int]]:
    """Each as a list, whose numbers are quicker to index with."""
    return [array.tolist() for array in arrays]
