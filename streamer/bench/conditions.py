"""What a recording may have gone through, put onto clean speech so that its cost can be measured.

Every condition is decided by the samples and the seed alone: each system of a comparison hears the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clients.file import resample
from core.audio import SAMPLE_RATE, Samples, decode_pcm

CONDITIONS = ("clean", "noise", "gain-30", "gain+10", "telephone", "reverb")
NOISE_SNR_DB = 10
REVERB_S = 0.5  # until the room's answer has fallen by 60 dB
REVERB_DIRECT_DB = 3  # the direct sound over all of the reverberation
TELEPHONE_HZ = (300, 3400)
EMPTY_S = 60  # of audio in which nobody speaks
EMPTY_RMS = 10 ** (-30 / 20)  # of its noise


def apply_condition(condition: str, samples: Samples, seed: int = 0) -> Samples:
    """`samples` under one of `CONDITIONS`, of the same length and within [-1, 1].

    noise: pink noise at 10 dB SNR. gain: in dB, clipped. telephone: 300-3400 Hz, 8 kHz, µ-law, and back.
    reverb: a room of 0.5 s, as exponentially falling noise.
    """
    rng = np.random.default_rng(seed)
    match condition:
        case "clean":
            return samples
        case "noise":
            changed = samples + _at_level(_pink(len(samples), rng), _rms(samples) * 10 ** (-NOISE_SNR_DB / 20))
        case "gain-30" | "gain+10":
            changed = samples * 10 ** (float(condition.removeprefix("gain")) / 20)
        case "telephone":
            changed = _telephone(samples)
        case "reverb":
            changed = _reverberate(samples, rng)
        case _:
            raise ValueError(f"Expected a condition of {', '.join(CONDITIONS)}. Found: {condition!r}")
    return np.clip(changed, -1, 1).astype(np.float32)


def empty_audio(seed: int = 0) -> dict[str, Samples]:
    """A minute each of digital silence, white noise and pink noise: every word heard there is made up."""
    rng = np.random.default_rng(seed)
    n = EMPTY_S * SAMPLE_RATE
    noises = {"white noise": rng.standard_normal(n), "pink noise": _pink(n, rng)}
    heard = {name: _at_level(noise, EMPTY_RMS).astype(np.float32) for name, noise in noises.items()}
    return {"silence": np.zeros(n, np.float32), **heard}


def _rms(samples: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _at_level(samples: NDArray[np.floating], rms: float) -> NDArray[np.floating]:
    return samples * (rms / max(_rms(samples), 1e-12))


def _pink(n: int, rng: np.random.Generator) -> NDArray[np.floating]:
    """Noise whose power falls by 3 dB an octave: white noise shaped in the frequency domain."""
    spectrum = np.fft.rfft(rng.standard_normal(n)) if n else np.zeros(1, complex)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), n) if n else np.zeros(0)


def _telephone(samples: Samples) -> Samples:
    spectrum = np.fft.rfft(samples) if len(samples) else np.zeros(0, complex)
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) if len(samples) else np.zeros(0)
    spectrum[(hertz < TELEPHONE_HZ[0]) | (hertz > TELEPHONE_HZ[1])] = 0
    narrow = np.fft.irfft(spectrum, len(samples)).astype(np.float32) if len(samples) else samples
    levels = np.unique(decode_pcm(bytes(range(256)), "mulaw"))  # ascending
    middles = (levels[1:] + levels[:-1]) / 2
    # Every second sample is enough: nothing above 3.4 kHz is left.
    coded = levels[np.searchsorted(middles, narrow[::2])]
    wide = resample(coded, SAMPLE_RATE // 2)[: len(samples)]
    return np.pad(wide, (0, len(samples) - len(wide)))


def _reverberate(samples: Samples, rng: np.random.Generator) -> NDArray[np.floating]:
    n = int(REVERB_S * SAMPLE_RATE)
    room = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)  # -60 dB at the end
    room *= 10 ** (-REVERB_DIRECT_DB / 20) / np.sqrt(np.sum(np.square(room)))
    room[0] = 1
    size = len(samples) + n
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(room, size), size)[: len(samples)]
    return _at_level(wet, _rms(samples))
