"""What leaves the engine: words, transcripts of segments, and the audio that was lost."""

from __future__ import annotations

from dataclasses import dataclass


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
