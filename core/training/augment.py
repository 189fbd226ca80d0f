"""What recordings differ by, put onto training audio: speed, room, noise, telephone lines, level, silence around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

from core.audio import SAMPLE_RATE, Samples

TELEPHONE_RATE = 8_000  # Hz


@dataclass(frozen=True, slots=True, eq=False)
class Augment:
    """All ranges are drawn from uniformly; chances are probabilities."""

    noise: Samples = field(default_factory=lambda: np.zeros(0, np.float32))  # background to mix in
    noise_chance: float = 0.3
    snr_db: tuple[float, float] = (5.0, 30.0)
    speed: tuple[float, float] = (0.9, 1.1)
    speed_chance: float = 0.5
    room_s: tuple[float, float] = (0.1, 0.4)  # until its answer has fallen by 60 dB
    room_level: tuple[float, float] = (0.2, 0.8)  # of the whole answer, the direct sound being 1
    room_chance: float = 0.08
    telephone_chance: float = 0.1
    gain_db: tuple[float, float] = (-25.0, 8.0)
    gain_chance: float = 0.5
    silence_s: float = 0.6  # at most this much before and after
    silence_chance: float = 0.3

    def __call__(self, parts: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> Samples:
        """`parts` in a row, changed; clipped to [-1, 1]."""
        pieces = [self.change_speed(part, rng) for part in parts]
        before, after = (self.silence(rng) for _ in range(2))
        wave = np.concatenate([before, *pieces, after])
        if rng.random() < self.room_chance:
            wave = self.reverberate(wave, rng)
        wave = self.add_noise(wave, rng)
        if rng.random() < self.telephone_chance:
            wave = telephone(wave)
        if rng.random() < self.gain_chance:
            wave = wave * np.float32(10 ** (rng.uniform(*self.gain_db) / 20))
        clipped: Samples = np.clip(wave, -1, 1).astype(np.float32)
        return clipped

    def change_speed(self, samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        if rng.random() >= self.speed_chance:
            return samples
        ratio = rng.uniform(*self.speed)
        places = np.arange(int(len(samples) / ratio)) * ratio
        return np.asarray(np.interp(places, np.arange(len(samples)), samples), np.float32)

    def silence(self, rng: np.random.Generator) -> Samples:
        seconds = rng.uniform(0, self.silence_s) if rng.random() < self.silence_chance else 0.0
        return np.zeros(int(seconds * SAMPLE_RATE), np.float32)

    def reverberate(self, wave: Samples, rng: np.random.Generator) -> Samples:
        """In a room that answers as exponentially falling noise."""
        n = int(rng.uniform(*self.room_s) * SAMPLE_RATE)
        answer = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)  # -60 dB at the end
        answer *= rng.uniform(*self.room_level) / np.sqrt(np.square(answer).sum())
        answer[0] = 1
        size = len(wave) + n
        wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(answer, size), size)
        return wet[: len(wave)].astype(np.float32)

    def add_noise(self, wave: Samples, rng: np.random.Generator) -> Samples:
        if len(self.noise) <= len(wave) or rng.random() >= self.noise_chance:
            floor = 10 ** rng.uniform(-5, -3)
            return wave + (floor * rng.standard_normal(len(wave))).astype(np.float32)
        first = int(rng.integers(0, len(self.noise) - len(wave)))
        noise = self.noise[first : first + len(wave)]
        level = float(np.sqrt(np.mean(np.square(wave))) / (np.sqrt(np.mean(np.square(noise))) + 1e-6))
        return wave + noise * np.float32(level * 10 ** (-rng.uniform(*self.snr_db) / 20))


def telephone(wave: Samples) -> Samples:
    """Nothing above 4 kHz is left; the length stays."""
    narrow = soxr.resample(wave, SAMPLE_RATE, TELEPHONE_RATE, "LQ")
    wide = soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE, "LQ")[: len(wave)]
    return np.asarray(np.pad(wide, (0, len(wave) - len(wide))), np.float32)
