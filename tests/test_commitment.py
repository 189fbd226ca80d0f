from __future__ import annotations

import pytest

from core.commitment import after, keep_committed, n_agreed
from core.decoder import WordSpan


def spans(text: str, shift: int = 0, confidence: float = 0.9) -> list[WordSpan]:
    """A word each 20 frames, ten frames long."""
    return [WordSpan(word, 20 * i + shift, 20 * i + 10 + shift, confidence) for i, word in enumerate(text.split())]


@pytest.mark.parametrize(
    ("now", "before", "last_frame", "n"),
    [
        ("HE ASKED HIM", "HE ASKED HIM", 100, 2),  # the last word may go on
        ("HE ASKED HIM SO", "HE ASKED HIM", 100, 3),
        ("HE ASKED HIM SO", "HE ASK HIM SO", 100, 1),  # nothing after one that changed
        ("HE ASKED HIM SO", "HE ASKED HIM SO", 30, 2),  # too new
        ("HE ASKED HIM SO", "", 100, 0),
    ],
)
def test_words_are_committed_up_to_the_first_that_changed(now: str, before: str, last_frame: int, n: int) -> None:
    for shift in (-3, 0, 3):
        assert n_agreed(spans(now), [spans(before, shift)], 0, last_frame) == n
    assert n_agreed(spans(now), [spans(before, 4)], 0, last_frame) == 0
    assert n_agreed(spans(now), [], 0, last_frame) == 0


def test_words_that_do_not_sound_sure_wait_for_four_reviews() -> None:
    words = [*spans("HE"), *spans("HE ASKED HIM SO", confidence=0.5)[1:]]
    same = spans("HE ASKED HIM SO")
    assert [n_agreed(words, [same] * n, 0, 100) for n in range(5)] == [0, 1, 1, 3, 3]
    assert n_agreed(words, [same] * 2, 2, 100) == 2
    assert n_agreed(words, [same, same, spans("HE ASKED HER SO")], 0, 100) == 2


def test_committed_words_stay() -> None:
    committed = tuple(spans("HE ASK"))
    assert [word.text for word in keep_committed(spans("HE ASKED HIM"), committed)] == ["HE", "ASK", "HIM"]
    moved = spans("HE ASK HIM", 2)
    assert keep_committed(moved, committed) == moved
    assert after(moved, ()) == moved and [word.text for word in after(moved, committed)] == ["HIM"]
    assert n_agreed(keep_committed(spans("HE ASKED HIM"), committed), [], 2, 100) == 2
