"""What benchmarks count: edits, delays, stability, calibration. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from core.edit_distance import WordErrors, word_errors

Item = TypeVar("Item")

PERCENTS = (50, 90, 95, 99)


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> WordErrors:
    """`word_errors`, quick where the two begin or end alike."""
    shorter = min(len(reference), len(hypothesis))
    first = common_prefix(reference, hypothesis)
    last = 0
    while last < shorter - first and reference[-1 - last] == hypothesis[-1 - last]:
        last += 1
    inner = word_errors(reference[first : len(reference) - last], hypothesis[first : len(hypothesis) - last])
    return inner + WordErrors(n_words=first + last)


def common_prefix(a: Sequence[Item], b: Sequence[Item]) -> int:
    """How many items the two begin with alike."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def matches(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[int, int]]:
    """The places (i, j) of the equal words in an alignment with the fewest edits.

    `A B C` and `A X C D` -> (0, 0), (2, 2).
    """
    costs = np.zeros((len(reference) + 1, len(hypothesis) + 1), np.int64)
    costs[0], costs[:, 0] = np.arange(len(hypothesis) + 1), np.arange(len(reference) + 1)
    for i, word in enumerate(reference, 1):
        for j, heard in enumerate(hypothesis, 1):
            costs[i, j] = min(costs[i - 1, j - 1] + (word != heard), costs[i - 1, j] + 1, costs[i, j - 1] + 1)
    pairs, i, j = [], len(reference), len(hypothesis)
    while i and j:
        is_equal = reference[i - 1] == hypothesis[j - 1]
        if costs[i, j] == costs[i - 1, j - 1] + (not is_equal):
            i, j = i - 1, j - 1
            if is_equal:
                pairs.append((i, j))
        elif costs[i, j] == costs[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def percentiles(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """`{"n", "mean", "p50", "p90", "p95", "p99"}`; only `{"n": 0}` where there is no value."""
    if not len(values):
        return {"n": 0}
    of = {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTS}
    return {"n": len(values)} | {k: round(v, digits) for k, v in ({"mean": float(np.mean(values))} | of).items()}


def lagging_s(delays_s: Sequence[float], n_reference: int, duration_s: float) -> float:
    """Length-adaptive average lagging (LAAL; Papi et al. 2022, section 3), in seconds.

    How far the words lag, on average, behind a speaker of even pace: word i (from 0) of the longer of reference
    and hypothesis is due at i / words * duration. Words after the first that came with the audio's end do not count.

    Args:
        delays_s: when each word of the hypothesis came, from the start of the audio.
        n_reference: words of the reference.

    Raises:
        ValueError: no word.
    """
    if not delays_s:
        raise ValueError("Expected at least one word. Found none")
    per_word = duration_s / max(len(delays_s), n_reference)
    at_end = next((i + 1 for i, delay in enumerate(delays_s) if delay >= duration_s), len(delays_s))
    return sum(delay - i * per_word for i, delay in enumerate(delays_s[:at_end])) / at_end


def unstable_words(shown: Sequence[Sequence[str]], with_growth: bool = True) -> int:
    """Words that the next text changed or dropped, over all texts in a row.

    The numerator of the unstable partial word ratio (Shangguan et al. 2020); the denominator is the number of words
    in the last text.

    Args:
        with_growth: whether a last word that grew by letters, as from `HEL` to `HELLO`, counts.
    """
    total = 0
    for before, after in zip(shown, shown[1:], strict=False):
        n = common_prefix(before, after)
        pairs = [(n - 1, n - 1), *((n + i, n + j) for i, j in matches(before[n:], after[n:]))]
        i, j = pairs[-1]
        grew = i == len(before) - 2 and j + 1 < len(after) and after[j + 1].startswith(before[-1])
        total += len(before) - n - (len(pairs) - 1) - (grew and not with_growth)
    return total


def erased_words(shown: Sequence[Sequence[str]]) -> int:
    """Words to delete from the end of each text before the next can be written after what is left.

    The numerator of normalised erasure (Arivazhagan et al. 2020); the denominator is as above.
    """
    return sum(len(before) - common_prefix(before, after) for before, after in zip(shown, shown[1:], strict=False))


def calibration_bins(
    confidences: Sequence[float], is_right: Sequence[bool], n_bins: int = 10
) -> list[dict[str, float]]:
    """Words by confidence, in `n_bins` equal steps of [0, 1]: how sure they are and how many are right."""
    sure, right = np.asarray(confidences, float), np.asarray(is_right, float)
    places = np.minimum((sure * n_bins).astype(int), n_bins - 1)
    found = [(place, places == place) for place in range(n_bins)]
    return [
        {
            "from": place / n_bins,
            "n": int(inside.sum()),
            "confidence": round(float(sure[inside].mean()), 4),
            "right": round(float(right[inside].mean()), 4),
        }
        for place, inside in found
        if inside.any()
    ]


def calibration_error(confidences: Sequence[float], is_right: Sequence[bool], n_bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, equation 5): the mean distance of confidence from share of right
    words, over bins, by their words."""
    bins = calibration_bins(confidences, is_right, n_bins)
    gaps = sum(of["n"] * abs(of["confidence"] - of["right"]) for of in bins)
    return round(gaps / max(1, sum(of["n"] for of in bins)), 4)


EXPONENTS = np.geomspace(0.1, 10, 401)


def fit_exponent(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """The power that turns confidences into likelihoods of being right: the most likely of `EXPONENTS`.

    A power of a geometric mean of probabilities is a temperature on their logarithms.
    """
    sure: NDArray[np.float64] = np.clip(np.asarray(confidences, float), 1e-6, 1 - 1e-6)
    right = np.asarray(is_right, bool)
    raised = sure[None] ** EXPONENTS[:, None]  # (exponent, word)
    likelihood = np.where(right, np.log(raised), np.log1p(-np.minimum(raised, 1 - 1e-12))).sum(1)
    return float(EXPONENTS[int(likelihood.argmax())])
