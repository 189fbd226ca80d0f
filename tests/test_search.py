"""Where streams that show no partials are heard, by their sound and their letters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.endpoint import NEVER, EndpointConfig, Lull
from core.search import GLIMPSE, LEAD, Search

RULES = EndpointConfig(after_speech=10, loud_factor=3, before_speech=60, max_length=100)


def energy(line: str) -> np.ndarray:
    """`#` is loud, `.` quiet."""
    return np.array([{"#": 1.0, ".": 0.001}[c] for c in line], np.float32)


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("#####" + "." * 9, None),
        ("#####" + "." * 10, 15),
        ("#####" + "." * 12 + "####", 15),
        ("#####" + "." * 5 + "#" + "." * 9, None),
        ("." * 40, None),  # as quiet as all before
        ("." * 40 + "#" * 10, None),
        ("." * 40 + "#" * 10 + "." * 10, 60),
    ],
)
def test_the_sound_of_a_pause(line: str, row: int | None) -> None:
    search = Search(RULES)
    search.measure(energy(line))
    assert search.quiet_row() == row == search.quiet_row()
    assert search.reach == (GLIMPSE if row is None else 10 + 2 * RULES.slack + LEAD)


@given(cuts=st.lists(st.integers(0, 50), max_size=5), line=st.text("#.", min_size=50, max_size=50))
def test_it_is_found_at_the_same_row_however_the_sound_comes(cuts: list[int], line: str) -> None:
    whole, search, found = Search(RULES), Search(RULES), None
    whole.measure(energy(line))
    for part in np.split(energy(line), sorted(cuts)):
        search.measure(part)
        found = search.quiet_row() if found is None else found
    assert found == whole.quiet_row()


@pytest.mark.parametrize(
    ("lull", "n", "n_stable", "due"),
    [
        (Lull(NEVER, 0, False), 0, 0, 60),  # silence is let go of
        (Lull(NEVER, 30, False), 30, 20, 60),
        (Lull(70, 10, False), 81, 80, 85),  # as there was none for so long; a hop later at least
        (Lull(3, 2, False), 20, 18, 18 + 30 + 1),  # a loud pause may last so long
        (Lull(3, 2, False), 90, 88, 100),  # the longest segment
        (Lull(3, 29, False), 40, 38, 43),
    ],
)
def test_when_a_step_is_due_whatever_the_sound(lull: Lull, n: int, n_stable: int, due: int) -> None:
    search = Search(RULES, is_loud=True, is_silent=True)
    search.reach = 1000
    assert search.aim(lull, n, n_stable, hop=5) == due
    assert search.reach == GLIMPSE
    assert Search(RULES, is_silent=True).aim(lull, n, n_stable, hop=5) == (
        due if lull.first >= 60 else max(100, n_stable + 5)
    )
    assert Search(RULES).aim(lull, n, n_stable, hop=5) == 100


def test_no_pause_is_looked_for_before_one_may_have_lasted() -> None:
    search = Search(RULES)
    search.measure(energy("#####" + "." * 30))
    search.aim(Lull(3, 2, False), 20, 18, hop=5)  # a letter in row 17
    assert search.quiet_row() == 18 - RULES.slack + 10
    search.aim(Lull(3, 12, False), 30, 29, hop=5)
    assert search.quiet_row() == 29 + 5 - RULES.slack
