"""What leaves the engine: words, transcripts of segments, and the audio that was lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.audio import FRAMES_PER_SECOND

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
    segment: int, is_final: bool, words: tuple[Word, ...], start_s: float, end_s: float, text: str | None = None
) -> Transcript:
    """`start_s` and `end_s` bound the segment where it has no words; `text` is that of the words, if it is known."""
    if words:
        start_s, end_s = words[0].start_s, words[-1].end_s
    if text is None:
        text = " ".join([word.text for word in words])
    n_committed = sum([word.is_committed for word in words])
    return Transcript(segment, is_final, text, n_committed, start_s, end_s, words)


def widen(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    before: NDArray[np.int64],
    limits: NDArray[np.int64],
    is_last: NDArray[np.bool_],
    heard_s: NDArray[np.float64] | float,
) -> tuple[list[float], list[float]]:
    """Frames become seconds here, once: where words start and end.

    A spike of CTC begins after its sound and ends before it, so words are widened, up to their neighbours and to
    `heard_s`, behind which nothing was heard.

    Args:
        starts, ends: (n_words,) frames of the spikes.
        before: the frame that ends the word before.
        limits: the frame that the next word starts in, as it is widened.
        is_last: whether none follows.
    """
    wide = ends + TRAIL
    wide = np.where(limits < wide, np.where((limits > ends) | is_last, limits, ends), wide)
    starts_s = np.maximum(starts - LEAD, before) / FRAMES_PER_SECOND
    return starts_s.tolist(), np.minimum(wide / FRAMES_PER_SECOND, heard_s).tolist()
