"""What leaves the engine: words, transcripts of segments, and the audio that was lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.audio import FRAMES_PER_SECOND
from core.decoder import WordSpan

LEAD, TRAIL = 1, 2  # frames by which a word is wider than its spikes; against an independent aligner


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    start_s: float  # from the first sample of the stream
    end_s: float
    confidence: float  # in [0, 1]
    is_committed: bool  # will never be revised


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of one segment so far (a partial), or for good (a final).

    A partial replaces the last partial of its segment; its first `n_committed_words` words stand for
    ever. A final is sent once a segment, and all its words are committed.
    """

    segment: int  # counts from 0
    is_final: bool
    text: str
    n_committed_words: int
    start_s: float
    end_s: float
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """Audio that could not be processed; its owner is told, it is never dropped silently."""

    start_s: float
    end_s: float
    reason: str


Event = Transcript | Gap


def make_transcript(
    segment: int,
    is_final: bool,
    words: tuple[Word, ...],
    start_s: float,
    end_s: float,
    text: str | None = None,
    n_committed: int | None = None,
) -> Transcript:
    """`start_s` and `end_s` bound the segment where it has no words; the last two are of those, if known."""
    if words:
        start_s, end_s = words[0].start_s, words[-1].end_s
    if text is None:
        text = " ".join([word.text for word in words])
    if n_committed is None:
        n_committed = sum([word.is_committed for word in words])
    return Transcript(segment, is_final, text, n_committed, start_s, end_s, words)


def make_words(
    spans: Sequence[WordSpan],
    confidence: Callable[[float], float],
    first: int,
    n_committed: int,
    end_frame: int,
    heard_s: float,
) -> list[Word]:
    """Words on the frame grid as they are told. Frames become seconds here, once.

    A spike of CTC begins after its sound and ends before it, so words are widened, up to their neighbours and to
    `heard_s`, behind which nothing was heard.

    Args:
        confidence: of a word, by how likely its letters are.
        first: frame in which the first word may begin.
        n_committed: of the words, from the first on.
        end_frame: of what was heard.
    """
    words = list[Word]()
    limits = [*[span.start_frame - LEAD for span in spans[1:]], end_frame + TRAIL]
    for i, (span, limit) in enumerate(zip(spans, limits, strict=False), 1):
        start, last = span.start_frame - LEAD, span.end_frame
        end = last + TRAIL
        if limit < end:
            end = limit if limit > last or i == len(spans) else last
        start_s, end_s = (start if start > first else first) / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND
        sure = confidence(span.confidence)
        words.append(Word(span.text, start_s, end_s if end_s < heard_s else heard_s, sure, i <= n_committed))
        first = last
    return words


def widen(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    before: NDArray[np.int64],
    limits: NDArray[np.int64],
    is_last: NDArray[np.bool_],
    heard_s: NDArray[np.float64],
) -> tuple[list[float], list[float]]:
    """Where words of many streams start and end, in seconds: as `make_words` has it.

    Args:
        starts, ends: (n_words,) frames.
        before: the frame in which the word before ends.
        limits: the one in which the next word starts, as it is widened.
        is_last: whether none follows in its stream.
    """
    wide = ends + TRAIL
    wide = np.where(limits < wide, np.where((limits > ends) | is_last, limits, ends), wide)
    starts_s = np.maximum(starts - LEAD, before) / FRAMES_PER_SECOND
    return starts_s.tolist(), np.minimum(wide / FRAMES_PER_SECOND, heard_s).tolist()
