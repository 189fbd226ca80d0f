"""A real microphone as far as PortAudio can tell: PulseAudio's monitor of a loudspeaker that leads nowhere."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from planted import PlantedModel, plant
from pulse import PATIENCE_S, Pulse, pulse_server

from clients.devices import Device
from clients.live_input import SteadyMicrophone
from clients.microphone import BLOCK_MS, QUEUE_SECONDS, Heard, Microphone, MicrophoneError
from core.audio import HOP, SAMPLE_RATE
from core.edit_distance import word_errors
from core.transcript import Event, Gap
from streamer.bench.mic import Probe
from streamer.recognizer import Recognizer
from streamer.timeline import SHORT_LOSS_S, Timeline

ROOT = Path(__file__).parent.parent
EMPTY = np.zeros(0, np.float32)

LISTEN = """
import select, sys
from clients.live_input import SteadyMicrophone
import numpy as np, soundfile
name = sys.argv[2] if len(sys.argv) > 2 else None
heard = []
with SteadyMicrophone(None if name == "system" else name, name == "system") as microphone:
    print("name", microphone.name, flush=True)
    was = ""
    left = 16000  # samples after it was told to end
    while left > 0:
        one = microphone.read()
        heard.append(one.samples)
        if one.lost_s:
            print("lost", one.lost_s, one.reason, flush=True)
        if microphone.trouble != was:
            was = microphone.trouble
            print("trouble", was or "none", flush=True)
        if select.select([sys.stdin], [], [], 0)[0]:
            left -= len(one.samples)
    heard += [one.samples for one in microphone.finish()]
if sys.argv[1] != "-":
    soundfile.write(sys.argv[1], np.concatenate(heard), 16000)
"""


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with pulse_server(tmp_path_factory.mktemp("pulse")) as server:
        yield server


def start(pulse: Pulse, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=pulse.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def chirp(path: Path, seconds: float = 2.0) -> np.ndarray:
    """A sweep that no shifted copy of itself resembles, at the loudspeaker's rate; returned at 16 kHz."""
    t = np.arange(int(48_000 * seconds)) / 48_000
    samples = 0.5 * np.sin(2 * np.pi * (200 * t + 450 * t**2))
    lead = np.zeros(48_000)  # a listener that has just been seen may still be starting
    soundfile.write(path, np.concatenate([lead, samples]), 48_000)
    return samples[::3]


@pytest.mark.parametrize(
    ("device", "form"),
    [
        ("pulse:speaker.monitor", ""),
        ("system", ""),
        ("pulse:native.monitor", "rate=8000 channels=1"),
        ("pulse:native.monitor", "rate=96000 channels=6"),
    ],
)
def test_what_is_played_is_heard(pulse: Pulse, device: str, form: str, tmp_path: Path) -> None:
    """Sound played at 48 kHz into a device of another rate comes out at 16 kHz, once, unbroken."""
    played = chirp(tmp_path / "chirp.wav")
    module = pulse.load("module-null-sink", "sink_name=native", *form.split()) if form else ""
    with start(pulse, "-c", LISTEN, tmp_path / "heard.wav", device) as listener:
        pulse.wait_for_listener()
        pulse.play(tmp_path / "chirp.wav", "native" if form else "speaker")
        out, err = listener.communicate(timeout=PATIENCE_S)
    if module:
        pulse.unload(module)
    assert "name pulse:" in out, err
    heard, rate = soundfile.read(tmp_path / "heard.wav")
    assert rate == SAMPLE_RATE
    size = 1 << (len(heard) + len(played)).bit_length()
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size)), size)
    at = int(np.argmax(match[: len(heard)]))
    window = heard[at : at + len(played)]
    assert len(window) == len(played)
    similarity = np.dot(window, played) / np.linalg.norm(window) / np.linalg.norm(played)
    assert similarity > 0.9, out


def test_devices_lists_sources(pulse: Pulse) -> None:
    with start(pulse, "-m", "streamer", "devices") as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "pulse:speaker.monitor" in out and "pulse:other.monitor" in out and "Hz)" in out
    with start(pulse, "-m", "streamer", "--mic", "--input-device", "pulse:none") as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "streamer devices" in err and "Traceback" not in err


