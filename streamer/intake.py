"""Binary messages of one session to samples at 16 kHz; the result never depends on where messages end."""

from __future__ import annotations

import numpy as np

from clients.file import Resampler
from core.audio import ENCODINGS, Samples, decode_pcm
from core.transcript import Gap

LOUDEST = 16.0  # beyond this a float cannot be audio in [-1, 1]: rather 16-bit integers written as floats


class Intake:
    """Decodes, mixes and resamples. A sample cut in two by a message border waits for its other half.

    Args:
        split: keep the channels apart: samples are (n, channels) instead of (n,).
    """

    def __init__(self, sample_rate: int, encoding: str, channels: int, split: bool = False) -> None:
        self.sample_rate = sample_rate
        self.encoding = encoding
        self.channels = channels
        self.frame_bytes = ENCODINGS[encoding] * channels
        self.resamplers = (
            [Resampler(sample_rate) for _ in range(channels)] if split else [Resampler(sample_rate, channels)]
        )
        self.n_frames = 0  # samples a channel accepted, at `sample_rate`
        self.rest = b""  # the first bytes of a frame

    @property
    def accepted_s(self) -> float:
        """Seconds accepted; to the microsecond, so that times `sample_rate` it is the exact count."""
        return round(self.n_frames / self.sample_rate, 6)

    def push(self, data: bytes) -> tuple[Samples, list[Gap]]:
        """Samples at 16 kHz, and where the client sent numbers that are no audio (silence stands for them)."""
        data = self.rest + data
        whole = len(data) - len(data) % self.frame_bytes
        self.rest = data[whole:]
        samples = decode_pcm(data[:whole], self.encoding)
        gaps = []
        if self.encoding == "pcm_f32le":
            with np.errstate(invalid="ignore"):
                bad = ~(np.abs(samples) <= LOUDEST)
            if bad.any():
                first, last = int(bad.argmax()), len(bad) - 1 - int(bad[::-1].argmax())
                reason = f"expected float samples in [-1, 1], found {samples[first]}"
                gaps = [Gap(self.second_of(first), self.second_of(last + 1), reason)]
                samples = np.where(bad, np.float32(0), samples)
        self.n_frames += whole // self.frame_bytes
        if len(self.resamplers) == 1:
            return self.resamplers[0].push(samples), gaps
        channels = zip(self.resamplers, samples.reshape(-1, self.channels).T, strict=True)
        return np.stack([resampler.push(channel) for resampler, channel in channels], 1), gaps

    def second_of(self, index: int) -> float:
        """The time of the value with this index among those that come now."""
        return round((self.n_frames + index / self.channels) / self.sample_rate, 3)

    def forget_partial_frame(self) -> None:
        """A new connection begins at a whole frame."""
        self.rest = b""

    def finish(self) -> Samples:
        """The tail that the resampler still holds. Half a frame at the very end is no sample."""
        tails = [resampler.finish() for resampler in self.resamplers]
        return tails[0] if len(tails) == 1 else np.stack(tails, 1)
