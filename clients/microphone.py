"""The microphone as 16 kHz mono samples, through PortAudio.

The audio callback only hands its block over; a reader that is late finds the blocks waiting, and what the
queue cannot hold is counted as an overrun, never lost silently.
"""

from __future__ import annotations

import queue
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clients.file import Resampler
from core.audio import SAMPLE_RATE, Samples

BLOCK_MS = 50
QUEUE_SECONDS = 30


class MicrophoneError(Exception):
    """No microphone to read; the message says what to install or choose."""


def portaudio() -> Any:
    """The sounddevice module.

    Raises:
        MicrophoneError: the PortAudio library is not installed.
    """
    try:
        import sounddevice
    except OSError as e:
        raise MicrophoneError(
            "the PortAudio library is not installed; install it (Debian and Ubuntu: apt install libportaudio2, "
            "Fedora: dnf install portaudio, macOS: brew install portaudio)"
        ) from e
    return sounddevice


def list_devices() -> list[str]:
    """A line for each device that can record: `* 3  Name (2 channels, 48000 Hz)`; `*` marks the default."""
    sounddevice = portaudio()
    devices = sounddevice.query_devices()
    default = sounddevice.default.device[0]
    lines = [
        f"{'*' if i == default else ' '} {i:2}  {device['name']} "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz)"
        for i, device in enumerate(devices)
        if device["max_input_channels"] > 0
    ]
    if not lines:
        raise MicrophoneError("no microphone found; connect one, or transcribe a file: streamer FILE")
    return lines


def find_device(name: str | None) -> tuple[int, dict[str, Any]]:
    """Index and description of the named (or the default) microphone.

    Raises:
        MicrophoneError: there is none, or none of that name.
    """
    sounddevice = portaudio()
    key: int | str | None = int(name) if name is not None and name.isdigit() else name
    try:
        device = sounddevice.query_devices(key, "input")
    except (ValueError, sounddevice.PortAudioError) as e:
        if name is None:
            raise MicrophoneError(
                "no microphone found; connect one and see `streamer devices`, or transcribe a file: streamer FILE"
            ) from e
        raise MicrophoneError(f"no microphone {name!r}; `streamer devices` lists those that are there") from e
    return int(device["index"]), dict(device)


class Microphone:
    """A running microphone. `with Microphone() as mic: samples = mic.read()`."""

    def __init__(self, name: str | None = None) -> None:
        index, device = find_device(name)
        self.name = str(device["name"])
        self.n_overruns = 0
        rate = int(device["default_samplerate"])
        channels = min(2, int(device["max_input_channels"]))
        self._blocks: queue.Queue[NDArray[np.float32] | None] = queue.Queue(QUEUE_SECONDS * 1000 // BLOCK_MS)
        self._resampler = Resampler(rate, channels)
        sounddevice = portaudio()
        try:
            self._stream = sounddevice.InputStream(
                device=index,
                samplerate=rate,
                channels=channels,
                dtype="float32",
                blocksize=rate * BLOCK_MS // 1000,
                callback=self._take,
                finished_callback=self._end,
            )
        except sounddevice.PortAudioError as e:
            raise MicrophoneError(f"the microphone {self.name!r} cannot be opened: {e}; is it in use?") from e

    def _take(self, block: NDArray[np.float32], n: int, time: object, status: Any) -> None:
        """PortAudio's thread: hand over, nothing else."""
        if status.input_overflow:
            self.n_overruns += 1
        try:
            self._blocks.put_nowait(block.copy())
        except queue.Full:
            self.n_overruns += 1

    def _end(self) -> None:
        try:
            self._blocks.put_nowait(None)
        except queue.Full:
            self.n_overruns += 1

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait to be read: how far the reader is behind."""
        return self._blocks.qsize() * BLOCK_MS / 1000

    def read(self) -> Samples:
        """Waits for the next block; everything that is there, at 16 kHz.

        Raises:
            MicrophoneError: the device has stopped (unplugged, say).
        """
        blocks = [self._blocks.get()]
        while len(blocks) < SAMPLE_RATE // BLOCK_MS:
            try:
                blocks.append(self._blocks.get_nowait())
            except queue.Empty:
                break
        whole = [block for block in blocks if block is not None]
        if not whole:
            raise MicrophoneError(f"the microphone {self.name!r} has stopped; is it still connected?")
        return self._resampler.push(np.concatenate(whole))

    def __enter__(self) -> Self:
        self._stream.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
