"""Which microphone is meant, with the devices of a sound server of the test's own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pulse import ASOUNDRC, PATIENCE_S, Pulse, pulse_server

from clients.devices import Device, MicrophoneError, find_again, find_device, find_system_audio

ROOT = Path(__file__).parent.parent
FIND = """
import sys
from clients.devices import MicrophoneError, find_again, find_device, find_system_audio, input_keys, key_of
for name in sys.argv[1:]:
    try:
        found = find_system_audio() if name == "system" else find_device(None if name == "default" else name)
        print(name, found.name, key_of(found), key_of(find_again(found)))
    except MicrophoneError as e:
        print(name, "error", e)
print("keys", *input_keys())
"""


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with pulse_server(tmp_path_factory.mktemp("pulse")) as server:
        yield server


def run(pulse: Pulse, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=pulse.environment, capture_output=True, text=True, timeout=3 * PATIENCE_S
    )


def test_a_part_of_a_name_is_enough(pulse: Pulse) -> None:
    """PortAudio's names and PulseAudio's; of a headset's two sources its microphone."""
    modules = [
        pulse.load("module-null-sink", "sink_name=output.usb_headset"),
        pulse.load("module-virtual-source", "source_name=input.usb_headset", "master=other.monitor"),
    ]
    try:
        done = run(pulse, "-c", FIND, "other", "SPEAK", "headset", "monitor", "pulse:spea", "deaf", "system", "default")
    finally:
        for module in reversed(modules):
            pulse.unload(module)
    found = [line.split(" ", 1) for line in done.stdout.splitlines()]
    told = {name: text for name, text in found}
    assert told["other"] == "pulse:other.monitor pulse:other.monitor pulse:other.monitor", done.stderr
    assert told["SPEAK"].startswith("pulse:speaker.monitor ") and told["pulse:spea"].startswith(
        "pulse:speaker.monitor "
    )
    assert told["headset"].startswith("pulse:input.usb_headset ")
    assert "several microphones match 'monitor'" in told["monitor"] and "pulse:other.monitor" in told["monitor"]
    assert "no microphone 'deaf'" in told["deaf"]
    assert told["system"].startswith("pulse:speaker.monitor ")
    name, *keys = told["default"].split()
    assert name == "default" and set(keys) == {"pulse:input.usb_headset"}, "which PulseAudio prefers to monitors"
    assert not {"0", "1"} & set(told["keys"].split()), "ALSA's names for PulseAudio's default source"
    assert set(told["keys"].split()) > {"pulse:speaker.monitor", "pulse:other.monitor", "pulse:input.usb_headset"}


def test_the_default_is_marked(pulse: Pulse) -> None:
    lines = run(pulse, "-m", "streamer", "devices").stdout.splitlines()
    assert [line for line in lines if line.startswith("*")][-1].startswith("*     pulse:speaker.monitor (")


def test_a_wrong_name_is_told_in_one_line(pulse: Pulse) -> None:
    for name, expected in (("monitor", "choose one of pulse:speaker.monitor, pulse:other.monitor"), ("99", "'99'")):
        done = run(pulse, "-m", "streamer", "--mic", "--input-device", name)
        assert done.returncode == 1 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


LISTEN = """
from clients.live_input import SteadyMicrophone
from clients.devices import find_device
with SteadyMicrophone(str(find_device("second").index)) as microphone:
    print(microphone.name, flush=True)
    before = 0
    while before < 2:
        heard = microphone.read()
        if heard.lost_s or len(heard.samples) and not before:
            before += 1
            print(microphone.name, heard.reason, flush=True)
"""


def test_a_device_that_comes_back_with_another_number_is_found(tmp_path: Path) -> None:
    """Without the first of two, the second has its number; a session that was asked for its old number goes on."""
    first = 'pcm.first { type pulse device "speaker.monitor" }\n'
    second = 'pcm.second { type pulse device "other.monitor" }\n'
    with pulse_server(tmp_path) as pulse:
        (tmp_path / ".asoundrc").write_text(ASOUNDRC + first + second)
        command = [sys.executable, "-c", LISTEN]
        with subprocess.Popen(command, cwd=ROOT, env=pulse.environment, stdout=subprocess.PIPE, text=True) as listener:
            try:
                assert listener.stdout is not None
                assert listener.stdout.readline() == "second\n"
                assert listener.stdout.readline().startswith("second ")
                pulse.kill()
                (tmp_path / ".asoundrc").write_text(ASOUNDRC + second)
                time.sleep(0.1)
                pulse.start()
                assert listener.stdout.readline() == "second the microphone 'second' was away\n"
            finally:
                listener.kill()


class Windows:
    """What PortAudio tells where WASAPI is: devices once for each way to them, and a loopback for each output."""

    PortAudioError = type("PortAudioError", (Exception,), {})
    MME, WASAPI = 0, 1
    devices = [
        ("Microphone (Yeti Stereo Microph", MME, 2, 0),
        ("Headset (BT)", MME, 1, 0),
        ("Speakers (Realtek High Definiti", MME, 0, 2),
        ("Microphone (Yeti Stereo Microphone)", WASAPI, 2, 0),
        ("Digital Output (HDMI) [Loopback]", WASAPI, 2, 0),
        ("Speakers (Realtek High Definition Audio) [Loopback]", WASAPI, 2, 0),
    ]

    def query_devices(self, index: int | None = None, kind: str | None = None) -> Any:
        everything = [
            {
                "index": i,
                "name": name,
                "hostapi": host,
                "max_input_channels": n_in,
                "max_output_channels": n_out,
                "default_samplerate": 48_000.0,
            }
            for i, (name, host, n_in, n_out) in enumerate(self.devices)
        ]
        if kind is None:
            return everything
        return everything[{"input": 0, "output": 2}[kind] if index is None else index]


def test_windows_shows_a_device_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same microphone in several ways the usual one; the loopback is that of the loudspeaker in use."""
    monkeypatch.setitem(sys.modules, "sounddevice", Windows())
    monkeypatch.setenv("PATH", "")
    assert find_device("yeti").index == 0
    assert find_device("Microphone (Yeti Stereo Microphone)").index == 3
    with pytest.raises(MicrophoneError, match=r"choose one of 4 \(Digital Output \(HDMI\) \[Loopback\]\), 5"):
        find_device("loopback")
    found = find_system_audio()
    assert found.index == 5 and found.falls_silent and not find_device("yeti").falls_silent


def test_a_card_that_moved_is_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """ALSA puts a device that comes back where there is room; of two twins the one in its place is meant."""
    names = ["USB Audio: - (hw:2,0)", "USB Audio: - (hw:3,0)", "Intel: PCH (hw:0,0)"]
    devices = [
        {"index": i, "name": name, "hostapi": 0, "max_input_channels": 1, "default_samplerate": 48_000.0}
        for i, name in enumerate(names)
    ]
    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(query_devices=lambda: devices))
    assert find_again(Device(7, "Intel: PCH (hw:1,0)", 48_000, 1)).index == 2
    assert find_again(Device(0, "USB Audio: - (hw:3,0)", 48_000, 1)).index == 1
    assert find_again(Device(1, "USB Audio: - (hw:9,0)", 48_000, 1)).index == 1
    with pytest.raises(MicrophoneError, match="no microphone 'Other'"):
        find_again(Device(0, "Other", 48_000, 1))
