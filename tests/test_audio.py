from __future__ import annotations

import numpy as np
import pytest

from core.audio import (
    HOP,
    RECEPTIVE_FIELD,
    check_samples,
    decode_pcm,
    encode_pcm16,
    n_frames,
    n_samples_for,
    to_seconds,
)
from core.configuration import Wav2Vec2Config


def mulaw(code: int) -> int:
    """G.711 µ-law by the book: invert, sign, exponent, mantissa, bias 33 in 14 bits."""
    code = ~code & 0xFF
    value = ((2 * (code & 0xF) + 33) << ((code >> 4) & 7)) - 33
    return 4 * (-value if code & 0x80 else value)


def alaw(code: int) -> int:
    """G.711 A-law by the book: 13 bits."""
    code ^= 0x55
    exponent, mantissa = (code >> 4) & 7, code & 0xF
    value = 2 * mantissa + 1 if exponent == 0 else (2 * mantissa + 33) << (exponent - 1)
    return 8 * (value if code & 0x80 else -value)


@pytest.mark.parametrize(("encoding", "reference"), [("mulaw", mulaw), ("alaw", alaw)])
def test_every_g711_code(encoding: str, reference: object) -> None:
    expected = np.array([reference(code) for code in range(256)]) / 32768  # type: ignore[operator]
    np.testing.assert_array_equal(decode_pcm(bytes(range(256)), encoding), expected.astype(np.float32))


def test_pcm16_round_trip_and_clipping() -> None:
    data = np.arange(-32768, 32768, dtype="<i2").tobytes()
    assert encode_pcm16(decode_pcm(data, "pcm_s16le")) == data
    assert encode_pcm16(np.array([2, -2], np.float32)) == np.array([32767, -32768], "<i2").tobytes()


def test_float_bytes_are_taken_as_they_are() -> None:
    samples = np.array([0.25, -1.5], np.float32)
    np.testing.assert_array_equal(decode_pcm(samples.tobytes(), "pcm_f32le"), samples)


def test_frames_by_counting() -> None:
    for n in range(0, 3000, 7):
        assert n_frames(n) == sum(1 for f in range(20) if 320 * f + 400 <= n)
    for frames in range(1, 50):
        assert n_frames(n_samples_for(frames)) == frames > n_frames(n_samples_for(frames) - 1)
    assert (n_samples_for(0), to_seconds(8000)) == (0, 0.5)


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [(b"abc", "pcm_s16le", "multiple of 2"), (b"", "mp3", "pcm_s16le, pcm_f32le, mulaw, alaw")],
)
def test_errors_name_what_is_right(data: bytes, encoding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_pcm(data, encoding)


def test_checked_samples_are_a_float32_vector() -> None:
    checked = check_samples(np.arange(6, dtype=np.float64)[::2])  # type: ignore[arg-type]
    assert checked.dtype == np.float32 and checked.flags.c_contiguous and checked.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("samples", "message"),
    [([[0.0]], r"shape \(n,\)\. Found: \(1, 1\)"), ([0, 0, np.nan, np.inf], "nan at sample 2"), ([np.inf], "inf at")],
)
def test_samples_that_are_refused(samples: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_samples(np.array(samples, np.float32))


def test_receptive_field_and_hop_are_the_models() -> None:
    assert (Wav2Vec2Config().hop, Wav2Vec2Config().receptive_field) == (HOP, RECEPTIVE_FIELD)
    assert all(n_frames(n) == Wav2Vec2Config().n_frames(n) for n in range(0, 5000, 13))
