"""Audio in a container that arrives piece by piece: WebM, Ogg, MP4 in fragments, MP3, FLAC, WAV, by PyAV.

FFmpeg pulls its bytes, a connection pushes them. So the demuxer runs in a thread of its own, but never at the same time
as its owner: `push` returns when it wants more bytes than there are. What comes out depends on the bytes alone.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable

import numpy as np

from clients.file import AudioError, Resampler
from core.audio import Samples
from core.transcript import Gap

MAGIC_BYTES = 12
MOST_S = 1800.0  # of audio in what is pushed at once: silence can be packed a thousand times as tight as speech
FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"RIFF", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mp4"),
)


def can_decode() -> bool:
    """Whether PyAV, the `media` extra, is installed."""
    return importlib.util.find_spec("av") is not None


def sniff(head: bytes) -> str | None:
    """FFmpeg's name of a container by its first `MAGIC_BYTES` bytes; None where it is none of them."""
    for at, magic, name in FORMATS:
        if head[at : at + len(magic)] == magic:
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2:
        return "mp3"
    return None


class Turns:
    """Two threads of which one runs: the owner gives bytes, the demuxer works until it wants more."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.buffer = bytearray()
        self.is_complete = False  # no more bytes will come
        self.is_hungry = False  # the demuxer waits
        self.is_over = False  # the demuxer has ended
        self.blocks: list[Samples] = []  # (n,) at 16 kHz
        self.n_samples = 0  # decoded, at `rate`
        self.n_held = 0  # of them, since the last bytes were given
        self.rate = 1
        self.error = ""

    def read(self, n: int) -> bytes:
        """What FFmpeg calls; empty at the end."""
        with self.condition:
            while not self.buffer and not self.is_complete:
                self.is_hungry = True
                self.condition.notify_all()
                self.condition.wait()
            taken = bytes(self.buffer[:n])
            del self.buffer[:n]
            return taken

    def give(self, data: bytes, is_last: bool = False) -> list[Samples]:
        """Runs the demuxer on `data`; the samples that came of it."""
        with self.condition:
            if not self.is_over:
                self.buffer += data
            self.n_held = 0
            self.is_complete = self.is_complete or is_last
            self.is_hungry = False
            self.condition.notify_all()
            while not self.is_over and (not self.is_hungry or self.is_complete):
                self.condition.wait()
            blocks, self.blocks = self.blocks, []
            return blocks

    def run(self, name: str) -> None:
        """The demuxer's thread."""
        try:
            self.error = decode(name, self)
        except Exception as e:  # whatever it is, its owner waits for an end
            self.error = f"{type(e).__name__}: {e}"
        with self.condition:
            self.is_over = True
            self.condition.notify_all()

    def abandon(self) -> None:
        with self.condition:
            self.is_complete = True
            self.buffer.clear()
            self.condition.notify_all()


def decode(name: str, turns: Turns) -> str:
    """Decodes the first audio stream to `turns.blocks`; what was wrong, if nothing could be."""
    import av

    # The header tells all there is to know: no packets are held back to find out more.
    options = {"probesize": "4096", "analyzeduration": "0"}
    resampler: Resampler | None = None
    try:
        with av.open(turns, "r", format=name, options=options, buffer_size=4096) as container:
            if not container.streams.audio:
                return "no audio stream"
            for packet in container.demux(container.streams.audio[0]):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue  # a damaged packet: the next is whole
                for frame in frames:
                    samples = to_float(frame.to_ndarray(), frame.format.is_planar, frame.layout.nb_channels)
                    if resampler is None:
                        turns.rate, resampler = frame.sample_rate, Resampler(frame.sample_rate, samples.shape[1])
                    turns.n_samples += len(samples)
                    turns.n_held += len(samples)
                    if turns.n_held > MOST_S * turns.rate:
                        return f"more than {MOST_S:g} s of audio at once"
                    turns.blocks.append(resampler.push(samples))
    except (av.error.FFmpegError, EOFError, ValueError) as e:
        if resampler is None:
            return str(e)
    if resampler is None:
        return "no audio"
    turns.blocks.append(resampler.finish())
    return ""


def to_float(values: np.ndarray, is_planar: bool, channels: int) -> Samples:
    """A frame's array to (n, channels) in [-1, 1]."""
    values = values.T if is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / np.float32(128)
    if values.dtype.kind == "i":
        return values.astype(np.float32) / np.float32(-float(np.iinfo(values.dtype).min))
    return values.astype(np.float32)


class ContainerReader:
    """Bytes of one container to samples at 16 kHz, channels mixed. `close` it, or `finish`."""

    def __init__(self) -> None:
        self.head = b""
        self.turns: Turns | None = None

    @property
    def accepted_s(self) -> float:
        """Seconds decoded."""
        return 0.0 if self.turns is None else round(self.turns.n_samples / self.turns.rate, 6)

    def push(self, data: bytes) -> tuple[Samples, list[Gap]]:
        """Raises AudioError where it is no container, or one without audio that can be read."""
        if self.turns is None:
            self.head += data
            if len(self.head) < MAGIC_BYTES:
                return np.zeros(0, np.float32), []
            data = self.head
            self.turns = self.start(data)
        return self.collect(lambda turns: turns.give(data)), []

    def start(self, head: bytes) -> Turns:
        name = sniff(head)
        if name is None:
            raise AudioError(f"expected a container of audio. Found bytes {head[:4].hex(' ')}")
        turns = Turns()
        threading.Thread(target=turns.run, args=(name,), name="container", daemon=True).start()
        return turns

    def collect(self, work: Callable[[Turns], list[Samples]]) -> Samples:
        assert self.turns is not None
        blocks = work(self.turns)
        if self.turns.error:
            raise AudioError(f"expected audio that FFmpeg reads. Found: {self.turns.error}")
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def finish(self) -> Samples:
        """What the decoder still holds. Raises AudioError as `push` does."""
        if self.turns is None:
            return np.zeros(0, np.float32)
        return self.collect(lambda turns: turns.give(b"", is_last=True))

    def close(self) -> None:
        """Ends the thread, wherever the container is."""
        if self.turns is not None:
            self.turns.abandon()
