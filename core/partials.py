"""What a partial says after its settled words, in streams that decode greedily: of one stream, or of many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np

from core.audio import n_samples_for, to_seconds
from core.decoder import Alphabet, Path, WordSpan, decode_path, spell_paths
from core.seam import FEW, Marks
from core.transcript import LEAD, TRAIL, Word, make_words, widen

Confidence = Callable[[float], float]  # of a word, by how likely its letters are


class Unsettled(NamedTuple):
    """The frames of a stream that partials decode again."""

    marks: Marks
    start_frame: int
    settled_end: int  # where the last settled word ends
    end_frame: int  # of what was heard
    stable_frame: int  # the first that may still change


@dataclass(slots=True, eq=False)
class Draft:
    """The words of those frames."""

    text: str
    words: list[Word]
    n_settled: int  # of those: a letter of a stable frame follows them, and nothing changes them any more
    settled_frame: int  # where the next of them starts
    settled_end: int  # where the last of them ends


def count_settled(spans: Sequence[WordSpan], stable_frame: int) -> int:
    """Of the first words, those that a letter of a stable frame follows."""
    return max(0, sum([span.start_frame < stable_frame for span in spans]) - 1)


def draft_one(of: Unsettled, alphabet: Alphabet, confidence: Confidence) -> Draft:
    spans = decode_path(Path.of(of.marks, of.start_frame), alphabet)
    heard_s = to_seconds(n_samples_for(of.end_frame))
    words = make_words(spans, confidence, of.settled_end, 0, of.end_frame, heard_s)
    n_settled = count_settled(spans, of.stable_frame)
    place = (spans[n_settled].start_frame, spans[n_settled - 1].end_frame) if n_settled else (0, 0)
    return Draft(" ".join([word.text for word in words]), words, n_settled, *place)


def draft_all(streams: Sequence[Unsettled], alphabet: Alphabet, confidence: Confidence) -> list[Draft]:
    """`draft_one` of many streams: the same, with most of the work done at once."""
    if len(streams) < FEW:
        return [draft_one(of, alphabet, confidence) for of in streams]
    spelled = spell_paths([of[:2] for of in streams], alphabet)
    settled_end, end_frame, stable = np.array([of[2:] for of in streams]).T
    starts, ends, bounds = spelled.starts, spelled.ends, spelled.bounds
    counts = np.diff(bounds)
    some = counts > 0
    first, last = bounds[:-1][some], bounds[1:][some] - 1
    before, limits, is_last = np.roll(ends, 1), np.roll(starts, -1) - LEAD, np.zeros(len(ends), np.bool_)
    before[first], limits[last], is_last[last] = settled_end[some], end_frame[some] + TRAIL, True
    heard_s = np.array([to_seconds(n_samples_for(frame)) for frame in end_frame.tolist()])
    seconds = widen(starts, ends, before, limits, is_last, np.repeat(heard_s, counts))
    words = [*map(Word, spelled.texts, *seconds, map(confidence, spelled.confidences), repeat(False))]
    n_stable = np.concatenate([[0], np.cumsum(starts < np.repeat(stable, counts))])
    n_settled = np.maximum(n_stable[bounds[1:]] - n_stable[bounds[:-1]] - 1, 0)
    of_next = np.minimum(bounds[:-1] + n_settled, max(0, len(starts) - 1))
    places = zip(starts[of_next].tolist(), before[of_next].tolist(), strict=True) if words else repeat((0, 0))
    parts = zip(bounds.tolist(), bounds[1:].tolist(), n_settled.tolist(), places, strict=False)
    return [Draft(" ".join(spelled.texts[a:b]), words[a:b], n, *place) for a, b, n, place in parts]
