"""Rounding whose errors make up for each other leaves less error on what it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_rescorer import CONFIG, make
from torch import Tensor

from core.rescorer import Rescorer, is_rounded
from core.rounding import GROUP, SUFFIX, from_int4, to_int4
from core.training.compensation import compensated, round_columns


def inputs(n: int, n_columns: int) -> Tensor:
    """Rows whose columns go together, as those of a network do."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 24, generator=generator) @ torch.randn(24, n_columns, generator=generator) + torch.randn(
        n, n_columns, generator=generator
    )


def error(weight: Tensor, rounded: Tensor, x: Tensor) -> float:
    return float((x @ (rounded - weight).T).square().sum() / (x @ weight.T).square().sum())


@pytest.mark.parametrize("n_groups", [1, 3])
def test_products_are_nearer_than_with_each_weight_by_itself(n_groups: int) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(40, n_groups * GROUP), inputs(2000, n_groups * GROUP)
    plain, found = to_int4(weight), round_columns(weight, x.T @ x)
    assert [part.shape for part in found] == [part.shape for part in plain]
    assert [part.dtype for part in found] == [part.dtype for part in plain]
    assert error(weight, from_int4(*found), x) < 0.4 * error(weight, from_int4(*plain), x)


def test_inputs_that_do_not_go_together_leave_nothing_to_make_up_for() -> None:
    torch.manual_seed(1)
    weight = torch.randn(8, GROUP)
    packed, scales = round_columns(weight, torch.eye(GROUP))
    expected = to_int4(weight)
    assert torch.equal(packed, expected[0]) and torch.equal(scales, expected[1])


def test_dead_inputs_are_no_obstacle() -> None:
    found = round_columns(torch.randn(8, GROUP), torch.zeros(GROUP, GROUP))
    assert from_int4(*found).isfinite().all()


def test_a_rescorer_is_nearer_to_what_it_was(tmp_path: Path) -> None:
    rescorer = make(CONFIG).eval()
    before = {name: weight.clone() for name, weight in rescorer.state_dict().items()}
    texts = ["A CAT", "CAT A CAT", "CATS AT A"]
    heard = [(torch.randn(9 + i, CONFIG.hidden_size), text) for i, text in enumerate(texts * 5)]
    scores = [rescorer.score(states.numpy(), texts) for states, _ in heard]
    rescorer.save(tmp_path / "plain")
    rounded = compensated(rescorer, heard)
    assert set(rounded) == {key + end for key in before if is_rounded(key, before[key]) for end in ("", SUFFIX)}
    rescorer.load_state_dict(before)
    rescorer.save(tmp_path / "compensated", rounded=rounded)
    off = {}
    for name in ("plain", "compensated"):
        found = Rescorer.load(tmp_path / name)
        off[name] = sum(
            (torch.tensor(found.score(states.numpy(), texts)) - torch.tensor(of)).square().sum().item()
            for (states, _), of in zip(heard, scores, strict=True)
        )
    assert off["compensated"] < off["plain"]
