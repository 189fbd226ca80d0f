"""The microphone as 16 kHz mono samples, through PortAudio.

The audio callback only hands its block over; a reader that is late finds the blocks waiting, and what the
queue cannot hold is counted as an overrun and told at its place in the audio, never lost silently.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clients.file import Resampler
from clients.pulse import NO_PLUGIN, PULSE, SYSTEM_MONITOR, has_gone, pulse_source, pulse_sources
from core.audio import Samples

BLOCK_MS = 50
QUEUE_SECONDS = 30
WAIT_S = 0.1  # for the next block, before the reader may look at the keyboard
STALLED_S = 5.0  # without a block: the device has gone
LOOPBACKS = ("[loopback]", "monitor of", "blackhole", "stereo mix", "soundflower", "cable output")
NO_MICROPHONE = (
    "no microphone found; connect one and see `streamer devices`, hear what this computer plays with --system-audio, "
    "or transcribe a file: streamer FILE"
)


class MicrophoneError(Exception):
    """No microphone to read; the message says what to install or choose."""


@dataclass(frozen=True, slots=True)
class Device:
    index: int  # of PortAudio
    name: str  # as `--input-device` takes it
    sample_rate: int  # Hz, its own
    channels: int
    source: str | None = None  # of PulseAudio


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What came since the last reading: first the loss, if any, then the samples."""

    samples: Samples
    lost_s: float = 0.0
    reason: str = ""  # of the loss


NOTHING = Heard(np.zeros(0, np.float32))


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


def input_names() -> list[str]:
    """What `--input-device` may be: numbers of PortAudio's devices, then PulseAudio's sources."""
    devices = input_devices()
    has_pulse = any(device["name"] == PULSE for device in devices)
    sources = [f"pulse:{name}" for name, _ in pulse_sources()] if has_pulse else []
    return [str(device["index"]) for device in devices] + sources


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
    if any(device["name"] == PULSE for device in devices):
        lines += [f"      pulse:{name} ({form})" for name, form in pulse_sources()]
    return lines


def find_device(name: str | None) -> Device:
    """The named (or the default) microphone: a number, a part of a name, or `pulse:SOURCE`.

    Raises:
        MicrophoneError: there is none, or none of that name.
    """
    sounddevice = portaudio()
    source = name.partition(":")[2] if name is not None and name.startswith(f"{PULSE}:") else None
    key: int | str | None = PULSE if source else int(name) if name is not None and name.isdigit() else name
    if name is not None and has_gone(name):
        raise MicrophoneError(f"no microphone {name!r}; `streamer devices` lists those that are there")
    try:
        device = sounddevice.query_devices(key, "input")
    except (ValueError, sounddevice.PortAudioError) as e:
        if name is not None and "Multiple" in str(e):
            raise MicrophoneError(f"several microphones match {name!r}; give a number of `streamer devices`") from e
        if source or (name is None and pulse_sources()):
            raise MicrophoneError(NO_PLUGIN) from e
        if name is None:
            raise MicrophoneError(NO_MICROPHONE) from e
        raise MicrophoneError(f"no microphone {name!r}; `streamer devices` lists those that are there") from e
    channels = min(2, int(device["max_input_channels"]))
    shown = f"{PULSE}:{source}" if source else str(device["name"])
    return Device(int(device["index"]), shown, int(device["default_samplerate"]), channels, source)


def find_system_audio() -> str:
    """The device that hears what this computer plays, as `find_device` takes it.

    Raises:
        MicrophoneError: there is none.
    """
    devices = input_devices()
    for device in devices:
        if any(mark in device["name"].lower() for mark in LOOPBACKS):
            return str(device["index"])
    if any(device["name"] == PULSE for device in devices):
        return SYSTEM_MONITOR
    hint = {
        "win32": "enable `Stereo Mix` in the sound settings, or install VB-Cable",
        "darwin": "install BlackHole (brew install blackhole-2ch) and choose it as output",
    }.get(sys.platform, "install PulseAudio or PipeWire with its ALSA plugin (apt install libasound2-plugins)")
    raise MicrophoneError(f"no device hears what this computer plays; {hint}")


