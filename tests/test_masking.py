"""Span masks: how many, how long, where."""

from __future__ import annotations

import pytest
import torch

from core.masking import mask_spans


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the masked runs of a row."""
    text = "".join("x" if masked else " " for masked in row.tolist())
    return [len(run) for run in text.split()]


def test_single_places_are_counted_exactly() -> None:
    torch.manual_seed(0)
    assert mask_spans([60] * 4, 60, prob=0.5, length=1).sum(1).tolist() == [30] * 4


def test_spans_may_overlap_but_never_mask_more_than_asked() -> None:
    torch.manual_seed(0)
    mask = mask_spans([80] * 20, 80, prob=0.5, length=4)
    assert mask.shape == (20, 80) and mask.dtype == torch.bool
    assert all(4 <= n <= 40 for n in mask.sum(1).tolist())
    assert all(min(runs(row)) >= 4 for row in mask)


def test_expected_number_is_met_on_average() -> None:
    torch.manual_seed(0)
    # 0.05 * 70 / 10 = 0.35 spans a row: none or one, by chance.
    counts = mask_spans([70] * 4000, 70, prob=0.05, length=10).sum(1)
    assert set(counts.tolist()) == {0, 10}
    assert float(counts.float().mean()) == pytest.approx(3.5, abs=0.3)


def test_low_probability_mostly_masks_nothing() -> None:
    torch.manual_seed(0)
    # 0.02 * 50 / 10 = 0.1 spans a row.
    masked = sum(bool(mask_spans([50], 50, prob=0.02, length=10).any()) for _ in range(300))
    assert 10 <= masked <= 55


def test_rows_are_masked_only_within_their_valid_part() -> None:
    torch.manual_seed(0)
    mask = mask_spans([80, 80, 40, 0], 80, prob=0.5, length=4)
    assert not mask[2, 40:].any() and not mask[3].any()
    assert mask[2].any() and int(mask[2].sum()) <= 20


def test_rows_shorter_than_a_span_stay_clear() -> None:
    torch.manual_seed(0)
    mask = mask_spans([5, 5, 100], 100, prob=0.05, length=10, min_masks=2)
    assert not mask[:2].any()
    assert mask[2].any()


def test_min_masks_is_a_floor_that_the_row_bounds() -> None:
    torch.manual_seed(0)
    assert mask_spans([100], 100, prob=0.0, length=1, min_masks=7).sum() == 7
    # Two spans of 10 do not fit into 12 places: one is made, so that the row is not all masked.
    for _ in range(20):
        assert mask_spans([12], 12, prob=0.05, length=10, min_masks=2).sum() == 10


def test_every_start_is_possible() -> None:
    torch.manual_seed(0)
    seen = torch.zeros(8, dtype=torch.bool)
    for _ in range(60):
        seen |= mask_spans([8], 8, prob=0.4, length=3)[0]
    assert seen.all()


def test_generator_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        return mask_spans([90] * 3, 90, 0.4, 5, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_impossible_spans_are_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match="Found: 0"):
        mask_spans([10], 10, 0.5, 0)
    with pytest.raises(ValueError, match="span of 11 does not fit into 10"):
        mask_spans([10], 10, 0.5, 11)
