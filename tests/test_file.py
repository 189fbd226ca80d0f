from __future__ import annotations

import io
import logging
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.file import AudioError, Resampler, open_audio, open_pipe, resample

TONE = (0.4 * np.sin(np.arange(44_100) * 2 * np.pi * 440 / 44_100)).astype(np.float32)


def read(path: Path | str) -> np.ndarray:
    return np.concatenate(list(open_audio(str(path)).blocks))


def read_pipe(data: bytes, channels: int = 1) -> np.ndarray:
    return np.concatenate(list(open_pipe(io.BytesIO(data), 16_000, "pcm_s16le", channels).blocks))


def wav(samples: np.ndarray, rate: int = 16_000, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=options.pop("format", "WAV"), **options)
    return file.getvalue()


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 6000), max_size=12), rate=st.sampled_from([8000, 22_050, 44_100, 48_000]))
def test_resampling_does_not_depend_on_the_blocks(cuts: list[int], rate: int) -> None:
    samples = np.random.default_rng(0).standard_normal(6000).astype(np.float32)
    resampler = Resampler(rate)
    edges = [0, *sorted(cuts), 6000]
    parts = [resampler.push(samples[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate([*parts, resampler.finish()]), resample(samples, rate))


def test_a_tone_stays_a_tone() -> None:
    out = resample(TONE, 44_100)
    assert abs(len(out) - 16_000) <= 1
    expected = 0.4 * np.sin(np.arange(len(out)) * 2 * np.pi * 440 / 16_000)
    assert np.abs(out - expected)[200:-200].max() < 1e-3


def test_channels_are_averaged_and_16_khz_is_untouched() -> None:
    stereo = np.stack([TONE, -TONE], 1)
    assert np.abs(resample(stereo, 44_100)).max() < 1e-6
    np.testing.assert_array_equal(resample(TONE, 16_000), TONE)


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 16_000), ("flac", 48_000), ("ogg", 22_050), ("mp3", 44_100)])
def test_formats(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    samples = (0.4 * np.sin(np.arange(2 * rate) * 2 * np.pi * 440 / rate)).astype(np.float32)
    soundfile.write(path, samples, rate)
    source = open_audio(str(path))
    assert source.duration_s == pytest.approx(2, abs=0.1)
    out = np.concatenate(list(source.blocks))
    assert len(out) == pytest.approx(32_000, abs=1600)
    assert np.sqrt(np.mean(out**2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"these are words, not sounds" * 9, "not audio"), (b"RIFF\x00\x00", "not audio")],
)
def test_what_is_no_audio_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_missing_directory_and_no_samples(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        read(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="is a directory"):
        read(tmp_path)
    soundfile.write(tmp_path / "zero.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match="no samples"):
        read(tmp_path / "zero.wav")


@pytest.mark.parametrize("rate", [800, 999_999])
def test_a_rate_beyond_all_bounds_is_named_with_the_file(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "odd.wav", TONE, rate)
    for wrong in (lambda: open_audio(str(tmp_path / "odd.wav")), lambda: read_pipe(wav(TONE, rate))):
        with pytest.raises(
            AudioError, match=f"(odd.wav|-): Expected a sample rate of 1000 to 768000 Hz. Found: {rate}"
        ):
            wrong()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of files are text elsewhere")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(path, "wb") as file:
        file.write(wav(TONE, 16_000))
    source = open_audio(os.fsdecode(path))
    assert source.name == f"{tmp_path}/caf?.wav"
    assert sum(map(len, source.blocks)) == len(TONE)
    with open(path, "wb") as file:
        file.write(b"these are words, not sounds" * 9)
    with pytest.raises(AudioError, match=r"caf\?.wav: not audio"):
        open_audio(os.fsdecode(path))
    os.remove(path)
    with pytest.raises(AudioError, match=r"caf\?.wav: no such file"):
        open_audio(os.fsdecode(path))


def test_nan_samples_are_refused(tmp_path: Path) -> None:
    samples = TONE.copy()
    samples[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        read(tmp_path / "nan.wav")


def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "whole.wav", TONE, 16_000)
    whole = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        out = read(tmp_path / "cut.wav")
    assert len(out) == pytest.approx(len(TONE) / 2, abs=40)
    assert "truncated" in caplog.text


def test_a_whole_file_of_odd_size_is_not_truncated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """libsndfile's note on it also says what should be."""
    data = bytearray(wav(TONE[:4001], subtype="PCM_U8"))
    at = data.index(b"data") + 8
    del data[at + 4001 :]  # as many programs write it, without a byte of padding
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    (tmp_path / "odd.wav").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path / "odd.wav")) == 4001
    assert not caplog.text


