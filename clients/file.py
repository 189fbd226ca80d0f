"""Audio files and pipes as 16 kHz mono samples, block by block.

Whatever libsndfile reads is read, at any rate and channel count; channels are averaged, rates converted by
soxr. A file that ends early is transcribed as far as it goes, with a warning. Raw samples and WAV are read from a
pipe as they come; other containers once the pipe has ended, since libsndfile seeks in them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from clients.wav import HeaderReader, mp3_frame_bytes
from core.audio import ENCODINGS, SAMPLE_RATE, Samples, decode_pcm

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 1
CONTAINERS = (b"RIFF", b"RIFX", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"RF64", b"\x1a\x45\xdf\xa3")
SCHEMES = ("https://", "http://", "rtsp://")
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
        """`samples` are (n,) mono or interleaved, or (n, channels).

        Raises:
            ValueError: another number of channels, or interleaved samples that end within a frame.
        """
        mono = np.ascontiguousarray(samples, np.float32)
        if mono.ndim == 2 and mono.shape[1] != self.channels or mono.ndim > 2 or mono.size % self.channels:
            raise ValueError(f"Expected samples of {self.channels} channels. Found: shape {mono.shape}")
        mono = mono.reshape(-1) if self.channels == 1 else mono.reshape(-1, self.channels).mean(1, dtype=np.float32)
        return mono if self.stream is None else np.asarray(self.stream.resample_chunk(mono), np.float32)

    def finish(self) -> Samples:
        """The samples that the filter still holds."""
        empty = np.zeros(0, np.float32)
        return empty if self.stream is None else np.asarray(self.stream.resample_chunk(empty, last=True), np.float32)


def resample(samples: NDArray[np.float32], sample_rate: int) -> Samples:
    """(n,) or (n, channels) at `sample_rate` to (n,) at 16 kHz."""
    resampler = Resampler(sample_rate, 1 if samples.ndim == 1 else samples.shape[1])
    return np.concatenate([resampler.push(samples), resampler.finish()])


def open_audio(path: str, sample_rate: int = SAMPLE_RATE, encoding: str = "pcm_s16le", channels: int = 1) -> Source:
    """A file or address; or standard input for `-` and any other pipe: a container, or raw interleaved samples.

    Args:
        sample_rate, encoding, channels: of raw samples in a pipe. Containers tell their own.

    Raises:
        AudioError: missing, unreadable, a directory, empty, or not audio. Damage further on raises while reading.
    """
    if path == "-":
        if sys.stdin.isatty():
            raise AudioError("-: standard input is a terminal; expected audio from a file or another program")
        return open_pipe(standard_input(), sample_rate, encoding, channels)
    if path.startswith(SCHEMES):
        from clients.media import open_media

        return open_media(path)
    file, name = Path(path), printable(path)
    try:
        state = file.stat()
        if stat.S_ISDIR(state.st_mode):
            raise AudioError(f"{name}: is a directory; name the audio files in it")
        if not stat.S_ISREG(state.st_mode):  # a named pipe, or a shell's <(command)
            pipe = file.open("rb")
            source = open_pipe(pipe, sample_rate, encoding, channels, name)
            return replace(source, blocks=closing(pipe, source.blocks))
        if state.st_size == 0:
            raise AudioError(f"{name}: the file is empty; expected audio")
        file.open("rb").close()  # libsndfile does not say why it may not read
    except FileNotFoundError as e:
        raise AudioError(f"{name}: no such file") from e
    except OSError as e:
        raise AudioError(f"{name}: cannot be read: {e.strerror}") from e
    return open_container(name, str(file))


def standard_input() -> BinaryIO:
    """Its bytes, apart from `sys.stdin`, which Python closes at its end: a thread that reads there would be fatal."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # no file is behind it
        return sys.stdin.buffer


def printable(path: str) -> str:
    """A path whose bytes may be no text, with `?` for those."""
    return path.encode(errors="replace").decode()


def open_sound(file: str | BinaryIO) -> soundfile.SoundFile:
    """A path or an open file, by libsndfile, which is given the bytes of a path: they may be no text."""
    return soundfile.SoundFile(os.fsencode(file) if isinstance(file, str) and os.name == "posix" else file)


def closing(stream: BinaryIO, blocks: Iterator[Samples]) -> Iterator[Samples]:
    """`blocks`, then the end of `stream`."""
    with stream:
        yield from blocks


