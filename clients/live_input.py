"""Where live audio comes from: a microphone that may go away and come back, or a file that is played."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from clients.devices import (
    Device,
    MicrophoneError,
    find_again,
    find_device,
    find_system_audio,
    hears_outputs,
    input_keys,
    key_of,
    portaudio,
    rescan,
)
from clients.microphone import NOTHING, WAIT_S, Heard, Microphone
from clients.pulse import has_gone
from core.audio import SAMPLE_RATE, Samples

RETRY_S = 2.0  # between looks for a device that went away
DEAF_S = 5.0  # of samples that are all 0, which no microphone gives
PACKET = SAMPLE_RATE // 20  # samples of a played file at once
PACKET_S = PACKET / SAMPLE_RATE


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

    def pause(self, is_paused: bool) -> None:
        """What can wait does; a microphone is read on, and nobody listens."""

    def switch(self) -> str:
        """To the next device, if there is another; what to tell of it."""

    def finish(self) -> list[Heard]: ...


class SteadyMicrophone:
    """A microphone through unplugging and return: the session goes on, what was missed is told as a loss."""

    def __init__(self, name: str | None = None, is_system_audio: bool = False) -> None:
        """Raises MicrophoneError where there is none to begin with."""
        self._find: Callable[[], Device] = find_system_audio if is_system_audio else partial(find_device, name)
        self._microphone: Microphone | None = None
        self._n_overruns = 0  # of microphones that are closed
        self._left: deque[Heard] = deque()  # of microphones that are closed
        self._missed_from = self._next_try = self._next_check = self._sounded_at = 0.0
        self.has_ended = False
        self._listen(self._find())
        if name is not None:
            self._find = partial(find_again, self._device)

    def _listen(self, device: Device) -> None:
        """Raises MicrophoneError where it cannot be opened."""
        self._microphone = Microphone(device).__enter__()
        self._device, self.name, self.trouble = device, device.name, ""
        self._may_be_silent = hears_outputs(device)
        self._sounded_at = time.monotonic()

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
            return self._watched(self._microphone.read())
        except MicrophoneError as e:
            self.trouble = str(e)
            self._missed_from = self._microphone.last_heard
            self._next_try = time.monotonic()
            self._close()
            return NOTHING

    def pause(self, is_paused: bool) -> None:
        """It is read on."""

    def _check(self) -> None:
        """Raises MicrophoneError where the source has gone, now and then."""
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + RETRY_S
            if has_gone(self._device.source):
                raise MicrophoneError(f"the microphone {self.name!r} has stopped; is it still connected?")

    def _watched(self, heard: Heard) -> Heard:
        """Notices a microphone that is muted, or that this program may not hear: macOS gives it zeros then."""
        if heard.samples.any() or self._may_be_silent:
            self.trouble, self._sounded_at = "", time.monotonic()
        elif time.monotonic() > self._sounded_at + DEAF_S:
            self.trouble = f"{self.name} gives nothing but silence; is it muted, or not allowed to be heard?"
        return heard

    def _look(self) -> Heard:
        """Looks for the device that went away, now and then."""
        if time.monotonic() < self._next_try:
            time.sleep(WAIT_S)
            return NOTHING
        before = self.name
        try:
            rescan()
            self._listen(self._find())
        except MicrophoneError:
            self._next_try = time.monotonic() + RETRY_S
            return NOTHING
        other = f"; {self.name!r} is heard now" if self.name != before else ""
        return self._missed(self._missed_from, f"the microphone {before!r} was away{other}")

    def _missed(self, since: float, reason: str) -> Heard:
        return Heard(NOTHING.samples, round(time.monotonic() - since, 3), reason)

    def switch(self) -> str:
        since = time.monotonic() if self._microphone else self._missed_from
        self._close()
        for key in self._others():
            with contextlib.suppress(MicrophoneError):
                self._listen(find_device(key))
                self._find = partial(find_again, self._device)
                self._left.append(self._missed(since, f"the microphone was changed to {self.name!r}"))
                return f"listening to {self.name}"
        self.trouble, self._missed_from, self._next_try = "no microphone can be opened", since, since
        return "no other microphone can be opened"

    def _others(self) -> list[str]:
        """The keys of the other microphones, in turn."""
        try:
            rescan()  # one that has just been plugged in
            keys = input_keys()
        except MicrophoneError:
            return []
        with contextlib.suppress(MicrophoneError):
            here = key_of(find_again(self._device))
            if here in keys:
                at = keys.index(here)
                return [*keys[at + 1 :], *keys[:at]]
        return keys

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
        self.is_paused = False
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
        if self.is_paused:
            return
        try:
            part = self._parts.popleft()
        except IndexError:
            return
        block[: len(part), 0] = part

    def play(self, samples: Samples) -> None:
        """At most `PACKET` samples."""
        if self._stream is not None:
            self._parts.append(samples)

    @property
    def left_s(self) -> float:
        """Seconds that are still to be heard."""
        return len(self._parts) * PACKET_S

    def close(self) -> None:
        """What is left is not heard."""
        if self._stream is not None:
            if not self._parts:  # the last of it is with the sound system
                self._stream.stop()
            self._stream.close()


def packets(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """`PACKET` samples each but for the last, however the blocks are cut: the loudspeaker takes as long for any."""
    rest = NOTHING.samples
    for block in blocks:
        rest = np.concatenate([rest, block])
        n = len(rest) // PACKET * PACKET
        yield from rest[:n].reshape(-1, PACKET)
        rest = rest[n:]
    if len(rest):
        yield rest


class PlayedFile:
    """A file heard as it would be from a microphone; the loudspeaker follows `delay_s` later, with the captions."""

    def __init__(self, name: str, blocks: Iterator[Samples], delay_s: float = 0.0, is_audible: bool = True) -> None:
        self.name = name
        self.n_overruns = 0
        self.has_ended = False
        self._speaker = Speaker() if is_audible else None
        self.trouble = ""
        self.note = self._speaker.trouble if self._speaker else ""  # why it is not heard
        self._packets = packets(blocks)
        self._start = 0.0  # on the clock, where the file would have begun
        self._n = 0  # samples given
        self._paused_at: float | None = None
        self._ends = 0.0  # on the clock, when all was given and must have been heard
        self._delay_s = delay_s

    @property
    def waiting_s(self) -> float:
        if not self._start or self._ends or self._paused_at is not None:
            return 0.0
        return max(0.0, time.monotonic() - self._start - self._n / SAMPLE_RATE)

    def read(self) -> Heard:
        """The next packet, when it would have been heard."""
        if self._paused_at is not None:
            time.sleep(PACKET_S)
            return NOTHING
        packet = None if self._ends else next(self._packets, None)
        if packet is None:
            self._end()
            return NOTHING
        if not self._start:
            self._begin()
        if self._speaker:
            self._speaker.play(packet)
        self._n += len(packet)
        time.sleep(max(0.0, self._start + self._n / SAMPLE_RATE - time.monotonic()))
        return Heard(packet)

    def _begin(self) -> None:
        self._start = time.monotonic()
        if self._speaker:
            for _ in range(int(self._delay_s / PACKET_S)):
                self._speaker.play(np.zeros(PACKET, np.float32))

    def _end(self) -> None:
        """All was given; it has ended when the loudspeaker has played it."""
        left_s = self._speaker.left_s if self._speaker else 0.0
        self._ends = self._ends or time.monotonic() + left_s + 1
        self.has_ended = not left_s or time.monotonic() > self._ends  # or it plays no more
        if not self.has_ended:
            time.sleep(PACKET_S)

    def pause(self, is_paused: bool) -> None:
        """Stops and goes on, the loudspeaker too."""
        now = time.monotonic()
        if is_paused and self._paused_at is None:
            self._paused_at = now
        elif not is_paused and self._paused_at is not None:
            for_s, self._paused_at = now - self._paused_at, None
            self._start += for_s if self._start else 0.0
            self._ends += for_s if self._ends else 0.0
        if self._speaker:
            self._speaker.is_paused = is_paused

    def switch(self) -> str:
        return "a file has no other device"

    def finish(self) -> list[Heard]:
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._speaker:
            self._speaker.close()
