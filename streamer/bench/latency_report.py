"""What `streamer bench latency` makes of replays: delays, stability, lagging, times and confidence of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from core.edit_distance import WordErrors
from streamer.bench.metrics import (
    calibration_bins,
    calibration_error,
    edits,
    erased_words,
    fit_exponent,
    lagging_s,
    matches,
    percentiles,
    unstable_words,
)
from streamer.bench.references import Reference
from streamer.bench.replay import ShownWord, Snapshot, committed, first_shown, revised_words, settled

KINDS = {"provisional": first_shown, "settled": settled, "committed": committed}
CLOCKS = ("audio", "with_compute")
NEAR_S = 0.06  # of a word's border from the aligned one


@dataclass(frozen=True, slots=True)
class Heard:
    """What a system showed of a recording."""

    snapshots: tuple[Snapshot, ...]  # normalised
    text: str  # the last, normalised
    offline: str | None  # one pass of the system, normalised; None: the reference's
    compute_s: float
    played_s: float


@dataclass(frozen=True, slots=True)
class Match:
    """A word that is right: where it was said, and which of the last text's words it is."""

    start_s: float
    end_s: float
    place: int


def right_words(reference: Reference, heard: Heard) -> list[Match]:
    """The words of the last text that are right, where the reference has times."""
    if not reference.starts_s or not heard.snapshots:
        return []
    pairs = matches(reference.words, heard.snapshots[-1].texts)
    return [Match(reference.starts_s[i], reference.ends_s[i], j) for i, j in pairs]


def shown_at(snapshot: Snapshot, clock: str) -> float:
    return snapshot.audio_s if clock == "audio" else snapshot.at_s


def delays(references: Sequence[Reference], heard: Sequence[Heard]) -> dict[str, dict[str, list[float]]]:
    """The emission latencies of all right words in seconds, by kind and clock."""
    found: dict[str, dict[str, list[float]]] = {kind: {clock: [] for clock in CLOCKS} for kind in KINDS}
    for reference, of in zip(references, heard, strict=True):
        words = right_words(reference, of)
        for kind, places_of in KINDS.items():
            places = places_of(of.snapshots)
            for clock in CLOCKS:
                found[kind][clock] += [
                    shown_at(of.snapshots[places[word.place]], clock) - word.end_s
                    for word in words
                    if word.place < len(places)
                ]
    return found


def first_words(references: Sequence[Reference], heard: Sequence[Heard]) -> dict[str, list[float]]:
    """From the start of the first word to the first text, in seconds, by clock."""
    pairs = [
        (reference.starts_s[0], next((s for s in of.snapshots if s.words), None))
        for reference, of in zip(references, heard, strict=True)
        if reference.starts_s
    ]
    return {clock: [shown_at(s, clock) - start for start, s in pairs if s is not None] for clock in CLOCKS}


def finalizations(references: Sequence[Reference], heard: Sequence[Heard]) -> dict[str, list[float]]:
    """From the end of the last word, and from the end of the recording, until all is committed; with computing."""
    after_speech, after_audio = [], []
    for reference, of in zip(references, heard, strict=True):
        places = committed(of.snapshots)
        if places and reference.ends_s:
            at_s = of.snapshots[places[-1]].at_s
            after_speech.append(at_s - reference.ends_s[-1])
            after_audio.append(at_s - reference.duration_s)
    return {"after_speech": after_speech, "after_audio": after_audio}


def laggings(references: Sequence[Reference], heard: Sequence[Heard]) -> dict[str, dict[str, float]]:
    """The mean LAAL of all recordings with words, in seconds."""
    found: dict[str, dict[str, float]] = {}
    for kind in ("settled", "committed"):
        found[kind] = {}
        for clock in CLOCKS:
            values = []
            for reference, of in zip(references, heard, strict=True):
                # A word counts once all before it are there.
                places = np.maximum.accumulate(KINDS[kind](of.snapshots))
                shown = [shown_at(of.snapshots[place], clock) for place in places]
                if shown:
                    values.append(lagging_s(shown, len(reference.words), reference.duration_s))
            found[kind][clock] = round(float(np.mean(values)), 3) if values else 0.0
    return found


