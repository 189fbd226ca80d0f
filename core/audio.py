"""Samples: the units of the stream, and how bytes become float32 samples in [-1, 1].

G.711 follows ITU-T G.711 (1988). Left out: resampling, which needs state and a library (`clients/file.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

SAMPLE_RATE = 16_000  # samples per second
HOP = 320  # samples between two frames: 20 ms
RECEPTIVE_FIELD = 400  # samples that one frame sees: 25 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP  # 50

ENCODINGS = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}  # bytes a sample


def n_frames(n_samples: int) -> int:
    """Frames that see whole `n_samples` samples: frame f sees [320 f, 320 f + 400)."""
    return max(0, (n_samples - RECEPTIVE_FIELD) // HOP + 1)


def n_samples_for(frames: int) -> int:
    """Fewest samples that make `frames` frames: the inverse of `n_frames`."""
    return (frames - 1) * HOP + RECEPTIVE_FIELD if frames > 0 else 0


def frames_in(ms: int) -> int:
    """Whole frames in a time, one at least."""
    return max(1, ms * SAMPLE_RATE // 1000 // HOP)


def to_seconds(n_samples: int) -> float:
    """Seconds, rounded to the millisecond: for what leaves, never for arithmetic."""
    return round(n_samples / SAMPLE_RATE, 3)


def _mulaw_table() -> Samples:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> Samples:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = (code & 0x70) >> 4, code & 0x0F
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa << 4) + 0x108 << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)


_G711 = {"mulaw": _mulaw_table(), "alaw": _alaw_table()}


def from_int16(samples: NDArray[np.int16]) -> Samples:
    """16-bit samples to float32 in [-1, 1)."""
    return samples.astype(np.float32) / np.float32(32768)


def decode_pcm(data: bytes, encoding: str) -> Samples:
    """Bytes of one channel (or interleaved channels) to float32 samples in [-1, 1].

    Raises:
        ValueError: unknown encoding, or the bytes end within a sample.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"Expected an encoding of {', '.join(ENCODINGS)}. Found: {encoding!r}")
    if len(data) % ENCODINGS[encoding]:
        raise ValueError(f"Expected a multiple of {ENCODINGS[encoding]} bytes of {encoding}. Found: {len(data)}")
    if encoding == "pcm_s16le":
        return from_int16(np.frombuffer(data, "<i2"))
    if encoding == "pcm_f32le":
        return np.frombuffer(data, "<f4").astype(np.float32)
    table = _G711[encoding]
    return table[np.frombuffer(data, np.uint8)]


def encode_pcm16(samples: Samples) -> bytes:
    """float32 samples to 16-bit little-endian; what lies outside [-1, 1) is clipped."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def check_samples(samples: Samples) -> Samples:
    """`samples` as a contiguous float32 vector.

    Raises:
        ValueError: not one-dimensional, or not finite (the first bad place is named).
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if samples.ndim != 1:
        raise ValueError(f"Expected samples of shape (n,). Found: {samples.shape}")
    finite = np.isfinite(samples)
    if not finite.all():
        raise ValueError(f"Expected finite samples. Found {samples[~finite][0]} at sample {int(np.argmin(finite))}")
    return samples
