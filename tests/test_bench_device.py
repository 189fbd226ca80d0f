"""What `streamer bench speed` tells of a GPU, by the same code on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.acoustic import AcousticModel
from core.audio import SAMPLE_RATE
from core.windows import StreamConfig
from streamer.bench.arithmetic import clock_of
from streamer.bench.device import device_table, measure_batch, measure_overlapped, ways
from streamer.cli import main

WHOLE, SAMPLES, FEATURES, TAIL = "whole windows", "slots", "slots, features kept", "slots, tail"


def test_the_command(sample: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "streams.svg"
    arguments = ["bench", "speed", sample, "--slots", "3", "--device", "cpu", "--repeat", "1", "--plot", plot]
    assert main([*map(str, arguments), "--model", str(tiny_model_dir), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"float32", result["dtype"]} <= result["offline"].keys()
    assert result["offline"]["float32"]["times_float32"] == 1
    parts = {"feature_extractor", "positional_convolution", "encoder_layers", "copies"}
    assert parts <= result["parts"].keys() and result["ceilings_per_s"]["copy"] > 0
    assert set(result["streams"]) == {"low", "balanced", "accurate", "4/0.64/0.64"}
    for plan in result["streams"].values():
        assert plan["ways"].keys() == {WHOLE, SAMPLES, TAIL}  # its input is normalised
        for way in plan["ways"].values():
            assert [batch["batch"] for batch in way["batches"]] == [1, 2]
            assert all(batch["streams"] > 0 and batch["stitch_decode_us"] > 0 for batch in way["batches"])
            assert way["flush_ms"]["n"] == 1
    assert plot.read_text().startswith("<?xml")
    shown = device_table(result)
    assert all(word in shown for word in ("of ceiling", "accurate: hop 1.00 s, 2000 ms", "whole windows", "stitch"))


def test_every_way_runs_whole_windows_of_all_streams(tiny_model_dir: Path) -> None:
    model, config = (
        AcousticModel.load(tiny_model_dir, "cpu", "float32"),
        StreamConfig(left=60, hop=10, right=5, refresh=5),
    )
    model.tokenizer.do_normalize = False
    model = AcousticModel(model.model, model.tokenizer)
    samples = np.random.default_rng(0).normal(size=3 * SAMPLE_RATE).astype(np.float32) / 10
    engines = list(ways(model, config, 3))
    assert [name for name, *_ in engines] == [WHOLE, SAMPLES, FEATURES, TAIL]
    for name, engine, cut in engines:
        for measure in (measure_batch, measure_overlapped):
            measured = measure(engine, cut, 3, samples, 4, clock_of(torch.device("cpu")))
            assert measured["batch"] == 3 and measured["step_ms"]["n"] >= 3 and measured["streams"] > 0
        run = {key[0].__name__ for slots in engine.slots.values() for key in slots.graphs.inputs}  # type: ignore[union-attr]
        assert run == {WHOLE: set(), TAIL: {"put", "tail"}}.get(name, {"put", "emission"})


@pytest.mark.parametrize(
    ("options", "message"), [(("--slots", "0"), "at least 1 slot"), (("--device", "cuda:99"), "is not there")]
)
def test_wrong_use(options: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", *options]) == 1
    assert message in capsys.readouterr().err