def word_report(references: Sequence[Reference], heard: Sequence[Heard]) -> dict[str, Any]:
    """Times of the right words against the alignment, and confidence of all words against whether they are right."""
    starts, ends = [], []
    sure: list[list[float]] = []  # of each recording
    right: list[list[bool]] = []
    for reference, of in zip(references, heard, strict=True):
        last: tuple[ShownWord, ...] = of.snapshots[-1].words if of.snapshots else ()
        for match in right_words(reference, of):
            starts.append(last[match.place].start_s - match.start_s)
            ends.append(last[match.place].end_s - match.end_s)
        is_right = {j for _, j in matches(reference.words, [word.text for word in last])}
        known = [j for j, word in enumerate(last) if not isnan(word.confidence)]
        sure.append([last[j].confidence for j in known])
        right.append([j in is_right for j in known])
    near = [abs(a) <= NEAR_S + 1e-6 and abs(b) <= NEAR_S + 1e-6 for a, b in zip(starts, ends, strict=True)]
    all_sure, all_right = sum(sure, []), sum(right, [])
    return {
        "n_timed": len(starts),
        "share_within_60_ms": round(float(np.mean(near)), 4) if near else None,
        "start_off_ms": distribution(starts),
        "end_off_ms": distribution(ends),
        "n_with_confidence": len(all_sure),
        "calibration_error": calibration_error(all_sure, all_right) if all_sure else None,
        "calibration_bins": calibration_bins(all_sure, all_right),
        **refitted(sure, right),
    }


def distribution(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds, with their sign: too late is positive."""
    if not seconds:
        return {"n": 0}
    found = np.percentile(np.asarray(seconds) * 1000, (5, 25, 50, 75, 95))
    share = float(np.mean(np.abs(seconds) <= NEAR_S + 1e-6))
    return {"n": len(seconds), "share_within_60": round(share, 4)} | {
        f"p{p}": round(float(v), 1) for p, v in zip((5, 25, 50, 75, 95), found, strict=True)
    }


def refitted(sure: Sequence[Sequence[float]], right: Sequence[Sequence[bool]]) -> dict[str, float | None]:
    """The exponent that would make confidences likely, and the calibration error with exponents that were fitted on
    the other half of the recordings."""
    halves = [(sum(map(list, sure[k::2]), []), sum(map(list, right[k::2]), [])) for k in (0, 1)]
    if not all(len(half[0]) for half in halves):
        return {"best_exponent": None, "calibration_error_refitted": None}
    (sure_a, right_a), (sure_b, right_b) = halves
    a, b = fit_exponent(sure_a, right_a), fit_exponent(sure_b, right_b)
    raised = [*(np.asarray(sure_a) ** b), *(np.asarray(sure_b) ** a)]
    return {
        "best_exponent": round(fit_exponent(sure_a + sure_b, right_a + right_b), 3),
        "calibration_error_refitted": calibration_error(raised, right_a + right_b),
    }


def report(system: str, references: Sequence[Reference], heard: Sequence[Heard]) -> dict[str, Any]:
    """One system's entry of the object that `--json` prints."""
    pairs = list(zip(references, heard, strict=True))
    wrong = sum((edits(reference.words, of.text.split()) for reference, of in pairs), WordErrors())
    induced = [edits((r.offline if of.offline is None else of.offline).split(), of.text.split()) for r, of in pairs]
    texts = [[snapshot.texts for snapshot in of.snapshots] for _, of in pairs]
    n_last = max(1, sum(len(of_one[-1]) for of_one in texts if of_one))
    of_words = delays(references, heard)
    return {
        "system": system,
        "n_words": wrong.n_words,
        "wer": round(wrong.rate, 5),
        "induced_word_edits": sum(of.total for of in induced),
        "induced_word_edit_rate": round(sum(induced, WordErrors()).change, 5),
        "n_equal_to_offline": sum(of.total == 0 for of in induced),
        "emission_s": {
            kind: {clock: percentiles(values) for clock, values in clocks.items()} for kind, clocks in of_words.items()
        },
        "first_word_s": {clock: percentiles(values) for clock, values in first_words(references, heard).items()},
        "finalization_s": {kind: percentiles(values) for kind, values in finalizations(references, heard).items()},
        "unstable_word_ratio": round(sum(map(unstable_words, texts)) / n_last, 4),
        "unstable_word_ratio_without_growth": round(sum(unstable_words(t, False) for t in texts) / n_last, 4),
        "normalised_erasure": round(sum(map(erased_words, texts)) / n_last, 4),
        "revised_committed_words": sum(revised_words(of.snapshots) for _, of in pairs),
        "laal_s": laggings(references, heard),
        "compute_s_per_audio_s": round(sum(of.compute_s for of in heard) / sum(of.played_s for of in heard), 4),
        "words": word_report(references, heard),
    }
