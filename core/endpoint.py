"""When a segment ends: silence after speech, silence without speech, or length (Kaldi's rules).

A run of CTC blanks is not silence inside a long vowel, so the run must be quiet too: its energy is held
against that of the segment's speech. Where a segment ends hangs on its own rows, not on how far the steps had come when
it was found out, so that streams of other hops end it at the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.seam import Marks

NEVER = 1 << 60  # row of a letter that is not there
Measure = Callable[[], NDArray[np.float32]]  # (n_frames,) mean square of each frame's samples


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """All lengths in frames of 20 ms."""

    after_speech: int = 50  # a quiet pause of this length ends the segment
    loud_factor: int = 3  # a pause that is not quiet must be this many times as long
    before_speech: int = 150  # silence without any word that is let go of
    max_length: int = 1000  # a segment of this length is cut at its best seam
    quiet_ratio: float = 0.1  # quiet: energy below this share of the speech's
    kept_silence: int = field(init=False, repr=False)  # at the end of that: the first letter may come late
    slack: int = field(init=False, repr=False)  # frames by which a letter may lie elsewhere than in the whole segment
    grain: int = field(init=False, repr=False)  # final passes that end a pause end at multiples of so many rows
    least_run: int = field(init=False, repr=False)  # rows without letters, in a window, below which there is no pause

    def __post_init__(self) -> None:
        if min(self.after_speech, self.loud_factor, self.before_speech) < 1:
            raise ValueError(
                "after_speech, loud_factor and before_speech must be at least 1. "
                f"Found: {self.after_speech}, {self.loud_factor}, {self.before_speech}"
            )
        if self.max_length < 2 * self.after_speech:
            raise ValueError(
                f"max_length must be at least twice after_speech. Found: {self.max_length} and {self.after_speech}"
            )
        object.__setattr__(self, "kept_silence", min(25, self.before_speech // 2))
        object.__setattr__(self, "slack", min(5, self.after_speech // 10))
        object.__setattr__(self, "grain", self.slack // 2 + 1)
        object.__setattr__(self, "least_run", self.after_speech - 2 * self.slack)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Rows before `cut` belong to the ended segment, and its final pass, which may find another cut, reads those
    before `end`: some rows behind a pause, in which a word may begin. They are a multiple of `grain`, so that where the
    pause begins a row later by the letters of the pass than by those of the steps, it mostly ends there all the same,
    and no other pass has to be run.

    `has_speech` is False where silence is let go of. A pause may turn out to be none: see `find_pause`.
    """

    cut: int
    end: int
    has_speech: bool = True
    is_pause: bool = False


@dataclass(slots=True)
class Lull:
    """Of a segment's rows so far: what tells of most of them that it does not end yet."""

    first: int  # row of the first letter; `NEVER` without any
    run: int  # rows behind the last letter; all without any
    has_pause: bool  # whether a run behind the first letter is as long as one that may end the segment

    def may_end(self, n_stable: int, config: EndpointConfig) -> bool:
        """False where `find_endpoint` finds nothing."""
        if self.first >= config.before_speech:
            return n_stable >= config.before_speech
        return self.has_pause or n_stable >= config.max_length


def find_lull(has_letter: NDArray[np.bool_], config: EndpointConfig) -> Lull:
    """Of (n_frames,) rows, True where the best path has a letter."""
    rows = has_letter.tobytes()
    first = rows.find(1)
    if first < 0:
        return Lull(NEVER, len(rows), False)
    return Lull(first, len(rows) - 1 - rows.rfind(1), bytes(config.least_run) in rows[first + 1 :])


def find_lulls(
    marks: Sequence[Marks], least_runs: Sequence[int], is_letter: NDArray[np.bool_], blank: int
) -> list[Lull]:
    """`find_lull` of many segments; `is_letter` is of each id."""
    ids = np.concatenate([part[:, 0] for part in marks])
    heard = np.flatnonzero(ids != blank)
    letters = heard[is_letter[ids[heard].astype(np.int64)]]  # rows, of one segment behind the other
    ends = np.cumsum([len(part) for part in marks])
    begins = np.concatenate([[0], ends[:-1]])
    lows, highs = np.searchsorted(letters, begins), np.searchsorted(letters, ends)
    some = np.flatnonzero(lows < highs)
    firsts, runs = np.full(len(marks), NEVER), ends - begins
    longest = np.zeros(len(marks), np.int64)
    if len(some):
        firsts[some] = letters[lows[some]] - begins[some]
        runs[some] = ends[some] - 1 - letters[highs[some] - 1]
        behind = np.diff(letters, append=0) - 1  # rows without any behind each letter
        behind[highs[some] - 1] = runs[some]
        longest[some] = np.maximum.reduceat(behind, lows[some])
    return [Lull(*of) for of in zip(firsts.tolist(), runs.tolist(), (longest >= least_runs).tolist(), strict=True)]


