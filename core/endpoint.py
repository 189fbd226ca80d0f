"""When a segment ends: silence after speech, silence without speech, or length (Kaldi's rules).

A run of CTC blanks is not silence inside a long vowel, so the run must be quiet too: its energy is held
against that of the segment's speech.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Measure = Callable[[slice | NDArray[np.bool_]], NDArray[np.float64]]  # mean square of the samples of some frames


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """All lengths in frames of 20 ms."""

    after_speech: int = 50  # a quiet pause of this length ends the segment
    loud_factor: int = 3  # a pause that is not quiet must be this many times as long
    before_speech: int = 150  # silence without any word that is let go of
    max_length: int = 1000  # a segment of this length is cut at its best seam
    quiet_ratio: float = 0.1  # quiet: energy below this share of the speech's

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

    @property
    def slack(self) -> int:
        """Frames by which a letter may lie elsewhere in a window than in the whole segment."""
        return min(5, self.after_speech // 10)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Rows before `cut` belong to the ended segment; `has_speech` is False where silence is let go of.

    A pause may turn out to be shorter, when the segment is heard as a whole: see `is_pause`.
    """

    cut: int
    has_speech: bool
    is_pause: bool = False


def find_endpoint(
    has_letter: NDArray[np.bool_],
    measure: Measure,
    n_stable: int,
    config: EndpointConfig,
) -> Endpoint | None:
    """Where the segment ends, if it does.

    Args:
        has_letter: (n_frames,) True where the best path has a letter.
        measure: asked where it matters.
        n_stable: a cut by length is put before this row.
    """
    n = len(has_letter)
    if not has_letter.any():
        # Keep the last half second: the first letter may come late.
        keep = min(25, config.before_speech // 2)
        return Endpoint(n_stable - keep, False) if n_stable >= config.before_speech else None
    if is_pause(has_letter, measure, config, config.slack):
        return Endpoint(n - config.after_speech // 2, True, True)  # whatever frame the last letter is found in
    if n_stable >= config.max_length:
        return Endpoint(longest_pause(has_letter[:n_stable], n_stable // 2), True)
    return None


def is_pause(has_letter: NDArray[np.bool_], measure: Measure, config: EndpointConfig, slack: int = 0) -> bool:
    """Whether the last rows are a pause that ends a segment with letters; arguments as in `find_endpoint`.

    Letters lie some frames elsewhere in a window than in the whole segment, and one at the end may not be heard yet.
    That there is a pause is said by the pass over the whole segment, whose result does not depend on windows; with
    `slack` it is asked so many frames before, and although a letter may begin in the last ones.
    """
    n, least = len(has_letter), config.after_speech
    before = has_letter[: n - slack]
    if before[max(0, n + slack - least) :].any():
        return False  # as nearly always
    if not before.any():
        return not has_letter.any()
    if not before[max(0, n + slack - config.loud_factor * least) :].any():
        return True
    quiet, loud = measure(slice(n - least // 2, n)), measure(has_letter)
    return float(quiet.mean()) <= config.quiet_ratio * float(loud.mean())


def longest_pause(has_letter: NDArray[np.bool_], first: int) -> int:
    """The middle of the longest run without letters at or after row `first` (the last of equals)."""
    padded = np.concatenate([[True], has_letter[first:], [True]])
    edges = np.flatnonzero(padded)
    gaps = np.diff(edges) - 1
    best = len(gaps) - 1 - int(np.argmax(gaps[::-1]))
    return first + int(edges[best]) + int(gaps[best] + 1) // 2
