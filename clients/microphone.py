"""The microphone as 16 kHz mono samples, through PortAudio.

The audio callback only hands its block over; a reader that is late finds the blocks waiting, and what the
queue cannot hold is counted as an overrun and told at its place in the audio, never lost silently.
"""

from __future__ import annotations

import contextlib
import queue
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clients.devices import Device, portaudio
from clients.devices import MicrophoneError as MicrophoneError
from clients.file import Resampler
from clients.pulse import pulse_source
from core.audio import Samples

BLOCK_MS = 50
QUEUE_SECONDS = 30
WAIT_S = 0.1  # for the next block, before the reader may look at the keyboard
STALLED_S = 5.0  # without a block: the device has gone
SILENT_S = 1.0  # without a block, where a device gives none for silence


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What came since the last reading: first the loss, if any, then the samples."""

    samples: Samples
    lost_s: float = 0.0
    reason: str = ""  # of the loss


NOTHING = Heard(np.zeros(0, np.float32))


class Microphone:
    """A running microphone. `with Microphone(find_device(None)) as mic: heard = mic.read()`."""

    def __init__(self, device: Device) -> None:
        self.name = device.name
        self.falls_silent = device.falls_silent
        self.n_overruns = 0  # blocks
        self.last_heard = time.monotonic()
        self._lost_frames = 0  # since the last block that was handed over
        self._has_ended = False
        self._rate, self._channels = device.sample_rate, device.channels
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
                quiet_s = time.monotonic() - self.last_heard
                if self._has_ended or quiet_s > STALLED_S and not self.falls_silent:
                    raise MicrophoneError(f"the microphone {self.name!r} has stopped; is it still connected?") from e
                return self._silence(quiet_s) if quiet_s > SILENT_S and self.falls_silent else NOTHING
        self.last_heard = time.monotonic()
        return self._waiting()

    def _silence(self, seconds: float) -> Heard:
        """In place of the blocks that nothing plays into: the last words end, and the clock goes on."""
        self.last_heard += seconds
        return Heard(self._resampler.push(np.zeros((int(seconds * self._rate), self._channels), np.float32)))

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
        return self._after(lost, samples)

    def _after(self, lost: int, samples: Samples) -> Heard:
        """Samples before which so many frames were lost."""
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
        lost, self._lost_frames = self._lost_frames, 0  # after the last block that had room
        return [*rest, Heard(self._resampler.finish()), self._after(lost, NOTHING.samples)]

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