class Microphone:
    """A running microphone. `with Microphone() as mic: heard = mic.read()`."""

    def __init__(self, name: str | None = None) -> None:
        device = find_device(name)
        self.name = device.name
        self.n_overruns = 0  # blocks
        self.last_heard = time.monotonic()
        self._lost_frames = 0  # since the last block that was handed over
        self._has_ended = False
        self._rate = device.sample_rate
        self._blocks: queue.Queue[tuple[int, NDArray[np.float32]]] = queue.Queue(QUEUE_SECONDS * 1000 // BLOCK_MS)
        self._next: tuple[int, NDArray[np.float32]] | None = None  # taken from the queue, not yet read
        self._resampler = Resampler(device.sample_rate, device.channels)
        sounddevice = portaudio()
        self._errors: type[Exception] = sounddevice.PortAudioError
        try:
            with pulse_source(device.source):
                self._stream = sounddevice.InputStream(
                    device=device.index,
                    samplerate=device.sample_rate,
                    channels=device.channels,
                    dtype="float32",
                    blocksize=device.sample_rate * BLOCK_MS // 1000,
                    callback=self._take,
                    finished_callback=self._end,
                )
        except sounddevice.PortAudioError as e:
            raise MicrophoneError(f"the microphone {self.name!r} cannot be opened: {e}; is it in use?") from e

    def _take(self, block: NDArray[np.float32], n: int, time: object, status: Any) -> None:
        """PortAudio's thread: hand over, nothing else."""
        if status.input_overflow:  # it does not say how much: at least about a block
            self.n_overruns += 1
            self._lost_frames += n
        try:
            self._blocks.put_nowait((self._lost_frames, block.copy()))
            self._lost_frames = 0
        except queue.Full:
            self.n_overruns += 1
            self._lost_frames += n

    def _end(self) -> None:
        self._has_ended = True

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait to be read: how far the reader is behind."""
        return self._blocks.qsize() * BLOCK_MS / 1000

    def read(self) -> Heard:
        """Waits a moment for the next block; everything that is there up to the next loss, perhaps nothing.

        Raises:
            MicrophoneError: the device has stopped (unplugged, say) and all that it gave has been read.
        """
        if self._next is None:
            try:
                self._next = self._blocks.get(timeout=WAIT_S)
            except queue.Empty as e:
                if self._has_ended or time.monotonic() - self.last_heard > STALLED_S:
                    raise MicrophoneError(f"the microphone {self.name!r} has stopped; is it still connected?") from e
                return NOTHING
        self.last_heard = time.monotonic()
        return self._waiting()

    def _waiting(self) -> Heard:
        """The blocks that are there; a loss can only lie before the first of them."""
        lost = self._next[0] if self._next else 0
        blocks: list[NDArray[np.float32]] = []
        while self._next is not None and (not blocks or self._next[0] == 0):
            blocks.append(self._next[1])
            self._next = None
            with contextlib.suppress(queue.Empty):
                self._next = self._blocks.get_nowait()
        # A device without a driver behind it may give anything.
        samples = (
            self._resampler.push(np.clip(np.nan_to_num(np.concatenate(blocks)), -1, 1)) if blocks else NOTHING.samples
        )
        lost_s = round(lost / self._rate, 3)
        return Heard(samples, lost_s, f"{lost_s} s of the microphone came too fast" if lost else "")

    def finish(self) -> list[Heard]:
        """Stops recording; what was heard until now and has not been read."""
        with contextlib.suppress(self._errors):  # a device that is gone cannot be stopped
            self._stream.stop()
        if self._next is None:
            with contextlib.suppress(queue.Empty):
                self._next = self._blocks.get_nowait()
        rest = []
        while self._next is not None:
            rest.append(self._waiting())
        return [*rest, Heard(self._resampler.finish())]

    def __enter__(self) -> Self:
        try:
            self._stream.start()
        except self._errors as e:
            self._stream.close()
            raise MicrophoneError(f"the microphone {self.name!r} does not start: {e}; is it in use?") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(self._errors):  # nor closed
            self._stream.close()
