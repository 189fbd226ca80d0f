"""Words that are told before their segment ends, and never taken back.

A word is committed when two passes over the whole segment so far (*reviews*), one after the other, make the same of it
and all before it, and the newer one ends long enough after it: local agreement (Liu et al. 2020, section 3.2) of passes
that hear all that is there, where steps hear a window. The final pass keeps what has been committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.decoder import WordSpan


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


def n_agreed(words: Sequence[WordSpan], before: Sequence[WordSpan], n_committed: int, last_frame: int) -> int:
    """How many of a review's words to commit.

    Args:
        words: of the review, the committed ones first.
        before: of the review before it, without regard to what has been committed since.
        n_committed: already.
        last_frame: in which a word must have ended, for enough to have been heard after it.
    """
    n = n_committed
    starts = {(word.text, word.start_frame) for word in before}
    while n < len(words) - 1 and words[n].end_frame <= last_frame:
        word = words[n]
        # A spike may move by a frame or two from pass to pass.
        if not any((word.text, word.start_frame + shift) in starts for shift in range(-3, 4)):
            break
        n += 1
    return n
