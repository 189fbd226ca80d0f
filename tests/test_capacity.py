"""`streamer bench capacity`, with few sessions for a short time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from planted import PlantedModel, plant
from serving import serving

from core.acoustic import AcousticModel
from core.audio import HOP, Samples, encode_pcm16
from streamer.bench.capacity import HEADER, Level, Server, ramp, read_speech, row
from streamer.bench.sizes import CONFIGS, save_random
from streamer.limits import Limits

SPEECH = encode_pcm16(plant("HELLO WORLD~~" * 3)[:-80])


def climb(
    most: int, limits: Limits | None = None, model: PlantedModel | None = None
) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []

    async def test() -> dict[str, Any]:
        async with asyncio.timeout(60), serving(limits=limits, model=model) as server:
            result = await ramp(Server(server.url), SPEECH, "low", 1, 1, most, 2.0, lines.append)
            assert all(live.replaced is None for live in server.hub.live.values())
            return dict(result)

    return asyncio.run(test()), lines


def test_it_climbs_to_the_top() -> None:
    result, lines = climb(2)
    assert result["sessions_held"] == 2
    assert result["ended_because"] == "--max 2 reached"
    assert len(lines) == len(result["levels"]) == 2
    level = result["levels"][-1]
    assert 0 < level["step_ms"]["p50"] <= level["step_ms"]["p95"] <= level["step_ms"]["p99"]
    assert level["step_ms"]["p95"] <= level["worst_ms"]
    assert level["partial_ms"]["p50"] > 0
    assert level["n_partials"] > 0
    assert level["gaps"] == 0
    assert result["hop_ms"] == 260


def test_it_ends_where_the_server_refuses() -> None:
    result, _ = climb(3, Limits(sessions=1))
    assert result["sessions_held"] == 1
    assert "session 2 was not taken" in result["ended_because"]
    assert "sessions are taken" in result["ended_because"]


class SlowModel(PlantedModel):
    def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
        time.sleep(0.35 if len(self.lengths) > 5 else 0.0)  # as it was measured at first, it would hold the pace
        return super().emit(windows)


def test_it_ends_where_steps_come_late() -> None:
    result, _ = climb(3, model=SlowModel())
    assert result["sessions_held"] == 0
    assert "more than the hop of 260 ms" in result["ended_because"]


def test_recordings_are_joined(tmp_path: Path) -> None:
    for name, rate in (("a.wav", 16_000), ("b.wav", 8_000)):
        soundfile.write(tmp_path / name, np.zeros(rate), rate)
    assert len(read_speech([tmp_path / "a.wav", tmp_path / "b.wav"])) == 2 * 32_000


@pytest.mark.parametrize("size", ["base", "large"])
def test_random_weights_of_a_published_size(size: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Written once as the published sizes are; here smaller, for the time it takes."""
    monkeypatch.setitem(CONFIGS, size, replace(CONFIGS[size], num_hidden_layers=1))
    save_random(size, str(tiny_model_dir), tmp_path)
    model = AcousticModel.load(tmp_path)
    assert (
        model.config.hidden_size == CONFIGS[size].hidden_size and len(model.emit([np.zeros(4000, np.float32)])[0]) == 12
    )


def test_rows_fit_their_header() -> None:
    times = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    assert len(row(Level(1, times, 3.0, times, 0.5, (100.0, 101.0, 1e3), True, 0, 0, 5, 1))) == len(HEADER)


@pytest.mark.slow
def test_the_command_with_a_server_of_its_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(1).standard_normal(40 * HOP * 25), 16_000)
    command = [sys.executable, "-m", "streamer", "bench", "capacity", str(tmp_path / "noise.wav"), "--json"]
    command += ["--model", str(tiny_model_dir), "--threads", "1", "--max", "2", "--hold", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # A busy machine may be late; nothing else may end it.
    assert result["ended_because"].startswith(("--max 2 reached", "95 % of the steps"))
    level = result["levels"][-1]
    assert level["gaps"] == 0
    assert level["cpu_cores"] > 0
    assert len(level["memory_mb"]) == 3
    assert min(level["memory_mb"]) > 50
    wrong = subprocess.run([*command, "--start", "9"], capture_output=True, text=True, timeout=300)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
