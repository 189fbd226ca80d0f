"""The sound of a live session in a WAV file whose header is right after every write, so that a kill costs nothing."""

from __future__ import annotations

import wave
from types import TracebackType
from typing import Self

import numpy as np

from core.audio import SAMPLE_RATE, Samples, encode_pcm16

LONGEST = (2**32 - 1 - 36) // 2  # samples, 37 hours: a WAV header counts bytes in 32 bits, its own among them
SILENCE = SAMPLE_RATE * 60  # samples of a loss that are written at once


class Recording:
    """16 kHz mono, 16 bit: what was recognised. Losses are silence, so that the transcript's times fit.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = open(path, "wb")  # noqa: SIM115
        except OSError as e:
            raise OSError(f"cannot write {path}: {e.strerror}") from e
        self._wave = wave.open(self._file, "wb")
        self._wave.setnchannels(1)
        self._wave.setsampwidth(2)
        self._wave.setframerate(SAMPLE_RATE)
        self.push(np.zeros(0, np.float32))

    def push(self, samples: Samples) -> None:
        """Raises OSError where nothing can be written any more, or the file is full."""
        if self._wave.tell() + len(samples) > LONGEST:
            raise OSError(f"a WAV file holds at most {LONGEST / SAMPLE_RATE / 3600:.0f} hours")
        self._wave.writeframes(encode_pcm16(samples))  # it corrects the header's lengths each time
        self._file.flush()

    def skip(self, seconds: float) -> None:
        """Silence where sound was lost."""
        left = round(seconds * SAMPLE_RATE)
        while left > 0:
            self.push(np.zeros(min(left, SILENCE), np.float32))
            left -= SILENCE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wave.close()
        self._file.close()
