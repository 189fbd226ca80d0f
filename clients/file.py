"""Audio files and standard input as 16 kHz mono samples, block by block.

Whatever libsndfile reads is read, at any rate and channel count; channels are averaged, rates converted by
soxr. A file that ends early is transcribed as far as it goes, with a warning.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from core.audio import ENCODINGS, SAMPLE_RATE, Samples, decode_pcm

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 1
CONTAINERS = (b"RIFF", b"RIFX", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"RF64", b"\xff\xfb", b"\xff\xf3")
HEADER_SAMPLES = 2**31 - 1  # streamed WAV headers claim about this much; no length is known then


class AudioError(Exception):
    """Audio that cannot be read; the message is one line that names what was wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Source:
    """Audio about to be read. `duration_s` is None where it is not known beforehand."""

    name: str
    duration_s: float | None
    blocks: Iterator[Samples]


class Resampler:
    """Blocks of any rate and channel count to 16 kHz mono; the result does not depend on the blocks' sizes."""

    def __init__(self, sample_rate: int, channels: int = 1) -> None:
        if not 1_000 <= sample_rate <= 768_000:
            raise ValueError(f"Expected a sample rate of 1000 to 768000 Hz. Found: {sample_rate}")
        if channels < 1:
            raise ValueError(f"Expected at least 1 channel. Found: {channels}")
        self.channels = channels
        self.stream = None
        if sample_rate != SAMPLE_RATE:
            self.stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, samples: NDArray[np.float32]) -> Samples:
        """`samples` are (n,) mono or interleaved, or (n, channels)."""
        mono = np.ascontiguousarray(samples, np.float32)
        if self.channels > 1:
            mono = mono.reshape(-1, self.channels).mean(1, dtype=np.float32)
        elif mono.ndim == 2:
            mono = mono[:, 0]
        return mono if self.stream is None else np.asarray(self.stream.resample_chunk(mono), np.float32)

    def finish(self) -> Samples:
        """The samples that the filter still holds."""
        empty = np.zeros(0, np.float32)
        return empty if self.stream is None else np.asarray(self.stream.resample_chunk(empty, last=True), np.float32)


def resample(samples: NDArray[np.float32], sample_rate: int) -> Samples:
    """(n,) or (n, channels) at `sample_rate` to (n,) at 16 kHz."""
    resampler = Resampler(sample_rate, 1 if samples.ndim == 1 else samples.shape[1])
    return np.concatenate([resampler.push(samples), resampler.finish()])


def open_audio(path: str, sample_rate: int = SAMPLE_RATE, encoding: str = "pcm_s16le") -> Source:
    """A file, or standard input for `-`: a container, or raw mono samples of `sample_rate` and `encoding`.

    Raises:
        AudioError: missing, a directory, empty, or not audio. Damage further on raises while reading.
    """
    if path == "-":
        return open_stdin(sys.stdin.buffer, sample_rate, encoding)
    file = Path(path)
    if not file.exists():
        raise AudioError(f"{path}: no such file")
    if file.is_dir():
        raise AudioError(f"{path}: is a directory; name the audio files in it")
    if file.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty; expected audio")
    return open_container(path, str(file))


def open_stdin(stream: BinaryIO, sample_rate: int, encoding: str) -> Source:
    head = stream.read(4)
    if not head:
        raise AudioError("-: standard input is empty; expected a WAV file or raw samples")
    if head.startswith(CONTAINERS):
        return open_container("-", io.BytesIO(head + stream.read()))
    return Source("-", None, read_raw(stream, head, sample_rate, encoding))


def read_raw(stream: BinaryIO, head: bytes, sample_rate: int, encoding: str) -> Iterator[Samples]:
    """Raw mono samples as they arrive."""
    try:
        resampler = Resampler(sample_rate)
        width = ENCODINGS[encoding]
    except (KeyError, ValueError) as e:
        raise AudioError(f"-: {e}") from e
    read = getattr(stream, "read1", stream.read)
    pending = head
    while True:
        data = read(sample_rate * width * BLOCK_SECONDS // 10)
        pending += data
        whole = len(pending) - len(pending) % width
        samples = decode_pcm(pending[:whole], encoding)
        pending = pending[whole:]
        yield check(resampler.push(samples), "-")
        if not data:
            break
    if pending:
        logger.warning("-: the input ends within a sample; its last %d bytes are left out", len(pending))
    yield resampler.finish()


def open_container(name: str, file: str | BinaryIO) -> Source:
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as e:
        raise AudioError(f"{name}: not audio that libsndfile reads (WAV, FLAC, Ogg, MP3, …): {reason(e)}") from e
    if sound.frames == 0:
        raise AudioError(f"{name}: the audio has no samples; expected some")
    duration_s = None if sound.frames >= HEADER_SAMPLES else sound.frames / sound.samplerate
    return Source(name, duration_s, read_container(name, sound))


def reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__


def read_container(name: str, sound: soundfile.SoundFile) -> Iterator[Samples]:
    resampler = Resampler(sound.samplerate, sound.channels)
    n = 0
    with sound:
        while True:
            try:
                block = sound.read(sound.samplerate * BLOCK_SECONDS, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as e:
                if n == 0:
                    raise AudioError(f"{name}: the audio cannot be decoded: {reason(e)}") from e
                at = n / sound.samplerate
                logger.warning("%s: damaged after %.2f s, transcribed so far: %s", name, at, reason(e))
                break
            if not len(block):
                break
            n += len(block)
            yield check(resampler.push(block), name)
        # libsndfile notes it when the header promises more than the file holds.
        if n < sound.frames < HEADER_SAMPLES or "should be" in sound.extra_info:
            logger.warning("%s: truncated: transcribed the %.2f s that are there", name, n / sound.samplerate)
    yield resampler.finish()


def check(samples: Samples, name: str) -> Samples:
    """Raises AudioError where a sample is not a number."""
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds samples that are not finite numbers (NaN or infinity)")
    return samples
