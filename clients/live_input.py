"""Where live audio comes from: a microphone that may go away and come back, or a file that is played."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from clients.microphone import (
    NOTHING,
    WAIT_S,
    Heard,
    Microphone,
    MicrophoneError,
    find_system_audio,
    input_names,
    portaudio,
    rescan,
)
from clients.pulse import has_gone
from core.audio import SAMPLE_RATE, Samples

RETRY_S = 2.0  # between looks for a device that went away
PACKET = SAMPLE_RATE // 20  # samples of a played file at once


class LiveInput(Protocol):
    """What a live session reads."""

    @property
    def name(self) -> str: ...

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait to be read."""

    @property
    def n_overruns(self) -> int: ...

    @property
    def trouble(self) -> str:
        """Why nothing is heard; empty where all is well."""

    @property
    def has_ended(self) -> bool: ...

    def read(self) -> Heard: ...

    def switch(self) -> None:
        """To the next device, if there is another."""

    def finish(self) -> list[Heard]: ...


class SteadyMicrophone:
    """A microphone through unplugging and return: the session goes on, what was missed is told as a loss."""

    def __init__(self, name: str | None = None, is_system_audio: bool = False) -> None:
        """Raises MicrophoneError where there is none to begin with."""
        self._choice = find_system_audio() if is_system_audio else name
        self._microphone: Microphone | None = self._open(self._choice)
        self._n_overruns = 0  # of microphones that are closed
        self._left: deque[Heard] = deque()  # of microphones that are closed
        self._missed_from = self._next_try = self._next_check = 0.0
        self.trouble = ""
        self.name = self._microphone.name if self._microphone else ""
        self.has_ended = False

    def _open(self, choice: str | None) -> Microphone:
        return Microphone(choice).__enter__()

    @property
    def waiting_s(self) -> float:
        return self._microphone.waiting_s if self._microphone else 0.0

    @property
    def n_overruns(self) -> int:
        return self._n_overruns + (self._microphone.n_overruns if self._microphone else 0)

    def read(self) -> Heard:
        """Waits a moment at most."""
        if self._left:
            return self._left.popleft()
        if self._microphone is None:
            return self._look()
        try:
            self._check()
            return self._microphone.read()
        except MicrophoneError as e:
            self.trouble = str(e)
            self._missed_from = self._microphone.last_heard
            self._next_try = time.monotonic()
            self._close()
            return NOTHING

    def _check(self) -> None:
        """Raises MicrophoneError where the chosen source has gone, now and then."""
        if self._choice is not None and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + RETRY_S
            if has_gone(self._choice):
                raise MicrophoneError(f"the microphone {self.name!r} has stopped; is it still connected?")

    def _look(self) -> Heard:
        """Looks for the device that went away, now and then."""
        if time.monotonic() < self._next_try:
            time.sleep(WAIT_S)
            return NOTHING
        try:
            rescan()
            self._microphone = self._open(self._choice)
        except MicrophoneError:
            self._next_try = time.monotonic() + RETRY_S
            return NOTHING
        self.trouble = ""
        missed = round(time.monotonic() - self._missed_from, 3)
        return Heard(NOTHING.samples, missed, f"the microphone {self.name!r} was away")

    def switch(self) -> None:
        names = input_names()
        at = names.index(self._choice) if self._choice in names else -1
        since = time.monotonic()
        self._close()
        for name in [*names[at + 1 :], *names[: at + 1]]:
            with contextlib.suppress(MicrophoneError):
                self._microphone = self._open(name)
                self._choice, self.name = name, self._microphone.name
                self.trouble = ""
                lost_s = round(time.monotonic() - since, 3)
                self._left.append(Heard(NOTHING.samples, lost_s, f"the microphone was changed to {self.name!r}"))
                return
        self.trouble, self._missed_from, self._next_try = "no other microphone can be opened", since, since

    def _close(self) -> None:
        if self._microphone is not None:
            self._left.extend(self._microphone.finish())
            self._n_overruns += self._microphone.n_overruns
            self._microphone.__exit__(None, None, None)
            self._microphone = None

    def finish(self) -> list[Heard]:
        """Stops; what was heard and has not been read."""
        self._close()
        left = list(self._left)
        self._left.clear()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class Speaker:
    """Plays 16 kHz samples; a silent one where there is no device for it."""

    def __init__(self) -> None:
        self._parts: deque[Samples] = deque()
        self._stream: Any = None
        self.trouble = ""
        try:
            sounddevice = portaudio()
            self._stream = sounddevice.OutputStream(
                samplerate=SAMPLE_RATE, channels=1, dtype="float32", blocksize=PACKET, callback=self._give
            )
            self._stream.start()
        except MicrophoneError as e:
            self.trouble = str(e)
        except sounddevice.PortAudioError as e:
            self.trouble = f"no loudspeaker: {e}"

    def _give(self, block: Samples, n: int, time: object, status: object) -> None:
        """PortAudio's thread."""
        block[:] = 0
        try:
            part = self._parts.popleft()
        except IndexError:
            return
        block[: len(part), 0] = part

    def play(self, samples: Samples) -> None:
        """At most `PACKET` samples."""
        if self._stream is not None:
            self._parts.append(samples)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class PlayedFile:
    """A file heard as it would be from a microphone; the loudspeaker follows `delay_s` later, with the captions."""

    def __init__(self, name: str, blocks: Iterator[Samples], delay_s: float = 0.0, is_audible: bool = True) -> None:
        self.name = name
        self.n_overruns = 0
        self.has_ended = False
        self._speaker = Speaker() if is_audible else None
        self.trouble = ""
        self.note = self._speaker.trouble if self._speaker else ""  # why it is not heard
        self._packets = (block[at : at + PACKET] for block in blocks for at in range(0, len(block), PACKET))
        self._start = 0.0
        self._n = 0  # samples given
        if self._speaker:
            for _ in range(int(delay_s * SAMPLE_RATE / PACKET)):
                self._speaker.play(np.zeros(PACKET, np.float32))

    @property
    def waiting_s(self) -> float:
        return max(0.0, time.monotonic() - self._start - self._n / SAMPLE_RATE) if self._start else 0.0

    def read(self) -> Heard:
        """The next packet, when it would have been heard."""
        packet = next(self._packets, None)
        if packet is None:
            self.has_ended = True
            return NOTHING
        if self._speaker:
            self._speaker.play(packet)
        self._start = self._start or time.monotonic()
        self._n += len(packet)
        time.sleep(max(0.0, self._start + self._n / SAMPLE_RATE - time.monotonic()))
        return Heard(packet)

    def switch(self) -> None:
        """A file has no other device."""

    def finish(self) -> list[Heard]:
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._speaker:
            self._speaker.close()
