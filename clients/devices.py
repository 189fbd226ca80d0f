"""Which microphones there are, and which of them is meant: by PortAudio, and behind it by PulseAudio or PipeWire."""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass
from typing import Any

from clients.pulse import ALIASES, NO_PLUGIN, PULSE, SYSTEM_MONITOR, default_source, monitor_of_default, pulse_sources

LOOPBACK = "[loopback]"  # how PortAudio marks what WASAPI hears of an output
SYSTEM_AUDIO = (LOOPBACK, "monitor of", "blackhole", "stereo mix", "soundflower", "cable output")
CARD = re.compile(r" \(hw:\d+,\d+\)$")  # where ALSA has put a device this time
NO_MICROPHONE = (
    "no microphone found; connect one and see `streamer devices`, hear what this computer plays with --system-audio, "
    "or transcribe a file: streamer FILE"
)


class MicrophoneError(Exception):
    """No microphone to read; the message says what to install or choose."""


@dataclass(frozen=True, slots=True)
class Device:
    index: int  # of PortAudio
    name: str
    sample_rate: int  # Hz, its own
    channels: int  # that are recorded
    source: str | None = None  # of PulseAudio

    @property
    def key(self) -> str:
        """As `--input-device` takes it."""
        return str(self.index) if self.source is None else f"{PULSE}:{self.source}"

    @property
    def falls_silent(self) -> bool:
        """Whether it gives nothing at all while nothing plays, instead of silence."""
        return LOOPBACK in self.name.lower()


def portaudio() -> Any:
    """The sounddevice module.

    Raises:
        MicrophoneError: the PortAudio library is not installed, or does not start.
    """
    try:
        import sounddevice
    except Exception as e:
        if not isinstance(e, OSError):  # its PortAudioError cannot be named before the import has succeeded
            raise MicrophoneError(f"the sound system does not start: {e}") from e
        raise MicrophoneError(
            "the PortAudio library is not installed; install it (Debian and Ubuntu: apt install libportaudio2, "
            "Fedora: dnf install portaudio, macOS: brew install portaudio)"
        ) from e
    return sounddevice


def rescan() -> None:
    """Looks for devices again: PortAudio does it only when it starts. No stream may be open.

    Raises:
        MicrophoneError: it does not start again.
    """
    sounddevice = portaudio()
    try:
        with contextlib.suppress(sounddevice.PortAudioError):
            sounddevice._terminate()
        sounddevice._initialize()
    except sounddevice.PortAudioError as e:
        raise MicrophoneError(f"the sound system does not start: {e}") from e


def input_devices() -> list[dict[str, Any]]:
    return [dict(device) for device in portaudio().query_devices() if device["max_input_channels"] > 0]


def has_pulse(devices: list[dict[str, Any]]) -> bool:
    return any(device["name"] == PULSE for device in devices)


def input_keys() -> list[str]:
    """What `d` goes through, as `--input-device` takes it: each microphone once, although PulseAudio's default source
    also has names of ALSA's."""
    devices = input_devices()
    sources = [f"{PULSE}:{name}" for name, _ in pulse_sources()] if has_pulse(devices) else []
    return [str(device["index"]) for device in devices if not sources or device["name"] not in ALIASES] + sources


def key_of(device: Device) -> str:
    """Where a device is among `input_keys`."""
    source = default_source() if device.source is None and device.name in ALIASES else None
    return device.key if source is None else f"{PULSE}:{source}"


def hears_outputs(device: Device) -> bool:
    """Whether it gives what is played, so that its silence means nothing."""
    return key_of(device).endswith(".monitor") or is_system_audio(device.name)


def is_system_audio(name: str) -> bool:
    return any(mark in name.lower() for mark in SYSTEM_AUDIO)


def list_devices() -> list[str]:
    """A line for each device that can record: `* 3  Name (2 channels, 48000 Hz)`; `*` marks the default.

    Raises:
        MicrophoneError: there is none.
    """
    default = portaudio().default.device[0]
    devices = input_devices()
    lines = [
        f"{'*' if device['index'] == default else ' '} {device['index']:2}  {device['name']} "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz)"
        for device in devices
    ]
    if not lines:
        raise MicrophoneError(NO_PLUGIN if pulse_sources() else NO_MICROPHONE)
    if has_pulse(devices):
        source = default_source()
        lines += [f"{'*' if name == source else ' '}     pulse:{name} ({form})" for name, form in pulse_sources()]
    return lines


