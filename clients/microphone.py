"""The microphone as 16 kHz mono samples, through PortAudio.

The audio callback only hands its block over; a reader that is late finds the blocks waiting, and what the
queue cannot hold is counted as an overrun, never lost silently.
"""

from __future__ import annotations

import contextlib
import queue
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clients.file import Resampler
from core.audio import Samples

BLOCK_MS = 50
QUEUE_SECONDS = 30
WAIT_S = 0.25  # for the next block, before the reader may look at the keyboard
STALLED_S = 10  # without a block: the device has gone


class MicrophoneError(Exception):
    """No microphone to read; the message says what to install or choose."""


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
        if name is not None and "Multiple" in str(e):
            raise MicrophoneError(f"several microphones match {name!r}; give a number of `streamer devices`") from e
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
        self._n_told = 0
        self._n_empty = 0  # waits in a row that brought no block
        self._has_ended = False
        rate = int(device["default_samplerate"])
        channels = min(2, int(device["max_input_channels"]))
        self._blocks: queue.Queue[NDArray[np.float32]] = queue.Queue(QUEUE_SECONDS * 1000 // BLOCK_MS)
        self._resampler = Resampler(rate, channels)
        sounddevice = portaudio()
        self._errors: type[Exception] = sounddevice.PortAudioError
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
        self._has_ended = True

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait to be read: how far the reader is behind."""
        return self._blocks.qsize() * BLOCK_MS / 1000

    def take_overruns(self) -> int:
        """Blocks that were lost since the last call."""
        n, self._n_told = self.n_overruns - self._n_told, self.n_overruns
        return n

    def read(self) -> Samples:
        """Waits a moment for the next block; everything that is there, at 16 kHz, perhaps nothing.

        Raises:
            MicrophoneError: the device has stopped (unplugged, say) and all that it gave has been read.
        """
        try:
            blocks = [self._blocks.get(timeout=WAIT_S)]
        except queue.Empty as e:
            self._n_empty += 1
            if self._has_ended or self._n_empty * WAIT_S > STALLED_S:
                raise MicrophoneError(f"the microphone {self.name!r} has stopped; is it still connected?") from e
            return np.zeros(0, np.float32)
        self._n_empty = 0
        return self._resampler.push(np.concatenate(blocks + self._waiting()))

    def finish(self) -> Samples:
        """Stops recording; what was heard until now and has not been read."""
        with contextlib.suppress(self._errors):  # a device that is gone cannot be stopped
            self._stream.stop()
        blocks = self._waiting()
        rest = [self._resampler.push(np.concatenate(blocks))] if blocks else []
        return np.concatenate([*rest, self._resampler.finish()])

    def _waiting(self) -> list[NDArray[np.float32]]:
        blocks = []
        with contextlib.suppress(queue.Empty):
            while True:
                blocks.append(self._blocks.get_nowait())
        return blocks

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
        self._stream.close()
