"""Ways to join the CTC frames of overlapping windows, ours and those that others use, to be compared.

All hear the same windows, in order. What a method makes of a stretch of audio depends on no window that comes after
the one that makes the stretch stable, so that methods of one latency are compared. Two wait longer: `middle tokens`
by design, and the merge of texts because it replaces what it has from the middle of two windows' overlap on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.audio import HOP, SAMPLE_RATE, n_frames, n_samples_for
from core.decoder import Alphabet, decode_greedy
from core.stitcher import Emission, LogProbs, empty, stitch


@dataclass(frozen=True, slots=True)
class Plan:
    """How a stream is cut into windows, in frames of 20 ms."""

    left: int
    hop: int
    right: int

    def __post_init__(self) -> None:
        if min(self.left, self.right) < 0 or self.hop < 1:
            raise ValueError(f"Expected a left and right of at least 0 and a hop of at least 1 frame. Found: {self}")

    def __str__(self) -> str:
        return f"{self.left},{self.hop},{self.right}"

    @property
    def middle(self) -> int:
        """Frames after the middle of a window's context."""
        return (self.left + self.right) // 2


@dataclass(frozen=True, slots=True)
class Span:
    """A window: samples [start, end); the frames before `stable_frame` are stable once it has run."""

    start_sample: int
    end_sample: int
    stable_frame: int


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    emission: Emission
    stable_frame: int


def plan_windows(n_samples: int, plan: Plan) -> list[Span]:
    """The windows of a recording, as a stream cuts it; the last one reaches to its end."""
    spans = []
    stable = plan.hop
    while (end := n_samples_for(stable + plan.right)) < n_samples:
        spans.append(Span(HOP * max(0, stable - plan.hop - plan.left), end, stable))
        stable += plan.hop
    last = max(n_frames(n_samples), 1)
    return [*spans, Span(HOP * max(0, stable - plan.hop - plan.left), n_samples, last)]


def seam_aware(windows: Sequence[Window], plan: Plan, alphabet: Alphabet) -> str:
    """Ours: the seam lies where both windows agree and are sure of silence."""
    frames = empty(0, len(alphabet.tokens))
    for window in windows:
        emission = window.emission.since(frames.start_frame)
        frames = stitch(frames, emission, window.stable_frame, alphabet.silent)
    return greedy_text(frames.log_probs, alphabet)


def centre_crop(windows: Sequence[Window], plan: Plan, alphabet: Alphabet) -> str:
    """A fixed seam: of each window the frames between its contexts (Hugging Face's CTC pipeline with strides)."""
    return greedy_text(cropped(windows, [window.stable_frame for window in windows]), alphabet)


def middle_tokens(windows: Sequence[Window], plan: Plan, alphabet: Alphabet) -> str:
    """A fixed seam in the middle of a window's whole context, as NeMo's buffered inference takes its tokens."""
    borders = [max(0, window.emission.end_frame - plan.middle) for window in windows]
    borders[-1] = windows[-1].emission.end_frame
    return greedy_text(cropped(windows, borders), alphabet)


def cropped(windows: Sequence[Window], borders: Sequence[int]) -> LogProbs:
    """The rows of window i from border i - 1 to border i."""
    rows, first = [], 0
    for window, border in zip(windows, borders, strict=True):
        start = window.emission.start_frame
        rows.append(window.emission.log_probs[first - start : border - start])
        first = border
    return np.concatenate(rows)


def average(windows: Sequence[Window], plan: Plan, alphabet: Alphabet) -> str:
    """The mean of the log-probabilities of all windows that have seen a frame by the time it is stable."""
    return greedy_text(mixed(windows, flat_weights), alphabet)


def cross_fade(windows: Sequence[Window], plan: Plan, alphabet: Alphabet) -> str:
    """The same mean, each window weighted by the distance from its edges."""
    return greedy_text(mixed(windows, triangle_weights), alphabet)


