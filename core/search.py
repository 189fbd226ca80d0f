"""Where a stream that shows no partials is heard before its segment ends.

Its steps tell pauses alone, and every pause is told again by a final pass: most of the segment need not be heard twice.
A step is due where the sound has been quiet for as long as a pause lasts. It hears the newest frames alone, and more of
them while it finds no letter there; those that no step has heard count as letters. Where the sound was misleading, or a
pause is loud, it is the pass over the longest segment that finds the pause, later, and the same one. In a stream where
that has happened a step is also due where no letter has been heard for as long as a loud pause lasts.

Silence before a segment is told likewise: by the first final pass, unless the sound is that of a pause, or there has
been none but silence since the last word. Then a step is due where it may be let go of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.endpoint import EndpointConfig, Lull
from core.silence import is_hushed

AHEAD = 10  # frames after those that become stable that a step hears, at most
LEAD = 15  # frames before the shortest quiet pause that it hears
GLIMPSE = 20  # frames that it hears where there is no pause, as a rule


class Search:
    """How far a segment has been searched for its end. Rows are its frames."""

    def __init__(self, rules: EndpointConfig, is_loud: bool = False, is_silent: bool = False) -> None:
        """A segment of which nothing has been heard.

        Args:
            is_loud: whether a pause of this stream was.
            is_silent: whether silence may go on.
        """
        self.rules = rules
        self.sums = np.zeros(1)  # (n + 1,) energy of the first frames, none to all
        self.first = 0  # no row before this one ends a pause
        self.reach = GLIMPSE  # frames before its last stable one that the next step hears
        self.is_loud, self.is_silent = is_loud, is_silent or rules.max_length <= rules.before_speech

    @property
    def n_measured(self) -> int:
        return len(self.sums) - 1

    def measure(self, energy: NDArray[np.float32]) -> None:
        """Takes in the mean squares of the next frames."""
        self.sums = np.concatenate([self.sums, self.sums[-1] + np.cumsum(energy, dtype=np.float64)])

    def is_hushed(self, n: int, hush: float) -> bool:
        """Whether the sound of the first `n` rows is known, and that of a pause."""
        return 0 <= hush and n <= self.n_measured and is_hushed(np.diff(self.sums[: n + 1]), hush)

    def quiet_row(self) -> int | None:
        """The first row before which the sound has been quiet for as long as a pause lasts, beside all before it.

        Where there is one, the next step hears that pause and what leads to it.
        """
        least = self.rules.after_speech
        rows = np.arange(max(self.first, least), len(self.sums))
        pause = self.sums[rows] - self.sums[rows - least]
        quiet = np.flatnonzero(pause * rows <= least * self.rules.quiet_ratio * self.sums[rows])
        if len(quiet):
            self.reach = max(self.reach, least + 2 * self.rules.slack + LEAD)
            return int(rows[quiet[0]])
        self.first = max(self.first, len(self.sums))
        return None

    def aim(self, lull: Lull, n: int, n_stable: int, hop: int) -> int:
        """The row up to which the next step makes frames stable, if the sound does not ask for one before.

        Args:
            lull: of the segment's `n` rows so far, of which `n_stable` are stable.
            hop: rows between two steps that the sound asks for, at least.
        """
        rules = self.rules
        self.reach = GLIMPSE
        silent = n - lull.run  # from this row on
        self.first = max(silent - rules.slack + rules.after_speech, n_stable + hop - rules.slack)
        if lull.first >= rules.before_speech and self.is_silent:
            due = rules.before_speech
        elif self.is_loud:
            due = min(silent + rules.loud_factor * rules.after_speech + rules.slack, rules.max_length)
        else:
            due = rules.max_length
        return max(due, n_stable + hop)