def test_no_microphone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".asoundrc").write_text("pcm.!default { type plug slave.pcm null }\n")
    server = Pulse(tmp_path)  # not started
    with start(server, "-m", "streamer", "--mic", "--input-device", "no such device") as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    lines = [line for line in err.splitlines() if line.startswith("streamer: ")]
    assert process.returncode == 1 and out == "" and len(lines) == 1
    assert "streamer devices" in lines[0] or "install" in lines[0]


@pytest.mark.parametrize("command", ["--mic", "devices"])
def test_a_missing_plugin_of_alsa_is_told(command: str, pulse: Pulse, tmp_path: Path) -> None:
    """PulseAudio runs, and ALSA knows nothing of it; or there is nothing at all."""
    (tmp_path / "asound.conf").write_text("pcm.none { type hw card 9 }\n")
    deaf = {"ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}
    for more, expected in (({}, "libasound2-plugins"), ({"PULSE_SERVER": "unix:/none"}, "no microphone found")):
        environment = {**pulse.environment, **deaf, **more}
        arguments = [sys.executable, "-m", "streamer", command]
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr


def test_unplugged_and_back(tmp_path: Path) -> None:
    """The sound server is killed and started again: the session goes on, and tells how long it was deaf."""
    with pulse_server(tmp_path) as pulse, start(pulse, "-c", LISTEN, "-") as listener:
        try:
            pulse.wait_for_listener()
            assert listener.stdout is not None
            assert listener.stdout.readline().startswith("name ")
            pulse.kill()
            since = time.monotonic()
            assert "has stopped" in listener.stdout.readline()
            pulse.start()
            found = [listener.stdout.readline(), listener.stdout.readline()]
            lost = next(line for line in found if line.startswith("lost "))
            assert "was away" in lost and 0 < float(lost.split()[1]) < time.monotonic() - since + 10
            assert "trouble none\n" in found
            pulse.wait_for_listener()
        finally:
            listener.kill()


def test_the_microphone_gives_the_text_of_the_file(pulse: Pulse, sample: Path, tmp_path: Path) -> None:
    """The whole command with the embedded model; the recording it keeps gives the same words again."""
    target, sound, got = tmp_path / "a.srt", tmp_path / "a.wav", tmp_path / "got"
    arguments = ["-m", "streamer", "--mic", "--input-device", "pulse:speaker.monitor", "--latency", "accurate"]
    outputs = ["--output", target, "--record", sound, "--exec", f"cat >> '{got}'"]
    with start(pulse, *arguments, *outputs) as process:
        pulse.wait_for_listener()
        until = time.monotonic() + 3 * PATIENCE_S
        while not (target.exists() and sound.exists()) and time.monotonic() < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        pulse.play(sample)
        n = sound.stat().st_size + 32_000
        while sound.stat().st_size < n and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=3 * PATIENCE_S)
    assert process.returncode == 0, err
    recognizer = Recognizer.load()
    expected = recognizer.transcribe(sample, latency="accurate").text.split()
    heard = got.read_text().split()
    assert recognizer.transcribe(sound, latency="accurate").text.split() == heard
    # Where a frame of 20 ms begins in what is heard is chance, and one letter of this recording depends on it.
    assert word_errors(expected, heard).total <= 1, (expected, heard)
    assert " ".join(out.split()).count(heard[-1]) and target.read_text().startswith("1\n00:")


def test_a_muted_microphone_is_told(pulse: Pulse, tmp_path: Path) -> None:
    module = pulse.load("module-null-source", "source_name=muted")
    with start(pulse, "-c", LISTEN, "-", "pulse:muted") as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "name pulse:muted\n"
            assert "trouble pulse:muted gives nothing but silence; is it muted" in listener.stdout.readline()
        finally:
            listener.kill()
            pulse.unload(module)


