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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, compress, zip_longest
from operator import ne
from typing import Any

import numpy as np
from numpy.typing import NDArray

LogProbs = NDArray[np.float32]
Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Letters = list[tuple[int, int]]  # row and token of each

FEW = 6  # streams whose seams are found sooner one by one
BLOCK = 50  # stable rows that are put aside at once
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

    past: tuple[LogProbs, ...]  # stable rows in blocks of `BLOCK`, which are shared with what follows and not copied
    recent: LogProbs  # (n_frames - BLOCK * blocks, n_vocab), the rows after those
    ids: Ids  # (n_frames,) the likeliest of each row
    scores: Scores  # (n_frames,) its log-probability
    start_frame: int
    n_stable: int

    @property
    def log_probs(self) -> LogProbs:
        """(n_frames, n_vocab)"""
        return self.rows(0)

    @property
    def end_frame(self) -> int:
        return self.start_frame + len(self.ids)

    @property
    def stable_frame(self) -> int:
        """First frame that may still change."""
        return self.start_frame + self.n_stable

    def rows(self, first: int) -> LogProbs:
        """The rows from index `first` on."""
        n_past = BLOCK * len(self.past)
        if first >= n_past:
            return self.recent[first - n_past :]
        return np.concatenate([*self.past[first // BLOCK :], self.recent])[first % BLOCK :]

    def since(self, frame: int) -> StitchedFrames:
        """The rows from `frame` on: what the next segment starts with."""
        n = min(max(0, frame - self.start_frame), len(self.ids))
        return StitchedFrames((), self.rows(n), self.ids[n:], self.scores[n:], frame, max(0, self.n_stable - n))

    def until(self, n: int) -> StitchedFrames:
        """The first `n` rows, which are stable rows and more."""
        recent = self.recent[: n - BLOCK * len(self.past)]
        return replace(self, recent=recent, ids=self.ids[:n], scores=self.scores[:n])

    def followed_by(self, log_probs: LogProbs, ids: Ids, scores: Scores, n: int, stable_frame: int) -> StitchedFrames:
        """The first `n` rows, the stable ones among them, and others after those."""
        past, recent = self.past, self.recent
        n_past = BLOCK * len(past)
        while n_past + BLOCK + MARGIN <= self.n_stable:  # the next seam looks at what is recent
            past, recent, n_past = (*past, recent[:BLOCK].copy()), recent[BLOCK:], n_past + BLOCK
        n_stable = min(max(self.n_stable, stable_frame - self.start_frame), n + len(ids))
        rows = np.concatenate([recent[: n - n_past], log_probs])
        new_ids, new_scores = np.concatenate([self.ids[:n], ids]), np.concatenate([self.scores[:n], scores])
        return StitchedFrames(past, rows, new_ids, new_scores, self.start_frame, n_stable)


Joint = tuple[StitchedFrames, Emission, int]  # as the arguments of `stitch`


def empty(start_frame: int, n_vocab: int) -> StitchedFrames:
    none = np.zeros(0, np.float32)
    return StitchedFrames((), np.zeros((0, n_vocab), np.float32), np.zeros(0, np.int64), none, start_frame, 0)


def letters(ids: Sequence[int], blank: int) -> Letters:
    """Rows where letters begin, and those: `_ A A _ A` -> [(1, A), (4, A)]."""
    begins = map(ne, ids, [blank, *ids])
    return [letter for letter in compress(enumerate(ids), begins) if letter[1] != blank]


def split(array: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    """Stretches of those lengths."""
    return [array[end - n : end] for n, end in zip(lengths, accumulate(lengths), strict=True)]


def prefix_distances(older: Letters, newer: Letters, is_beginning: bool = False) -> Iterator[list[float]]:
    """len(older) + 1 lines of len(newer) + 1: the edit distance of prefixes of `older` from prefixes of `newer`.

    Letters further than `MAX_MOVE` rows apart are never the same one, so that repeats do not pair wrongly. One
    that near to row 0 may miss its partner for nothing, as it can lie before, unless nothing does.
    Prefixes of which one ends `MAX_MOVE` rows after the other's next letter are infinitely far: none of what ends
    before one row does, and no way to those leads through.
    """
    margin = -1 if is_beginning else MAX_MOVE
    places, tokens = [place for place, _ in newer], [token for _, token in newer]
    line = [0.0]
    for place in places:
        line.append(line[-1] + (place > margin))
    yield line
    following = [row for row, _ in older[1:]] + [math.inf] * bool(older)
    first = last = 0  # columns of the line
    for (row, token), after in zip(older, following, strict=True):
        above = line
        while first < len(newer) and places[first] < row - MAX_MOVE:
            first += 1
        while last < len(newer) and places[last] <= after + MAX_MOVE:
            last += 1
        line = [math.inf] * len(above)
        if not first:
            line[0] = above[0] + (row > margin)
        left = line[max(0, first - 1)]
        for j in range(max(0, first - 1), last):
            place, up = places[j], above[j + 1]
            move = row - place if row > place else place - row
            paired = above[j] + ((token != tokens[j]) + MOVE * move if move <= MAX_MOVE else 2)
            alone = 1 + (up if up < left else left)
            line[j + 1] = left = paired if paired < alone else alone
        yield line


def find_seam(older: Letters, newer: Letters, costs: list[float], first: int, is_beginning: bool = False) -> int:
    """The row from which on the newer window's rows are taken, of those that two windows share.

    Args:
        older, newer: the letters that begin in those rows, as either window saw them.
        costs: of a seam before each row, by what is heard there.
        first: where the seam may lie; the rows before are there to compare.
        is_beginning: whether nothing was said before row 0.

    The letters before a good seam are the same in both, so that a spike which moved across it is neither lost nor
    doubled: their edit distance counts most. As a rule they are the same one by one, perhaps some rows elsewhere, and
    their distance is by how much they moved; other ways to pair them cost 1 at least. Where a row of which no more is
    known than that might make a better seam, all distances are computed.
    """
    best = unknown = math.inf  # costs
    seam = begin = first
    moved, is_free, n = 0.0, False, len(costs)
    for old, new in zip_longest([*older, (n, -1)], [*newer, (n, -1)], fillvalue=(n, -1)):
        near, far = (old[0], new[0]) if old[0] < new[0] else (new[0], old[0])
        if begin <= near and begin < n:  # both have the same letters before these rows
            cost = min(costs[begin : near + 1])
            if cost + DISAGREEMENT * moved < best:
                best, seam = cost + DISAGREEMENT * moved, costs.index(cost, begin)
            begin = near + 1
        if old == new:
            continue
        # A letter next to row 0 may miss its partner for nothing.
        is_free = is_free or (near <= MAX_MOVE and not is_beginning)
        move = MOVE * (far - near)
        is_pair = old[1] == new[1] and far - near <= MAX_MOVE and moved + move < 1
        end = far + 1 if is_pair else n
        if begin < min(end, n):
            unknown = min(unknown, min(costs[begin:end]) + (0 if is_free else DISAGREEMENT * moved))
            begin = end
        if not is_pair:
            break
        moved += move
    return seam if best < unknown or first >= n else search_seam(older, newer, costs, first, is_beginning)


def seam_costs(doubts: list[float], first: int) -> list[float]:
    """Of a seam before each row from `first` on, and 0 before: how unsure both windows are of silence on either side.

    Of equals the earlier is the better, since the newer window knows more of what follows.
    """
    before = doubts[first - 1 :] if first else doubts[:1] + doubts
    pairs = enumerate(zip(doubts[first:], before, strict=False), first)
    return [0.0] * first + [doubt + DELAY * row + last for row, (doubt, last) in pairs]


def search_seam(older: Letters, newer: Letters, costs: list[float], first: int, is_beginning: bool) -> int:
    """`find_seam` by all distances, as far as they matter."""
    n_alike = 0  # letters that both have first, in the same rows, are the same
    while older[n_alike : n_alike + 1] == newer[n_alike : n_alike + 1] != []:
        n_alike += 1
    older, newer = older[n_alike:], newer[n_alike:]
    best, seam, begin, n_newer = math.inf, first, first, 0
    for n_older, line in enumerate(prefix_distances(older, newer, is_beginning)):
        end = older[n_older][0] + 1 if n_older < len(older) else len(costs)
        for row in range(begin, end):
            while n_newer < len(newer) and newer[n_newer][0] < row:
                n_newer += 1
            if (cost := costs[row] + DISAGREEMENT * line[n_newer]) < best:
                best, seam = cost, row
        begin = max(begin, end)
        if best <= min(costs[begin:], default=math.inf) + DISAGREEMENT * min(line):
            break  # no later line has less
    return seam


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """The rows in which a seam may lie, and those before that are compared, as two windows have them."""

    start: int  # index of row 0 in the frames so far
    first: int  # row; the seam is there or later
    older: LogProbs  # (n, n_vocab)
    older_ids: Ids  # (n,) the likeliest of each
    newer: LogProbs  # (n, n_vocab), and the rows that follow

    @classmethod
    def of(cls, frames: StitchedFrames, window: Emission, stable_frame: int) -> Overlap:
        """Arguments and errors as of `stitch`."""
        first = max(window.start_frame, frames.stable_frame)
        if first > frames.end_frame or window.end_frame < frames.end_frame:
            raise ValueError(
                f"Expected a window that reaches from at most frame {frames.end_frame} beyond it. "
                f"Found: [{window.start_frame}, {window.end_frame})"
            )
        # The seam lies among the frames that become stable now: later ones are better known to the window.
        end = min(frames.end_frame, max(stable_frame, first)) - frames.start_frame
        base = max(window.start_frame, frames.start_frame, frames.stable_frame - MARGIN)
        start, newer = base - frames.start_frame, window.log_probs[base - window.start_frame :]
        return cls(start, first - base, frames.rows(start)[: end - start], frames.ids[start:end], newer)


def find_seams(overlaps: Sequence[Overlap], newer_ids: Sequence[Ids], silent_ids: tuple[int, int]) -> list[int]:
    """`find_seam` of many streams; `newer_ids` are the likeliest of each newer row."""
    lengths = [len(of.older) for of in overlaps]
    older = np.concatenate([of.older for of in overlaps])
    newer = np.concatenate([of.newer[:n] for of, n in zip(overlaps, lengths, strict=True)])
    silences = np.concatenate([older.take(silent_ids, 1), newer.take(silent_ids, 1)], 1)
    doubts = split(2 - np.exp(silences).sum(1), lengths)  # in [0, 2]
    sides = [of.older_ids for of in overlaps], [ids[:n] for ids, n in zip(newer_ids, lengths, strict=True)]
    is_many = len(overlaps) >= FEW
    told = quick_seams(overlaps, *sides, doubts, silent_ids[0]) if is_many else [None for _ in overlaps]
    seams = []
    for of, seam, doubt, *ids in zip(overlaps, told, doubts, *sides, strict=True):
        if seam is None:
            old, new = (letters(part.tolist(), silent_ids[0]) for part in ids)
            costs = seam_costs(doubt.tolist(), of.first)
            find = search_seam if is_many else find_seam
            seam = find(old, new, costs, of.first, of.start == 0)
        seams.append(seam)
    return seams


def quick_seams(
    overlaps: Sequence[Overlap],
    older_ids: Sequence[Ids],
    newer_ids: Sequence[Ids],
    doubts: Sequence[NDArray[np.float32]],
    blank: int,
) -> list[int | None]:
    """What `find_seam` finds without all distances, of many streams at once; None where it needs them.

    Pair k is of the k-th letters of either window. Rows are known or not by the first pair that reaches them.
    """
    n = np.array([len(ids) for ids in older_ids])[:, None]  # (stream, 1), as the next two
    first = np.array([of.first for of in overlaps])[:, None]
    is_beginning = np.array([of.start == 0 for of in overlaps])[:, None]
    width = max(1, int(n.max()))
    row = np.arange(width)
    is_row = row < n  # (stream, row)
    costs = np.zeros(is_row.shape)
    costs[is_row] = np.concatenate(doubts)
    costs = costs + DELAY * row + costs[:, np.maximum(row - 1, 0)]

    # (stream, letter): rows and tokens.
    (old, old_token), (new, new_token) = pad_letters(older_ids, newer_ids, is_row, blank)
    is_same, distance = (old == new) & (old_token == new_token), abs(old - new)
    is_pair = (old_token == new_token) & (distance <= MAX_MOVE)
    moved = np.cumsum(np.where(is_pair, MOVE * distance, 0.0), 1)
    is_last = ~is_pair | (moved >= 1)  # with the first such pair it ends
    near, far = np.minimum(old, new), np.where(is_last, n, np.maximum(old, new))
    moved = np.concatenate([np.zeros_like(moved[:, :1]), moved[:, :-1]], 1)  # before each pair
    is_free = np.logical_or.accumulate(~is_same & (near <= MAX_MOVE) & ~is_beginning, 1)

    # (stream, row) again: the pair that reaches each row first.
    reach = np.maximum.accumulate(far, 1) + 1 + (width + 2) * np.arange(len(n))[:, None]
    n_behind = np.bincount(reach.ravel(), minlength=len(n) * (width + 2)).reshape(len(n), -1)
    pair = np.minimum(np.cumsum(n_behind, 1)[:, :width], near.shape[1] - 1)
    penalty = DISAGREEMENT * np.take_along_axis(moved, pair, 1)
    may_be = is_row & (row >= first)
    is_known = may_be & (row <= np.take_along_axis(near, pair, 1))
    whole = np.where(is_known, costs + penalty, np.inf)
    unknown = np.where(np.take_along_axis(is_free, pair, 1), costs, costs + penalty)
    unknown = np.where(may_be & ~is_known, unknown, np.inf).min(1)
    place = whole.argmin(1)[:, None]
    alike = is_known & (pair == np.take_along_axis(pair, place, 1))  # of these the cheapest, as rounding may hide
    seams = np.where(alike, costs, np.inf).argmin(1)
    is_told = np.take_along_axis(whole, place, 1)[:, 0] < unknown
    none = (first >= n)[:, 0]
    seams, is_told = np.where(none, first[:, 0], seams), is_told | none
    return [seam if told else None for seam, told in zip(seams.tolist(), is_told.tolist(), strict=True)]


def pad_letters(
    older_ids: Sequence[Ids], newer_ids: Sequence[Ids], is_row: NDArray[np.bool_], blank: int
) -> list[tuple[Ids, Ids]]:
    """`letters` of both windows of many streams: rows and tokens (stream, letter), at the end n and -1, one at least.

    Args:
        is_row: (stream, row) False behind each stream's n rows.
    """
    begins, tokens = [], []
    for ids in (older_ids, newer_ids):
        line = np.full((len(is_row), is_row.shape[1] + 1), blank)  # one blank before
        line[:, 1:][is_row] = np.concatenate(ids)
        tokens.append(line[:, 1:])
        begins.append((line[:, 1:] != line[:, :-1]) & (line[:, 1:] != blank))
    counts = [begin.sum(1) for begin in begins]
    n_letters = 1 + max(int(count.max()) for count in counts)
    n = is_row.sum(1)[:, None]
    padded = []
    for begin, token, count in zip(begins, tokens, counts, strict=True):
        rows, names = np.repeat(n, n_letters, 1), np.full((len(n), n_letters), -1)
        is_letter = np.arange(n_letters) < count[:, None]
        rows[is_letter] = np.nonzero(begin)[1]
        names[is_letter] = token[begin]
        padded.append((rows, names))
    return padded


def stitch(frames: StitchedFrames, window: Emission, stable_frame: int, silent_ids: tuple[int, int]) -> StitchedFrames:
    """`frames` continued by `window`; all before `stable_frame` is stable from now on.

    Raises:
        ValueError: the window leaves a hole after the rows so far, or ends before them.
    """
    return stitch_all([(frames, window, stable_frame)], silent_ids)[0]


def stitch_all(joints: Sequence[Joint], silent_ids: tuple[int, int]) -> list[StitchedFrames]:
    """`stitch` of many streams: the same, with most of the work done at once."""
    if not joints:
        return []
    overlaps = [Overlap.of(*joint) for joint in joints]
    rows = [of.newer for of in overlaps]
    lengths = [len(part) for part in rows]
    together = np.concatenate(rows)
    likeliest = together.argmax(1)
    ids = split(likeliest, lengths)
    scores = split(np.take_along_axis(together, likeliest[:, None], 1)[:, 0], lengths)
    seams = find_seams(overlaps, ids, silent_ids)
    return [
        frames.followed_by(row[n:], of_row[n:], score[n:], of.start + n, stable_frame)
        for (frames, _, stable_frame), of, row, of_row, score, n in zip(
            joints, overlaps, rows, ids, scores, seams, strict=True
        )
    ]