def find_device(name: str | None) -> Device:
    """The named (or the default) microphone: a number, a part of a name, or `pulse:SOURCE`.

    Raises:
        MicrophoneError: there is none, none of that name, or several.
    """
    if name is None:
        return default_device()
    if name.isdecimal():
        return device_at(int(name))
    devices = input_devices()
    sources = [source for source, _ in pulse_sources()]
    kind, _, wanted = name.partition(":")
    if kind != PULSE:
        wanted = name
        if found := matching(devices, name):
            return choose(name, [make_device(one) for one in found])
    elif wanted.startswith("@") or not sources:  # libpulse's own words; or nothing tells what there is
        return pulse_device(wanted)
    if wanted in sources:
        return pulse_device(wanted)
    named = [source for source in sources if wanted.lower() in source.lower()]
    heard = [
        source for source in named if not source.endswith(".monitor")
    ]  # a headset is both; its microphone is meant
    return choose(name, [pulse_device(source) for source in heard or named])


def choose(name: str, found: list[Device]) -> Device:
    """Raises MicrophoneError where there is not exactly one."""
    if len(found) == 1:
        return found[0]
    if not found:
        raise MicrophoneError(f"no microphone {name!r}; `streamer devices` lists those that are there")
    shown = ", ".join(one.key if one.source else f"{one.key} ({one.name})" for one in found)
    raise MicrophoneError(f"several microphones match {name!r}; choose one of {shown}")


def matching(devices: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Those of just that name; else those whose name has all its words, the system's usual way to them first, since
    Windows shows each device in several ways."""
    exact = [device for device in devices if device["name"] == name]
    words = name.lower().split()
    found = exact or [device for device in devices if all(word in device["name"].lower() for word in words)]
    usual = usual_host()
    return [device for device in found if device["hostapi"] == usual] or found


def usual_host() -> int | None:
    sounddevice = portaudio()
    with contextlib.suppress(sounddevice.PortAudioError, ValueError):
        return int(sounddevice.query_devices(None, "input")["hostapi"])
    return None


def default_device() -> Device:
    sounddevice = portaudio()
    try:
        return make_device(sounddevice.query_devices(None, "input"))
    except (ValueError, sounddevice.PortAudioError) as e:
        raise MicrophoneError(NO_PLUGIN if pulse_sources() else NO_MICROPHONE) from e


def device_at(index: int) -> Device:
    sounddevice = portaudio()
    try:
        return make_device(sounddevice.query_devices(index, "input"))
    except (ValueError, sounddevice.PortAudioError) as e:
        raise MicrophoneError(f"no microphone '{index}'; `streamer devices` lists those that are there") from e


def pulse_device(source: str) -> Device:
    for device in input_devices():
        if device["name"] == PULSE:
            return make_device(device, source)
    raise MicrophoneError(NO_PLUGIN)


def make_device(device: dict[str, Any], source: str | None = None) -> Device:
    name = str(device["name"]) if source is None else f"{PULSE}:{source}"
    channels = min(2, int(device["max_input_channels"]))
    return Device(int(device["index"]), name, int(device["default_samplerate"]), channels, source)


def find_again(device: Device) -> Device:
    """A device that was unplugged, by its name: another may have its number now.

    Raises:
        MicrophoneError: it is not there.
    """
    if device.source is not None:
        return find_device(device.key)
    there = [make_device(one) for one in input_devices()]
    same = [one for one in there if one.name == device.name]
    same = same or [one for one in there if CARD.sub("", one.name) == CARD.sub("", device.name)]
    same.sort(key=lambda one: one.index != device.index)  # of twins the one in its place
    return choose(device.name, same[:1])


def find_system_audio() -> Device:
    """The device that hears what this computer plays.

    Raises:
        MicrophoneError: there is none.
    """
    devices = input_devices()
    marked = [one for one in devices if is_system_audio(one["name"])]
    if marked:
        output = usual_output()  # Windows has a loopback for each of them
        return make_device(min(marked, key=lambda one: not (output and one["name"].startswith(output))))
    if has_pulse(devices):
        return pulse_device(monitor_of_default() or SYSTEM_MONITOR)
    hint = {
        "win32": "enable `Stereo Mix` in the sound settings, or install VB-Cable",
        "darwin": "install BlackHole (brew install blackhole-2ch) and choose it as output",
    }.get(sys.platform, "install PulseAudio or PipeWire with its ALSA plugin (apt install libasound2-plugins)")
    raise MicrophoneError(f"no device hears what this computer plays; {hint}")


def usual_output() -> str:
    """The name of the default output; empty where there is none."""
    sounddevice = portaudio()
    with contextlib.suppress(sounddevice.PortAudioError, ValueError):
        return str(sounddevice.query_devices(None, "output")["name"])
    return ""
