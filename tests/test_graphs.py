"""Batches of few sizes say what batches of any size say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from core import graphs
from core.acoustic import AcousticModel
from core.audio import n_samples_for
from core.graphs import Graphs, bucket_of

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> AcousticModel:
    return AcousticModel.load(tiny_model_dir, request.param, "float32")


def noise(n: int, n_frames: int = 20) -> Tensor:
    return torch.randn(n, n_samples_for(n_frames), generator=torch.Generator().manual_seed(n)) / 10


def test_a_batch_is_run_with_the_next_power_of_two() -> None:
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 128, 129)] == [1, 2, 4, 4, 8, 128, 256]
    with pytest.raises(ValueError, match="at least 1 row. Found: 0"):
        bucket_of(0)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_windows_say_what_they_say_without(model: AcousticModel, n: int) -> None:
    graph, windows = Graphs(model.model.device), noise(n)
    expected = model.model.log_probs(windows.to(model.model.device))
    for _ in range(2):
        found = graph(model.model.log_probs, windows)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_inputs_of_one_shape_share_their_place(model: AcousticModel) -> None:
    graph, first, second = Graphs(model.model.device), noise(4), noise(3)
    before = graph(model.model.log_probs, first).clone()
    places = [x.data_ptr() for tensors in graph.inputs.values() for x in tensors]
    graph(model.model.log_probs, second)
    torch.testing.assert_close(graph(model.model.log_probs, first), before)
    assert [x.data_ptr() for tensors in graph.inputs.values() for x in tensors] == places and len(places) == 1
    graph(model.model.log_probs, noise(5))
    graph(model.model.log_probs, noise(4, 21))
    assert len(graph.inputs) == 3


def test_rows_that_fill_a_batch_write_nothing_else(model: AcousticModel) -> None:
    device = model.model.device
    store = torch.zeros(6, device=device)

    def put(values: Tensor, places: Tensor) -> Tensor:
        store[places] = values
        return values

    graph = Graphs(device)
    graph(put, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5, 1, 2]))
    graph(put, torch.tensor([4.0, 5.0, 6.0]), torch.tensor([0, 1, 4]))
    assert store.tolist() == [4, 5, 3, 0, 6, 1]


@pytest.mark.gpu
@NEEDS_CUDA
def test_only_some_shapes_are_captured(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AcousticModel.load(tiny_model_dir, "cuda", "float32")
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    graph, plain = Graphs(model.model.device), Graphs(model.model.device, captures=False)
    for n in (1, 3, 1, 4):
        expected = plain(model.model.log_probs, noise(n)).clone()
        torch.testing.assert_close(graph(model.model.log_probs, noise(n)), expected, atol=1e-5, rtol=0)
    assert len(graph.captured) == 1 and not plain.captured


@pytest.mark.gpu
@NEEDS_CUDA
def test_graphs_that_share_memory_do_not_spoil_each_other(tiny_model_dir: Path) -> None:
    model = AcousticModel.load(tiny_model_dir, "cuda", "float32")
    graph = Graphs(model.model.device)
    windows = [noise(n, n_frames) for n in (1, 2, 8) for n_frames in (10, 40)]
    expected = [model.model.log_probs(window.cuda()) for window in windows]
    for _ in range(3):
        for window, log_probs in zip(windows, expected, strict=True):
            torch.testing.assert_close(graph(model.model.log_probs, window), log_probs, atol=1e-4, rtol=0)
