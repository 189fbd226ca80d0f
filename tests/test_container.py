"""Containers that arrive piece by piece."""

import io
import threading

import numpy as np
import pytest

from clients.container import ContainerReader, sniff
from clients.file import AudioError
from core.audio import SAMPLE_RATE, Samples

av = pytest.importorskip("av")

TONE = (np.sin(np.arange(3 * SAMPLE_RATE) * 440 * 2 * np.pi / SAMPLE_RATE) / 2).astype(np.float32)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS = {
    "webm": ("libopus", 48000, {"live": "1"}),  # as MediaRecorder writes it
    "ogg": ("libopus", 48000, {}),
    "mp4": ("aac", 44100, FRAGMENTS),
    "flac": ("flac", 16000, {}),
    "wav": ("pcm_s16le", 16000, {}),
}


def encode(samples: Samples, kind: str) -> bytes:
    codec, rate, options = KINDS[kind]
    out = io.BytesIO()
    with av.open(out, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for resampled in av.AudioResampler(stream.format.name, "mono", rate, stream.frame_size or 1024).resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return out.getvalue()


def read(data: bytes, step: int) -> Samples:
    reader = ContainerReader()
    blocks = [reader.push(data[start : start + step])[0] for start in range(0, len(data), step)]
    return np.concatenate([*blocks, reader.finish()])


def threads() -> int:
    return sum(thread.name == "container" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_do_not_depend_on_the_pieces(kind: str) -> None:
    data = encode(TONE, kind)
    whole = read(data, len(data))
    assert abs(len(whole) - len(TONE)) < 0.1 * SAMPLE_RATE
    middle = whole[SAMPLE_RATE : 2 * SAMPLE_RATE]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(np.sqrt(1 / 8), rel=0.1)
    for step in (1000, 333):
        np.testing.assert_array_equal(read(data, step), whole)


def test_samples_come_as_their_bytes_do() -> None:
    data = encode(TONE, "webm")
    reader = ContainerReader()
    half, _ = reader.push(data[: len(data) // 2])
    assert len(half) > SAMPLE_RATE
    assert reader.accepted_s > 1.0
    reader.close()


def test_what_is_no_container() -> None:
    with pytest.raises(AudioError, match="01 00 02 00"):
        ContainerReader().push(b"\1\0\2\0" * 10)
    reader = ContainerReader()
    assert len(reader.push(b"Ogg")[0]) == len(reader.finish()) == 0
    reader = ContainerReader()
    reader.push(b"OggS" + bytes(30))
    with pytest.raises(AudioError, match="FFmpeg"):
        reader.finish()
    damaged = bytearray(encode(TONE, "webm"))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 40] = bytes(40)
    assert len(read(bytes(damaged), 500)) > SAMPLE_RATE


def test_no_thread_is_left() -> None:
    data = encode(TONE, "ogg")
    before = threads()
    reader = ContainerReader()
    reader.push(data[: len(data) // 2])
    assert threads() == before + 1
    reader.close()
    for thread in threading.enumerate():
        if thread.name == "container":
            thread.join(20)
    assert threads() == 0


def test_sniff() -> None:
    assert sniff(b"\x1a\x45\xdf\xa3") == "matroska"
    assert sniff(b"\0\0\0\x1cftypisom") == "mp4"
    assert sniff(b"\xff\xfb\x90\x64") == "mp3"
    assert sniff(b"\1\0\2\0") is None