PLAY = """
import sys, time
from clients.file import open_audio
from clients.live_input import PlayedFile
source = open_audio(sys.argv[1])
with PlayedFile("sample", source.blocks, 1.5) as played:
    time.sleep(2)  # the model is being loaded
    print(time.monotonic(), flush=True)
    while not played.has_ended:
        played.read()
"""


def test_a_file_is_heard_after_its_captions_and_to_its_end(
    pulse: Pulse, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in pulse.environment.items():
        monkeypatch.setenv(name, value)
    with Probe("speaker.monitor") as probe:
        with start(pulse, "-c", PLAY, sample) as player:
            out, err = player.communicate(timeout=PATIENCE_S)
        assert player.returncode == 0, err
        time.sleep(1)  # the recorder is a little later
        began = probe.began(soundfile.read(sample, dtype="float32")[0])
    if probe._process.stdout is not None:
        probe._process.stdout.close()
    assert 1.4 < began - float(out) < 3.5


SLOW = """
import time
import clients.microphone
clients.microphone.QUEUE_SECONDS = 0.5
from clients.live_input import SteadyMicrophone
with SteadyMicrophone("pulse:speaker.monitor") as microphone:
    heard = [microphone.read()]
    while not len(heard[-1].samples):
        heard.append(microphone.read())
    began = time.monotonic() - len(heard[0].samples) / 16000
    time.sleep(3)  # busy with something else
    while time.monotonic() < began + 5:
        heard.append(microphone.read())
    took = time.monotonic() - began
print(microphone.n_overruns, sum(len(one.samples) / 16000 + one.lost_s for one in heard), took)
print(*{one.reason for one in heard if one.lost_s})
"""


def test_a_late_reader_knows_how_much_it_missed(pulse: Pulse) -> None:
    """PortAudio's callback goes on while nobody reads: what had no room is counted, and the clock stays right."""
    with start(pulse, "-c", SLOW) as listener:
        out, err = listener.communicate(timeout=PATIENCE_S)
    n, known_s, took_s = out.splitlines()[0].split()
    assert int(n) >= 40, err
    assert float(known_s) == pytest.approx(float(took_s), abs=0.5)
    assert out.splitlines()[1].endswith("s of the microphone came too fast")


class Blocks:
    """A microphone's insides without a device: its callback and its reader."""

    def __new__(cls) -> Microphone:  # type: ignore[misc]
        import queue

        from clients.file import Resampler

        microphone = Microphone.__new__(Microphone)
        microphone.name, microphone.n_overruns, microphone.last_heard = "none", 0, time.monotonic()
        microphone._lost_frames, microphone._has_ended, microphone.falls_silent = 0, False, False
        microphone._rate, microphone._channels = SAMPLE_RATE, 1
        microphone._blocks = queue.Queue(QUEUE_SECONDS * 1000 // BLOCK_MS)
        microphone._next, microphone._resampler = None, Resampler(SAMPLE_RATE, 1)
        return microphone


def test_overruns_are_counted_and_told_at_their_place() -> None:
    microphone = Blocks()
    n = SAMPLE_RATE * BLOCK_MS // 1000
    fine, overflow = SimpleNamespace(input_overflow=False), SimpleNamespace(input_overflow=True)

    def give(value: float, status: object = fine) -> None:
        microphone._take(np.full((n, 1), value, np.float32), n, None, status)

    capacity = QUEUE_SECONDS * 1000 // BLOCK_MS
    for i in range(capacity + 3):  # nobody reads: the last three have no room
        give(i / 1000)
    assert microphone.n_overruns == 3 and microphone.waiting_s == QUEUE_SECONDS
    first = microphone.read()
    assert first.lost_s == 0 and len(first.samples) == capacity * n
    give(0.5)
    give(0.6, overflow)
    heard = microphone.read()
    assert heard.lost_s == 3 * BLOCK_MS / 1000 and heard.samples.tolist() == pytest.approx([0.5] * n)
    heard = microphone.read()
    assert heard.lost_s == BLOCK_MS / 1000 and heard.samples.tolist() == pytest.approx([0.6] * n)
    give(np.nan)
    assert microphone.read().samples.tolist() == [0] * n
    microphone._end()
    with pytest.raises(MicrophoneError, match="still connected"):
        microphone.read()


def test_a_loss_at_the_end_is_told() -> None:
    microphone = Blocks()
    microphone._errors, microphone._stream = OSError, SimpleNamespace(stop=lambda: None)
    n = SAMPLE_RATE * BLOCK_MS // 1000
    for _ in range(QUEUE_SECONDS * 1000 // BLOCK_MS + 3):
        microphone._take(np.zeros((n, 1), np.float32), n, None, SimpleNamespace(input_overflow=False))
    rest = microphone.finish()
    assert sum(len(heard.samples) for heard in rest) == QUEUE_SECONDS * SAMPLE_RATE
    assert rest[-1].lost_s == 3 * BLOCK_MS / 1000


def test_a_loopback_without_sound_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """WASAPI gives nothing while nothing plays: seconds go by all the same, and the device has not gone."""
    microphone = Blocks()
    microphone.falls_silent = True
    now = microphone.last_heard
    monkeypatch.setattr("clients.microphone.time.monotonic", lambda: now + 7)
    assert microphone.read().samples.tolist() == [0] * 7 * SAMPLE_RATE
    assert not len(microphone.read().samples), "they have been given"
    microphone._take(np.full((800, 1), 0.5, np.float32), 800, None, SimpleNamespace(input_overflow=False))
    assert microphone.read().samples.tolist() == [0.5] * 800


@pytest.fixture
def timeline() -> Timeline:
    return Timeline(Recognizer(PlantedModel()).stream(latency="accurate"))  # type: ignore[arg-type]


def finals(events: list[Event]) -> list[tuple[str, float]]:
    return [(event.text, event.start_s) for event in events if not isinstance(event, Gap) and event.is_final]


@pytest.mark.parametrize("lost_s", [0.2, SHORT_LOSS_S, 7.5])
def test_the_clock_goes_on_through_losses(timeline: Timeline, lost_s: float) -> None:
    """Words after a loss have the time at which they were said; the loss is told where it was."""
    first, second = (part[: len(part) // HOP * HOP] for part in (plant("GIVE ME ", tail=2), plant("~THE KEY", tail=2)))
    events = timeline.push(Heard(first))
    before = timeline.audio_s
    events += timeline.push(Heard(EMPTY, lost_s, "unplugged"))
    events += timeline.push(Heard(second)) + timeline.finish()
    gap = next(event for event in events if isinstance(event, Gap))
    assert (gap.start_s, gap.end_s, gap.reason) == (before, pytest.approx(before + lost_s), "unplugged")
    assert timeline.audio_s == pytest.approx((len(first) + len(second)) / SAMPLE_RATE + lost_s, abs=0.002)
    words = [w for e in events if not isinstance(e, Gap) and e.is_final for w in e.words]
    assert [word.text for word in words] == ["GIVE", "ME", "THE", "KEY"]
    assert words[2].start_s == pytest.approx(before + lost_s + 1.0, abs=0.1)
    if lost_s > SHORT_LOSS_S:
        assert [text for text, _ in finals(events)] == ["GIVE ME", "THE KEY"]


def test_the_time_without_a_device_is_told_when_another_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was unplugged a minute ago, and `d` goes to another one now."""
    now = time.monotonic()
    microphone = SteadyMicrophone.__new__(SteadyMicrophone)
    microphone._microphone, microphone._left, microphone._missed_from = None, deque(), now - 60
    microphone._device = Device(0, "old", SAMPLE_RATE, 1)
    for name, found in {"rescan": None, "input_keys": ["1"], "find_again": microphone._device}.items():
        monkeypatch.setattr(f"clients.live_input.{name}", lambda *_, found=found: found)
    monkeypatch.setattr("clients.live_input.find_device", lambda key: Device(int(key), "new", SAMPLE_RATE, 1))
    monkeypatch.setattr(microphone, "_listen", lambda device: setattr(microphone, "name", device.name))
    monkeypatch.setattr("clients.live_input.time.monotonic", lambda: now)
    assert microphone.switch() == "listening to new"
    assert microphone._left[-1].lost_s == 60
