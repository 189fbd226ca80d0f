"""`streamer bench mic` on a sound server of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pulse import PATIENCE_S, pulse_server
from test_console import said

from clients.microphone import MicrophoneError
from core.transcript import Gap
from streamer.bench.mic import find, pactl, snapshots

ROOT = Path(__file__).parent.parent


def test_words_come_onto_the_screen_after_they_sounded(tmp_path: Path, sample: Path) -> None:
    """The embedded model, real speech: every word is shown after its end, and is final after it is shown."""
    command = [sys.executable, "-m", "streamer", "bench", "mic", str(sample), "--json"]
    with pulse_server(tmp_path) as pulse:
        done = subprocess.run(
            command, cwd=ROOT, env=pulse.environment, capture_output=True, text=True, timeout=5 * PATIENCE_S
        )
        sinks = subprocess.run(["pactl", "list", "short", "sinks"], env=pulse.environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"streamer_bench" not in sinks.stdout
    result = json.loads(done.stdout)
    assert result["n_files"] == 1 and result["n_words"] >= 12
    shown, final = (result["emission_s"][kind] for kind in ("provisional", "committed"))
    assert shown["n"] == final["n"] >= 0.8 * result["n_words"]
    for percent in ("p50", "p95"):
        assert 0 < shown[percent] <= final[percent] < 60


def test_a_file_is_found_in_what_was_heard() -> None:
    noise = np.random.default_rng(1).standard_normal(8000).astype(np.float32)
    heard = np.concatenate([np.zeros(1234, np.float32), 0.5 * noise, np.zeros(99, np.float32)])
    assert find(noise, heard) == 1234
    broken = np.concatenate([heard[:5000], np.zeros(160, np.float32), heard[5000:]])
    for other in (broken, np.zeros(0, np.float32)):
        with pytest.raises(MicrophoneError, match="did not come back whole"):
            find(noise, other)


def test_events_are_put_on_the_clock_of_the_file() -> None:
    """The file began 50 s after the clock's zero, and 61 s into what the microphone heard."""
    events = [(52.0, said("GIVE ME", 0)), (53.0, Gap(1.0, 2.0, "x")), (54.0, said("GIVE ME", 2, is_final=True))]
    first, last = snapshots([*events, (55.0, said("A", 0, segment=1))], 50.0, 61.0)[::2]
    assert (first.at_s, first.texts, first.n_committed) == (2.0, ["GIVE", "ME"], 0)
    assert [word.start_s for word in first.words] == [0.5, 1.5]
    assert (last.at_s, last.texts, last.n_committed) == (5.0, ["GIVE", "ME", "A"], 2)


def test_no_sound_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MicrophoneError, match="apt install"):
        pactl("info")
