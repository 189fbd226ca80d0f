"""Words that are told before their segment ends, and never taken back.

A word is committed when successive passes over the whole segment so far (*reviews*) make the same of it and of all
before it, and the newest ends long enough after it: local agreement (Liu et al. 2020, section 3.2) of passes that hear
all that is there, where steps hear a window. Two are enough for a word that sounds sure. The final pass keeps what has
been committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.decoder import WordSpan

SURE = 0.7  # confidence; it foretells which words the final has otherwise
SURE_AFTER, UNSURE_AFTER = 2, 4  # reviews that must agree
MOVES = 3  # frames


def after(spans: Sequence[WordSpan], committed: Sequence[WordSpan]) -> list[WordSpan]:
    """The words of `spans` that begin after the last committed word."""
    if not committed:
        return list(spans)
    return [span for span in spans if span.start_frame + span.end_frame >= 2 * committed[-1].end_frame]


def keep_committed(spans: Sequence[WordSpan], committed: Sequence[WordSpan]) -> list[WordSpan]:
    """Another pass's words; where they disagree with committed ones, those stay and the rest follows."""
    n = len(committed)
    if [span.text for span in spans[:n]] == [word.text for word in committed]:
        return list(spans)
    return list(committed) + after(spans, committed)


def n_agreed(
    words: Sequence[WordSpan], reviews: Sequence[Sequence[WordSpan]], n_committed: int, last_frame: int
) -> int:
    """How many of a review's words to commit.

    Args:
        words: of the review, the committed ones first.
        reviews: the words of those before it, the newest first.
        n_committed: already.
        last_frame: in which a word must have ended, for enough to have been heard after it.
    """
    n = n_committed
    while n < len(words) - 1 and words[n].end_frame <= last_frame:
        needed = SURE_AFTER if words[n].confidence >= SURE else UNSURE_AFTER
        if len(reviews) < needed - 1 or not all(has(words[n], of) for of in reviews[: needed - 1]):
            break
        n += 1
    return n


def has(word: WordSpan, words: Sequence[WordSpan]) -> bool:
    """Whether the word is among others; a spike may move by a frame or two from pass to pass."""
    return any(word.text == other.text and abs(word.start_frame - other.start_frame) <= MOVES for other in words)
