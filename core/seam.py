"""Where the rows of one window end and those of the next begin, among the rows that both have heard.

The letters before a good seam are the same in both windows, so that a spike which moved across it is neither lost nor
doubled: their edit distance counts most. Then both should be sure that no letter is there. All costs are integers, so
that many streams at once are given the seams of each alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import compress, zip_longest
from operator import ne

import numpy as np
from numpy.typing import NDArray

Marks = NDArray[np.float32]  # (n_frames, 3): the likeliest id, its log-probability, and how likely silence is
Ints = NDArray[np.int64]
Letters = list[tuple[int, int]]  # row and token of each

FEW = 6  # streams whose seams and words are found sooner one by one
MAX_MOVE = 6  # frames that a letter moves at most between two windows
UNIT = 20  # distance of a letter that one window lacks; one that moved is as many away as frames: the nearer is right
DISAGREEMENT = 400_000  # cost of each distance before the seam; a window that is sure of a letter there costs 1,000,000
DELAY = 10_000  # cost of every frame that keeps the older row, which knew less of what follows


def letters(ids: Sequence[int], blank: int) -> Letters:
    """Rows where letters begin, and those: `_ A A _ A` -> [(1, A), (4, A)]."""
    begins = map(ne, ids, [blank, *ids])
    return [letter for letter in compress(enumerate(ids), begins) if letter[1] != blank]


def doubts(older: Marks, newer: Marks) -> Ints:
    """(n,) how unsure two windows are of silence in the same rows, 2,000,000 at most."""
    return np.rint(1e6 * (2 - older[:, 2].astype(np.float64) - newer[:, 2])).astype(np.int64)


def seam_costs(doubt: Ints) -> Ints:
    """(…, row) of a seam before each row: how unsure both windows are of silence on either side.

    Of equals the earlier is the better, since the newer window knows more of what follows.
    """
    costs = doubt + DELAY * np.arange(doubt.shape[-1])
    costs[..., :1] += doubt[..., :1]
    costs[..., 1:] += doubt[..., :-1]
    return costs


def prefix_distances(older: Letters, newer: Letters, is_beginning: bool = False) -> Iterator[list[float]]:
    """len(older) + 1 lines of len(newer) + 1: the edit distance of prefixes of `older` from prefixes of `newer`.

    Letters further than `MAX_MOVE` rows apart are never the same one, so that repeats do not pair wrongly. One
    that near to row 0 may miss its partner for nothing, as it can lie before, unless nothing does.
    Prefixes of which one ends `MAX_MOVE` rows after the other's next letter are infinitely far: none of what ends
    before one row does, and no way to those leads through.
    """
    margin = -1 if is_beginning else MAX_MOVE
    places, tokens = [place for place, _ in newer], [token for _, token in newer]
    line: list[float] = [0]
    for place in places:
        line.append(line[-1] + UNIT * (place > margin))
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
            line[0] = above[0] + UNIT * (row > margin)
        left = line[max(0, first - 1)]
        for j in range(max(0, first - 1), last):
            place, up = places[j], above[j + 1]
            move = row - place if row > place else place - row
            paired = above[j] + (UNIT * (token != tokens[j]) + move if move <= MAX_MOVE else 2 * UNIT)
            alone = UNIT + (up if up < left else left)
            line[j + 1] = left = paired if paired < alone else alone
        yield line


def find_seam(older: Letters, newer: Letters, costs: list[int], first: int, is_beginning: bool = False) -> int:
    """The row from which on the newer window's rows are taken.

    Args:
        older, newer: the letters that begin in the rows that two windows share, as either window saw them.
        costs: of a seam before each row, by what is heard there.
        first: where the seam may lie; the rows before are there to compare.
        is_beginning: whether nothing was said before row 0.

    As a rule the letters are the same one by one, perhaps some rows elsewhere, and their distance is by how much they
    moved; other ways to pair them cost `UNIT` at least. Where a row of which no more is known than that might make a
    better seam, all distances are computed.
    """
    best = unknown = math.inf  # costs
    seam = begin = first
    moved, is_free, n = 0, False, len(costs)
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
        move = far - near
        is_pair = old[1] == new[1] and move <= MAX_MOVE and moved + move < UNIT
        end = far + 1 if is_pair else n
        if begin < min(end, n):
            unknown = min(unknown, min(costs[begin:end]) + (0 if is_free else DISAGREEMENT * moved))
            begin = end
        if not is_pair:
            break
        moved += move
    return seam if best < unknown or first >= n else search_seam(older, newer, costs, first, is_beginning)


def search_seam(older: Letters, newer: Letters, costs: list[int], first: int, is_beginning: bool) -> int:
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


def find_seams(
    older: Marks, newer: Marks, lengths: Ints, first: Ints, is_beginning: NDArray[np.bool_], blank: int
) -> Ints:
    """`find_seam` of many streams at once, by all distances.

    Args:
        older, newer: (sum of `lengths`, 3) rows that two windows share, of one stream behind the other.
        first, is_beginning: (n_streams,)
    """
    row = np.arange(max(1, int(lengths.max())))
    is_row = row < lengths[:, None]  # (stream, row)
    doubt = np.zeros(is_row.shape, np.int64)
    doubt[is_row] = doubts(older, newer)
    costs = seam_costs(doubt)
    sides = [padded_letters(marks, is_row, blank) for marks in (older, newer)]
    (old_begins, old), (new_begins, new) = sides
    n = min(old.shape[2], new.shape[2])
    alike = (old[:, :, :n] == new[:, :, :n]).all(0) & (old[1, :, :n] >= 0)
    n_alike = np.logical_and.accumulate(alike, 1).sum(1)  # letters that both have first, in the same rows, are the same
    counts = [begins.sum(1) - n_alike for begins, _ in sides]  # of those that are left
    rest = np.flatnonzero(counts[0] + counts[1])  # the other streams have no distances
    if len(rest):
        shift = n_alike[rest][:, None]
        left = [
            np.take_along_axis(of[:, rest], np.minimum(shift + np.arange(n[rest].max()), of.shape[2] - 1)[None], 2)
            for (_, of), n in zip(sides, counts, strict=True)
        ]
        before = [
            np.maximum(np.cumsum(begins[rest], 1) - begins[rest] - shift, 0) for begins in (old_begins, new_begins)
        ]
        distances = many_distances(left[0], left[1], is_beginning[rest])
        costs[rest] += DISAGREEMENT * distances[before[0], before[1], np.arange(len(rest))[:, None]].astype(np.int64)
    costs[~is_row | (row < first[:, None])] = np.iinfo(np.int64).max
    return np.where(first < lengths, costs.argmin(1), first)


def padded_letters(marks: Marks, is_row: NDArray[np.bool_], blank: int) -> tuple[NDArray[np.bool_], Ints]:
    """Where letters begin (stream, row); the rows and the tokens of those (2, stream, letter), behind the last -1.

    Args:
        is_row: (stream, row) False behind each stream's rows.
    """
    tokens = np.full((len(is_row), is_row.shape[1] + 1), blank, np.int64)  # one blank before
    tokens[:, 1:][is_row] = marks[:, 0]
    begins = (tokens[:, 1:] != tokens[:, :-1]) & (tokens[:, 1:] != blank)
    counts = begins.sum(1)
    is_letter = np.arange(int(counts.max()) + 1) < counts[:, None]
    found = np.full((2, *is_letter.shape), -1)
    found[0, is_letter], found[1, is_letter] = np.nonzero(begins)[1], tokens[:, 1:][begins]
    return begins, found


def many_distances(older: Ints, newer: Ints, is_beginning: NDArray[np.bool_]) -> Ints:
    """`prefix_distances` of many streams: (older letters + 1, newer letters + 1, stream), none infinitely far.

    Args:
        older, newer: (2, stream, letter) rows and tokens; what is behind a stream's last does not matter.
    """
    margin = np.where(is_beginning, -1, MAX_MOVE)
    (old_row, old_token), (row, token) = (of.transpose(0, 2, 1).astype(np.int16, order="C") for of in (older, newer))
    move = abs(row - old_row[:, None])  # (older letter, newer letter, stream)
    paired = np.where(move <= MAX_MOVE, np.where(token == old_token[:, None], move, move + UNIT), 2 * UNIT)
    # Each of a line may be reached from its left one for `UNIT`: less these steps, it is the least so far.
    steps = UNIT * np.arange(len(row) + 1, dtype=np.int16)[:, None]
    distances = np.zeros((len(old_row) + 1, len(row) + 1, len(margin)), np.int16)
    np.cumsum(UNIT * (old_row > margin), 0, out=distances[1:, 0])
    np.cumsum(UNIT * (row > margin), 0, out=distances[0, 1:])
    distances[0] -= steps
    paired -= UNIT
    for above, line, pairs in zip(distances, distances[1:], paired, strict=False):
        np.minimum(above[:-1] + pairs, above[1:] + UNIT, out=line[1:])
        np.minimum.accumulate(line, 0, out=line)
    return distances + steps
