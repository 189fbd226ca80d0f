"""Files that libsndfile does not read (MP4, WebM) and addresses (`https://`, `rtsp://`), by PyAV: extra `[media]`.

FFmpeg reads and waits by itself, so a live address goes on until it ends.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from clients.container import to_float
from clients.file import AudioError, Resampler, Source, check
from core.audio import Samples

if TYPE_CHECKING:
    from av.container import InputContainer

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # without a byte


def is_installed() -> bool:
    return importlib.util.find_spec("av") is not None


def open_media(name: str, file: str | BinaryIO | None = None) -> Source:
    """A path, an address (`clients.file.SCHEMES`), or an open `file`, which `name` stands for in messages.

    Raises:
        AudioError: PyAV is absent, the place cannot be read, or holds no audio.
    """
    try:
        import av
    except ImportError as e:
        raise AudioError(f"{name}: expected PyAV, to read it. Found: none; pip install 'streamer[media]'") from e
    try:
        container = av.open(name if file is None else file, "r", timeout=TIMEOUT_S)
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise AudioError(f"{name}: expected audio that FFmpeg reads. Found: {e}") from e
    if not container.streams.audio:
        container.close()
        raise AudioError(f"{name}: expected an audio stream. Found: none")
    duration_s = None if container.duration is None else container.duration / av.time_base
    return Source(name, duration_s, read_media(name, container))


def read_media(name: str, container: InputContainer) -> Iterator[Samples]:
    import av

    resampler: Resampler | None = None
    with container:
        try:
            for frame in container.decode(container.streams.audio[0]):
                samples = to_float(frame.to_ndarray(), frame.format.is_planar, frame.layout.nb_channels)
                resampler = resampler or Resampler(frame.sample_rate, samples.shape[1])
                yield check(resampler.push(samples), name)
        except (av.error.FFmpegError, OSError, ValueError) as e:
            if resampler is None:
                raise AudioError(f"{name}: the audio cannot be decoded: {e}") from e
            logger.warning("%s: damaged, transcribed so far: %s", name, e)
    if resampler is None:
        raise AudioError(f"{name}: the audio has no samples; expected some")
    yield resampler.finish()
