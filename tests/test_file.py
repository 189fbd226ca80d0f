from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.file import AudioError, Resampler, open_audio, open_stdin, resample

TONE = (0.4 * np.sin(np.arange(44_100) * 2 * np.pi * 440 / 44_100)).astype(np.float32)


def read(path: Path | str) -> np.ndarray:
    return np.concatenate(list(open_audio(str(path)).blocks))


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


def test_raw_standard_input_and_a_container_on_it() -> None:
    pcm = (np.arange(-8000, 8000, dtype="<i2")).tobytes()
    source = open_stdin(io.BytesIO(pcm), 16_000, "pcm_s16le")
    out = np.concatenate(list(source.blocks))
    np.testing.assert_array_equal(out, np.arange(-8000, 8000, dtype=np.float32) / 32768)
    wav = io.BytesIO()
    soundfile.write(wav, TONE, 44_100, format="WAV")
    source = open_stdin(io.BytesIO(wav.getvalue()), 16_000, "pcm_s16le")
    assert abs(sum(map(len, source.blocks)) - 16_000) <= 1
    with pytest.raises(AudioError, match="standard input is empty"):
        open_stdin(io.BytesIO(b""), 16_000, "pcm_s16le")
    with pytest.raises(AudioError, match="sample rate"):
        list(open_stdin(io.BytesIO(pcm), 3, "pcm_s16le").blocks)


def test_half_a_sample_at_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        out = np.concatenate(list(open_stdin(io.BytesIO(b"\0" * 2001), 16_000, "pcm_s16le").blocks))
    assert len(out) == 1000
    assert "ends within a sample" in caplog.text
