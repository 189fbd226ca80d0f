"""Whole sessions of `streamer --mic` on a sound server of the test's own: devices that change, kills, servers."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import soundfile
from pulse import PATIENCE_S, Pulse, pulse_server
from serving import serving
from test_console import Terminal

from core.acoustic import AcousticModel
from core.audio import SAMPLE_RATE
from streamer.bench.mic import find
from streamer.recognizer import Recognizer

ROOT = Path(__file__).parent.parent
MIC = ["-m", "streamer", "--mic", "--input-device"]


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with pulse_server(tmp_path_factory.mktemp("pulse")) as server:
        yield server


def start(
    environment: dict[str, str], *arguments: object, out: int | TextIO = subprocess.PIPE
) -> subprocess.Popen[str]:
    command = [sys.executable, *MIC, *(str(argument) for argument in arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=out, stderr=pipe, text=True)


def wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 3 * PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def noise(path: Path, seed: int, seconds: float = 2.0) -> np.ndarray:
    """Nothing else resembles it."""
    samples = (0.2 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)
    soundfile.write(path, np.concatenate([np.zeros(SAMPLE_RATE, np.float32), samples]), SAMPLE_RATE)
    return samples


def recorded(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def test_d_switches_to_the_next_device(pulse: Pulse, tiny_model_dir: Path, tmp_path: Path) -> None:
    """What plays in the first loudspeaker, then in the second, is in one recording."""
    sounds = [tmp_path / "first.wav", tmp_path / "second.wav"]
    played = [noise(path, seed) for seed, path in enumerate(sounds)]
    command = [sys.executable, *MIC, "pulse:speaker.monitor", "--model", str(tiny_model_dir)]
    recording = tmp_path / "heard.wav"
    terminal = Terminal([*command, "--record", str(recording)], 120, **pulse.environment)
    try:
        terminal.wait(lambda: "pulse:speaker.monitor · lag" in terminal.text())
        pulse.play(sounds[0])
        terminal.press("d")
        terminal.wait(lambda: "listening to pulse:other.monitor" in terminal.text())
        terminal.wait(lambda: "pulse:other.monitor · lag" in terminal.text())
        terminal.wait(lambda: "changed to" in terminal.text())
        pulse.play(sounds[1], "other")
        terminal.press("q")
        assert terminal.end() == 0, terminal.text()
    finally:
        terminal.process.kill()
    heard = recorded(recording)
    assert find(played[0], heard) < find(played[1], heard)


def test_one_device_goes_and_comes_back(pulse: Pulse, tiny_model_dir: Path, tmp_path: Path) -> None:
    """PulseAudio goes on with another source. The session waits for its own, tells how long, and hears again."""
    played = noise(tmp_path / "noise.wav", 3)
    events, recording, shown = tmp_path / "a.jsonl", tmp_path / "heard.wav", tmp_path / "shown"
    options = ["--model", tiny_model_dir, "--output", events, "--record", recording]
    module = pulse.load("module-null-sink", "sink_name=usb", "rate=32000")
    with shown.open("w") as out, start(pulse.environment, "pulse:usb.monitor", *options, out=out) as process:
        try:
            wait(process, lambda: recording.exists() and recording.stat().st_size > 32_000)
            since = time.monotonic()
            pulse.unload(module)
            wait(process, lambda: "has stopped" in shown.read_text())
            module = pulse.load("module-null-sink", "sink_name=usb", "rate=32000")
            wait(process, lambda: '"gap"' in events.read_text())
            away_s = time.monotonic() - since
            pulse.play(tmp_path / "noise.wav", "usb")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            pulse.unload(module)
    assert process.returncode == 0, err
    gap = next(event for event in map(json.loads, events.read_text().splitlines()) if event["type"] == "gap")
    assert "was away" in gap["reason"] and "s lost: the microphone" in shown.read_text()
    assert 0 < gap["end_s"] - gap["start_s"] < away_s + 0.25  # it begins with the last block that had come
    assert find(played, recorded(recording)) / SAMPLE_RATE > gap["end_s"], "the recording is silent meanwhile"


def test_kill_leaves_all_finals_and_the_sound(pulse: Pulse, sample: Path, tmp_path: Path) -> None:
    """SIGKILL of the whole command while somebody speaks: each final that was shown is in valid subtitles."""
    speech = recorded(sample)
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([pause, speech] * 4), SAMPLE_RATE)
    target, recording = tmp_path / "a.srt", tmp_path / "heard.wav"
    with start(pulse.environment, "pulse:speaker.monitor", "--output", target, "--record", recording) as process:
        wait(process, recording.exists)
        player = subprocess.Popen(["paplay", "-d", "speaker", str(tmp_path / "a.wav")], env=pulse.environment)
        wait(process, lambda: "2\n00:" in target.read_text())
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=PATIENCE_S)
        player.kill()
        player.wait()
    cues = [cue.split("\n") for cue in target.read_text().rstrip("\n").split("\n\n")]
    assert [cue[0] for cue in cues] == [str(i + 1) for i in range(len(cues))]
    times = [re.fullmatch(r"(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})", cue[1]) for cue in cues]
    borders = [border for match in times if match for border in match.groups()]
    assert len(borders) == 2 * len(cues) and borders == sorted(borders)
    kept = " ".join(" ".join(cue[2:]) for cue in cues)
    finals = [line.split("  ", 1)[1] for line in out.splitlines() if re.match(r"\d\d:\d\d\.\d  ", line)]
    assert finals and kept.startswith(" ".join(finals))
    with wave.open(str(recording)) as file:
        assert len(file.readframes(1 << 30)) == 2 * file.getnframes()
    assert find(speech, recorded(recording)) > 0


@pytest.mark.parametrize("screen", ["terminal", "window"])
def test_a_server_gives_the_text_of_this_machine(
    screen: str, pulse: Pulse, tiny_model_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """`--server` with a microphone: the same words as recognising the recording here."""
    environment = pulse.environment
    if screen == "window":
        environment["DISPLAY"] = request.getfixturevalue("display")
    noise(tmp_path / "noise.wav", 4, 6.0)
    target, recording = tmp_path / "a.txt", tmp_path / "heard.wav"
    options = ["--output", target, "--record", recording, *(["--window"] if screen == "window" else [])]

    def run(url: str) -> str:
        with start(environment, "pulse:speaker.monitor", "--server", url, *options) as process:
            wait(process, recording.exists)
            pulse.play(tmp_path / "noise.wav")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=2 * PATIENCE_S)
        assert process.returncode == 0, err
        return out

    async def serve() -> str:
        async with serving(model=AcousticModel.load(tiny_model_dir, "cpu", "float32")) as server:  # type: ignore[arg-type]
            return await asyncio.to_thread(run, server.url)

    out = asyncio.run(serve())
    expected = Recognizer.load(tiny_model_dir, "cpu", "float32").transcribe(recording).text
    assert len(expected) > 20
    assert " ".join(target.read_text().split()) == expected
    assert (expected in " ".join(re.sub(r"(?m)^\d\d:\d\d\.\d  ", "", out).split())) == (screen == "terminal")
