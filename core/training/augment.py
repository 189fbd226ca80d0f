"""What recordings differ by, put onto training audio: speed, noise, level, silence around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.audio import SAMPLE_RATE, Samples


@dataclass(frozen=True, slots=True, eq=False)
class Augment:
    """All ranges are drawn from uniformly; chances are probabilities."""

    noise: Samples = field(default_factory=lambda: np.zeros(0, np.float32))  # background to mix in
    noise_chance: float = 0.3
    snr_db: tuple[float, float] = (5.0, 30.0)
    speed: tuple[float, float] = (0.9, 1.1)
    speed_chance: float = 0.5
    gain_db: tuple[float, float] = (-25.0, 8.0)
    gain_chance: float = 0.5
    silence_s: float = 0.6  # at most this much before and after
    silence_chance: float = 0.3

    def __call__(self, parts: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> Samples:
        """`parts` in a row, changed; clipped to [-1, 1]."""
        pieces = [self.change_speed(part, rng) for part in parts]
        before, after = (self.silence(rng) for _ in range(2))
        wave = np.concatenate([before, *pieces, after])
        wave = self.add_noise(wave, rng)
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

    def add_noise(self, wave: Samples, rng: np.random.Generator) -> Samples:
        if len(self.noise) <= len(wave) or rng.random() >= self.noise_chance:
            floor = 10 ** rng.uniform(-5, -3)
            return wave + (floor * rng.standard_normal(len(wave))).astype(np.float32)
        first = int(rng.integers(0, len(self.noise) - len(wave)))
        noise = self.noise[first : first + len(wave)]
        level = float(np.sqrt(np.mean(np.square(wave))) / (np.sqrt(np.mean(np.square(noise))) + 1e-6))
        return wave + noise * np.float32(level * 10 ** (-rng.uniform(*self.snr_db) / 20))