def open_pipe(stream: BinaryIO, sample_rate: int, encoding: str, channels: int = 1, name: str = "-") -> Source:
    """What can be read only once, from its beginning.

    Raises:
        AudioError: empty, not audio, or raw samples with an impossible rate, encoding or channel count.
    """
    head = stream.read(4)
    if not head:
        what = "standard input" if name == "-" else "the pipe"
        raise AudioError(f"{name}: {what} is empty; expected a WAV file or raw samples")
    if head.startswith(b"RIFF"):
        header = HeaderReader(head, stream.read)
        form = header.wav_format()
        if form is not None:
            return open_raw(name, stream, b"", form.sample_rate, form.encoding, form.channels, form.n_bytes)
        head = header.head
    is_container = head.startswith(CONTAINERS)
    if head[:3] == b"\0\0\0":  # silence, or the size of an MP4's first box
        head += stream.read(4)
        is_container = head[4:8] == b"ftyp"
    if n := mp3_frame_bytes(head):
        head += stream.read(n)
        is_container = mp3_frame_bytes(head[n:]) > 0
    if is_container:
        return open_container(name, io.BytesIO(head + stream.read()))
    return open_raw(name, stream, head, sample_rate, encoding, channels)


def open_raw(
    name: str, stream: BinaryIO, head: bytes, sample_rate: int, encoding: str, channels: int, n_bytes: int | None = None
) -> Source:
    """Interleaved samples, `n_bytes` of them or until the end. `head` are those that were read already."""
    try:
        resampler = Resampler(sample_rate, channels)
        width = ENCODINGS[encoding] * channels
    except (KeyError, ValueError) as e:
        raise AudioError(f"{name}: {e}") from e
    duration_s = None if n_bytes is None else n_bytes / width / sample_rate
    size = max(1, sample_rate * BLOCK_SECONDS // 10) * width
    return Source(name, duration_s, read_raw(name, stream, head, resampler, encoding, size, n_bytes))


def read_raw(
    name: str, stream: BinaryIO, head: bytes, resampler: Resampler, encoding: str, size: int, n_bytes: int | None
) -> Iterator[Samples]:
    """Blocks of at most `size` bytes, as they arrive."""
    read = getattr(stream, "read1", stream.read)
    width = ENCODINGS[encoding] * resampler.channels
    pending, n = head, len(head)
    while True:
        data = read(size if n_bytes is None else min(size, n_bytes - n))
        pending, n = pending + data, n + len(data)
        whole = len(pending) - len(pending) % width
        yield check(resampler.push(decode_pcm(pending[:whole], encoding)), name)
        pending = pending[whole:]
        if not data:
            break
    if n_bytes is not None and n < n_bytes:
        logger.warning("%s: truncated: transcribed the %d of %d bytes that are there", name, n, n_bytes)
    elif pending:
        logger.warning("%s: the input ends within a sample; its last %d bytes are left out", name, len(pending))
    yield resampler.finish()


def open_container(name: str, file: str | BinaryIO) -> Source:
    try:
        sound = open_sound(file)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as e:
        from clients.media import is_installed, open_media

        hint = "; M4A, WebM and more need pip install 'streamer[media]'"
        if is_installed():
            hint = ""
            if not isinstance(file, str):
                file.seek(0)
            with contextlib.suppress(AudioError):
                return open_media(name, file)
        text = f"{name}: not audio that libsndfile reads (WAV, FLAC, Ogg, MP3, …): {reason(e)}{hint}"
        raise AudioError(text) from e
    if sound.frames == 0:
        raise AudioError(f"{name}: the audio has no samples; expected some")
    try:
        resampler = Resampler(sound.samplerate, sound.channels)
    except ValueError as e:
        raise AudioError(f"{name}: {e}") from e
    duration_s = None if sound.frames >= HEADER_SAMPLES else sound.frames / sound.samplerate
    return Source(name, duration_s, read_container(name, sound, resampler))


def reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__


def read_container(name: str, sound: soundfile.SoundFile, resampler: Resampler) -> Iterator[Samples]:
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
        # libsndfile notes it when the header promises more than the file holds: "data : 8000 (should be 4000)".
        if n < sound.frames < HEADER_SAMPLES or "(should be" in sound.extra_info:
            logger.warning("%s: truncated: transcribed the %.2f s that are there", name, n / sound.samplerate)
    yield resampler.finish()


def check(samples: Samples, name: str) -> Samples:
    """Raises AudioError where a sample is not a number."""
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds samples that are not finite numbers (NaN or infinity)")
    return samples
