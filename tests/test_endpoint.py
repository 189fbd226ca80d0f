from __future__ import annotations

import numpy as np
import pytest

from core.endpoint import Endpoint, EndpointConfig, Measure, find_endpoint, is_pause, longest_pause

RULES = EndpointConfig(after_speech=10, loud_factor=3, before_speech=60, max_length=100)


def segment(line: str, quiet: float = 0.001) -> tuple[np.ndarray, Measure]:
    """`#` a letter, `.` a quiet pause, `-` a loud one: has_letter and energy."""
    energy = {"#": 1.0, ".": quiet, "-": 1.0}
    return np.array([c == "#" for c in line]), lambda rows: np.array([energy[c] for c in line])[rows]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("#" * 5 + "." * 9, None),
        ("#" * 5 + "." * 10, Endpoint(10, True, True)),
        ("#" * 5 + "-" * 10, None),  # a long vowel, or music: blank, but not silent
        ("#" * 5 + "-" * 29, None),
        ("#" * 5 + "-" * 30, Endpoint(30, True, True)),
        ("." * 59, None),
        ("." * 60, Endpoint(35, False)),
        ("#." * 49, None),
    ],
)
def test_rules(line: str, found: Endpoint | None) -> None:
    endpoint = find_endpoint(*segment(line), len(line), RULES)
    if endpoint is not None and endpoint.is_pause and not is_pause(*segment(line), RULES):
        endpoint = None
    assert endpoint == found
    assert RULES.slack == 1
    if found is not None and found.is_pause:  # a frame before, the pass over the segment is asked
        assert find_endpoint(*segment(line[:-1]), len(line) - 1, RULES) == Endpoint(len(line) - 6, True, True)


def test_maximum_length_cuts_in_the_longest_pause_of_the_latter_half() -> None:
    line = "#....#" + "#" * 60 + "..." + "#" * 20 + "." + "#" * 20
    found = find_endpoint(*segment(line), 100, RULES)
    assert found is not None and found.has_speech
    assert line[found.cut - 1 : found.cut + 1] == ".."


def test_without_any_pause_the_cut_stays_inside() -> None:
    cut = longest_pause(np.ones(100, bool), 50)
    assert 50 <= cut <= 100