def find_endpoint(
    has_letter: NDArray[np.bool_],
    measure: Measure,
    n_stable: int,
    config: EndpointConfig,
    committed: int = 0,
    first: int = 0,
) -> Endpoint | None:
    """Where the segment ends, if it does.

    Args:
        has_letter: (n_frames,) True where the best path has a letter.
        measure: asked where it matters.
        n_stable: a rule that is about a length is asked once so many rows are stable.
        committed: no cut lies before this row; words that are committed are not let go of, whatever steps hear of them.
        first: no pause has lasted long enough before this row.
    """
    if not committed and 1 not in has_letter[: config.before_speech].tobytes():
        n = config.before_speech
        return Endpoint(n - config.kept_silence, n, has_speech=False) if n_stable >= n else None
    within = has_letter[: config.max_length]
    if (endpoint := find_pause(within, measure, config, config.slack, committed, first)) is not None:
        return endpoint
    return find_cut(within, config, committed) if n_stable >= config.max_length else None


def find_silence(has_letter: NDArray[np.bool_], config: EndpointConfig) -> int:
    """Rows before the first word that are let go of, as steps would in turn, where all letters are known."""
    rows, n = has_letter.tobytes(), 0
    while len(rows) >= n + config.before_speech and 1 not in rows[n : n + config.before_speech]:
        n += config.before_speech - config.kept_silence
    return n


def find_cut(has_letter: NDArray[np.bool_], config: EndpointConfig, committed: int = 0) -> Endpoint:
    """Where to end a segment whose `max_length` rows have no pause."""
    n = config.max_length
    begin = max(n // 2, committed)
    return Endpoint(longest_pause(has_letter[: max(begin, n * 9 // 10)], begin), n)


def find_pause(
    has_letter: NDArray[np.bool_],
    measure: Measure,
    config: EndpointConfig,
    slack: int = 0,
    committed: int = 0,
    first: int = 0,
) -> Endpoint | None:
    """The first pause behind a letter that ends the segment; arguments as in `find_endpoint`.

    Letters lie some frames elsewhere in a window than in the whole segment, and one at the end may not be heard yet.
    That there is a pause is said by the pass over the whole segment, whose result does not depend on windows; with
    `slack` it is asked so many rows later, and although the letters on either side may be so many rows further apart.
    """
    n, least = len(has_letter), config.after_speech
    half = least // 2
    rows = has_letter.tobytes()
    if bytes(least - 2 * slack) not in rows[rows.find(1) + 1 :]:
        return None  # no run is long enough
    first = max(first, committed + half)
    letters = np.flatnonzero(has_letter)
    lasts = np.minimum(np.append(letters[1:] + 2 * slack, n), n - slack)  # the last row each run may be told by
    for i in np.flatnonzero(lasts - letters > least):
        begin, last = int(letters[i]) + 1, int(lasts[i])
        earliest, surely = max(begin + least, first), begin + config.loud_factor * least
        if earliest > last:
            continue
        lasted = earliest if earliest >= surely else quiet_row(measure(), has_letter[:begin], earliest, last, config)
        lasted = min(lasted, max(earliest, surely))
        if lasted <= last:
            return Endpoint(lasted - half, (lasted + config.slack) // config.grain * config.grain, is_pause=True)
    return None


def quiet_row(
    energy: NDArray[np.float32], has_letter: NDArray[np.bool_], first: int, last: int, config: EndpointConfig
) -> int:
    """The first row in [first, last] before which half a pause is quiet beside the letters; behind `last` if none."""
    half = max(1, config.after_speech // 2)
    loud = config.quiet_ratio * energy[: len(has_letter)][has_letter].mean()
    sums = np.cumsum(np.concatenate([[0.0], energy[first - half : last]]), dtype=np.float64)
    quiet = np.flatnonzero(sums[half:] - sums[:-half] <= half * loud)
    return first + int(quiet[0]) if len(quiet) else last + 1


def longest_pause(has_letter: NDArray[np.bool_], first: int) -> int:
    """The middle of the longest run without letters at or after row `first` (the last of equals)."""
    padded = np.concatenate([[True], has_letter[first:], [True]])
    edges = np.flatnonzero(padded)
    gaps = np.diff(edges) - 1
    best = len(gaps) - 1 - int(np.argmax(gaps[::-1]))
    return first + int(edges[best]) + int(gaps[best] + 1) // 2
