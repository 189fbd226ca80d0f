from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ring_buffer import RingBuffer

STEPS = st.lists(
    st.one_of(st.tuples(st.just("append"), st.integers(0, 70)), st.tuples(st.just("release"), st.integers(0, 60))),
    max_size=60,
)


@given(steps=STEPS, capacity=st.integers(1, 64), initial=st.integers(1, 64))
def test_it_is_the_end_of_a_list(steps: list[tuple[str, int]], capacity: int, initial: int) -> None:
    buffer = RingBuffer(capacity, initial)
    everything: list[float] = []
    start = 0
    for action, n in steps:
        if action == "append":
            samples = np.arange(len(everything), len(everything) + n, dtype=np.float32)
            everything += samples.tolist()
            lost = buffer.append(samples)
            assert lost == (start, max(start, len(everything) - capacity))
            start = lost[1]
        else:
            start = min(len(everything), start + n)
            buffer.release(start)
        assert (buffer.start, buffer.end, len(buffer)) == (start, len(everything), len(everything) - start)
        assert buffer.read(start, len(everything)).tolist() == everything[start:]
        middle = (start + len(everything)) // 2
        assert buffer.read(start, middle).tolist() == everything[start:middle]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 9), (3, 2)])
def test_what_is_not_held_is_refused(start: int, end: int) -> None:
    buffer = RingBuffer(8)
    buffer.append(np.zeros(5, np.float32))
    with pytest.raises(ValueError, match=r"within \[0, 5\)"):
        buffer.read(start, end)


def test_what_was_read_is_a_copy() -> None:
    buffer = RingBuffer(4)
    buffer.append(np.ones(4, np.float32))
    held = buffer.read(0, 4)
    buffer.append(np.zeros(4, np.float32))
    assert held.tolist() == [1, 1, 1, 1]


def test_more_than_it_holds_in_one_piece() -> None:
    buffer = RingBuffer(4)
    assert buffer.append(np.arange(3, dtype=np.float32)) == (0, 0)
    assert buffer.append(np.arange(3, 13, dtype=np.float32)) == (0, 9)
    assert buffer.read(9, 13).tolist() == [9, 10, 11, 12]
    buffer.release(99)  # beyond the end: all of it
    assert (buffer.start, len(buffer)) == (13, 0)
    buffer.release(2)  # behind the start: nothing
    assert buffer.start == 13


@pytest.mark.parametrize(("capacity", "initial"), [(0, 5), (5, 0), (-3, 5)])
def test_no_room_at_all_is_refused(capacity: int, initial: int) -> None:
    with pytest.raises(ValueError, match="at least 1 sample"):
        RingBuffer(capacity, initial)