def test_raw_standard_input_and_a_container_on_it() -> None:
    pcm = (np.arange(-8000, 8000, dtype="<i2")).tobytes()
    source = open_pipe(io.BytesIO(pcm), 16_000, "pcm_s16le")
    out = np.concatenate(list(source.blocks))
    np.testing.assert_array_equal(out, np.arange(-8000, 8000, dtype=np.float32) / 32768)
    source = open_pipe(io.BytesIO(wav(TONE, 44_100)), 16_000, "pcm_s16le")
    assert abs(sum(map(len, source.blocks)) - 16_000) <= 1
    with pytest.raises(AudioError, match="at least 1 channel"):
        read_pipe(pcm, channels=0)
    np.testing.assert_array_equal(read_pipe(pcm, channels=2), out.reshape(-1, 2).mean(1))
    with pytest.raises(AudioError, match="standard input is empty"):
        open_pipe(io.BytesIO(b""), 16_000, "pcm_s16le")
    with pytest.raises(AudioError, match="sample rate"):
        list(open_pipe(io.BytesIO(pcm), 3, "pcm_s16le").blocks)


def test_half_a_sample_at_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        out = np.concatenate(list(open_pipe(io.BytesIO(b"\0" * 2001), 16_000, "pcm_s16le").blocks))
    assert len(out) == 1000
    assert "ends within a sample" in caplog.text


FORMS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "ALAW"), ("WAVEX", "PCM_16"),
    ("WAV", "PCM_24"), ("WAV", "PCM_U8"), ("RF64", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("OGG", "VORBIS"),
    ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_a_pipe_gives_the_file_s_samples(tmp_path: Path, form: str, subtype: str) -> None:
    stereo = np.stack([TONE, 0.5 * TONE], 1)
    data = wav(stereo, 44_100, format=form, subtype=subtype)
    (tmp_path / "tone").write_bytes(data)
    np.testing.assert_array_equal(read_pipe(data), read(tmp_path / "tone"))


class Live(io.BytesIO):
    """A pipe whose writer has not ended: reading beyond what was written would wait for ever."""

    def read(self, n: int | None = -1) -> bytes:
        assert n is not None and 0 <= n <= len(self.getbuffer()) - self.tell(), "would wait"
        return super().read(n)

    def read1(self, n: int | None = -1) -> bytes:
        assert self.tell() < len(self.getbuffer()), "would wait"
        return super().read1(n)


@pytest.mark.parametrize("size", [0, 0x7FFF_FFF0, 0xFFFF_FFFF])
def test_wav_in_a_pipe_is_heard_before_its_end(size: int) -> None:
    data = wav(TONE, subtype="PCM_16")
    at = data.index(b"data") + 4
    live = Live(data[:at] + size.to_bytes(4, "little") + data[at + 4 :])
    source = open_pipe(live, 16_000, "pcm_s16le")
    assert source.duration_s is None
    heard = 0
    while heard < len(TONE):
        heard += len(next(source.blocks))
    assert heard == len(TONE)


def test_what_follows_the_samples_of_a_wav_pipe_is_no_audio(caplog: pytest.LogCaptureFixture) -> None:
    data = wav(TONE, subtype="PCM_16")
    assert len(read_pipe(data + b"LIST" + bytes(4000))) == len(TONE)
    assert not caplog.text
    assert len(read_pipe(data[: len(data) // 2])) == pytest.approx(len(TONE) / 2, abs=40)
    assert "truncated" in caplog.text


@pytest.mark.parametrize("data", [b"RIFF", b"RIFF\0\0\0\0WAVEfmt ", b"RIFF\0\0\0\0AVI LIST", b"fLaC\0\0", b"OggS"])
def test_a_broken_header_in_a_pipe_is_named(data: bytes) -> None:
    with pytest.raises(AudioError, match="not audio"):
        read_pipe(data)


def test_raw_samples_that_look_like_mp3_are_raw() -> None:
    samples = np.full(8000, -1025, "<i2")  # ff fb, the first bits of an MPEG frame
    samples[1] = 0x0090
    assert samples.tobytes().startswith(b"\xff\xfb\x90\x00")
    np.testing.assert_array_equal(read_pipe(samples.tobytes()), samples.astype(np.float32) / 32768)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(wav(TONE, 44_100),))
    writer.start()
    assert abs(len(read(path)) - 16_000) <= 1
    writer.join()


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(wav(TONE))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match="cannot be read: Permission denied"):
        read(tmp_path / "a.wav")


def test_channel_counts_must_fit() -> None:
    with pytest.raises(ValueError, match="1 channels. Found: shape"):
        Resampler(16_000).push(np.zeros((10, 2), np.float32))
    with pytest.raises(ValueError, match="2 channels"):
        Resampler(16_000, 2).push(np.zeros(11, np.float32))