Weights = Callable[[int, bool, bool], NDArray[np.float64]]


def flat_weights(n: int, is_first: bool, is_last: bool) -> NDArray[np.float64]:
    return np.ones(n)


def triangle_weights(n: int, is_first: bool, is_last: bool) -> NDArray[np.float64]:
    """1, 2, … up to the middle and down to 1; where the recording itself begins or ends, no edge."""
    place = np.arange(1.0, n + 1)
    rising = np.full(n, float(n)) if is_first else place
    falling = np.full(n, float(n)) if is_last else place[::-1]
    return np.asarray(np.minimum(rising, falling))


def mixed(windows: Sequence[Window], weights_of: Weights) -> LogProbs:
    """(n_frames, n_vocab) weighted means of log-probabilities."""
    total, n_vocab = windows[-1].emission.end_frame, windows[-1].emission.log_probs.shape[1]
    sums, weights = np.zeros((total, n_vocab)), np.zeros((total, 1))
    rows, first = np.zeros((total, n_vocab), np.float32), 0
    for number, window in enumerate(windows):
        start, end = window.emission.start_frame, window.emission.end_frame
        weight = weights_of(end - start, start == 0, number == len(windows) - 1)[:, None]
        sums[start:end] += weight * window.emission.log_probs
        weights[start:end] += weight
        stable = slice(first, window.stable_frame)
        rows[stable] = sums[stable] / weights[stable]
        first = window.stable_frame
    return rows


def longest_common_subsequence(windows: Sequence[Window], plan: Plan, alphabet: Alphabet) -> str:
    """Text alone: each window is decoded by itself, and its letters are joined where they are the same."""
    text = ""
    for window in windows:
        text = merge_texts(text, greedy_text(window.emission.log_probs, alphabet))
    return " ".join(text.split())


def merge_texts(old: str, new: str) -> str:
    """`old`, continued by `new` from the middle of what they have in common.

    `THE QUICK BRO` and `UICK BROWN` -> `THE QUICK BROWN`. Nothing in common: one after the other.
    """
    tail = old[-len(new) :] if new else ""
    pairs = common_letters(tail, new)
    if not pairs:
        return f"{old} {new}".strip()
    i, j = pairs[len(pairs) // 2]
    return old[: len(old) - len(tail) + i] + new[j:]


def common_letters(a: str, b: str) -> list[tuple[int, int]]:
    """The places of a longest common subsequence, the last one of equals."""
    lengths = [[0] * (len(b) + 1)]  # lengths[i][j]: of a[:i] and b[:j]
    for letter in a:
        above = lengths[-1]
        line = [0]
        for j, other in enumerate(b):
            line.append(above[j] + 1 if letter == other else max(above[j + 1], line[-1]))
        lengths.append(line)
    pairs, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif lengths[i - 1][j] >= lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def greedy_text(log_probs: LogProbs, alphabet: Alphabet) -> str:
    return " ".join(word.text for word in decode_greedy(log_probs, 0, alphabet))


@dataclass(frozen=True, slots=True)
class Method:
    """A way from windows to text, and what it waits for."""

    name: str
    join: Callable[[Sequence[Window], Plan, Alphabet], str]
    waits: Callable[[Plan], int]  # frames after a frame that it needs before the frame is stable

    def latency_ms(self, plan: Plan) -> int:
        """The longest time from a sound to its stable frame, without computing."""
        return (plan.hop + self.waits(plan)) * HOP * 1000 // SAMPLE_RATE


def right_of(plan: Plan) -> int:
    return plan.right


def middle_of(plan: Plan) -> int:
    return plan.middle


METHODS = (
    Method("seam (ours)", seam_aware, right_of),
    Method("centre crop", centre_crop, right_of),
    Method("middle tokens", middle_tokens, middle_of),
    Method("average", average, right_of),
    Method("cross-fade", cross_fade, right_of),
    Method("text LCS", longest_common_subsequence, middle_of),
)
