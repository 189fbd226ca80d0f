from __future__ import annotations

import dataclasses

import pytest

from core.transcript import Word, make_transcript

WORDS = (Word("SO", 0.5, 0.7, 0.9, True), Word("IT", 0.8, 0.9, 0.8, True), Word("GOES", 1.0, 1.4, 0.3, False))


def test_words_bound_the_segment_and_committed_ones_are_counted() -> None:
    partial = make_transcript(3, False, WORDS, 0.0, 9.0)
    assert (partial.segment, partial.text, partial.n_committed_words) == (3, "SO IT GOES", 2)
    assert (partial.start_s, partial.end_s) == (0.5, 1.4)


def test_without_words_the_segment_keeps_its_bounds() -> None:
    empty = make_transcript(0, True, (), 0.25, 2.0)
    assert (empty.text, empty.n_committed_words, empty.start_s, empty.end_s) == ("", 0, 0.25, 2.0)


def test_what_was_sent_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_transcript(0, True, WORDS, 0, 1).text = "OTHER"  # type: ignore[misc]
