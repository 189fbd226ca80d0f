"""What `core.training.augment` puts onto recordings, onto all rows of a batch at once, where they are.

Rooms, a random equaliser and the telephone's band are one product of spectra; then comes a background, noise or the
babble of other rows, the noise of a microphone, and the level. What a row is given is drawn on the host; the samples
of noises are drawn on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.audio import SAMPLE_RATE
from core.training.augment import Augment

TAPS = 8192  # of filters; rooms are silent before
EQUALISER_CHANCE = 0.5
EQUALISER_DB = 4.0  # standard deviation of a band
EQUALISER_BANDS = 8  # from 0 to 8 kHz, equally far from each other in mel
BABBLE_CHANCE = 0.25  # of a background, that it is speech
N_BABBLING = 3
TELEPHONE = (250.0, 3500.0)  # Hz at which half of the amplitude is left
TELEPHONE_EDGES = (30.0, 60.0)  # Hz, of the logistic curves there


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Of each row (row,); 0 where there is no such thing."""

    room: Tensor  # seconds until its answer has fallen by 60 dB
    room_level: Tensor  # of the answer, the direct sound being 1
    equaliser: Tensor  # (row, band) dB
    is_telephone: Tensor
    background: Tensor  # its level, of that of the row
    is_babble: Tensor  # of other rows, instead of noise
    noise_at: Tensor  # from 0 to 1: where the noise begins
    floor: Tensor  # level of the microphone's noise
    gain: Tensor  # factor

    @classmethod
    def draw(cls, augment: Augment, n: int, rng: np.random.Generator) -> Scene:
        """Of `n` rows; chances and ranges are those of `augment`."""

        def chance(p: float) -> NDArray[np.bool_]:
            return rng.random(n) < p

        def decibels(low: float, high: float) -> NDArray[np.float64]:
            return np.asarray(10 ** (rng.uniform(low, high, n) / 20))

        is_babble = chance(BABBLE_CHANCE)
        has_background = chance(augment.noise_chance) & (is_babble | (len(augment.noise) > 0))
        drawn = (
            rng.uniform(*augment.room_s, n),
            rng.uniform(*augment.room_level, n) * chance(augment.room_chance),
            rng.normal(0, EQUALISER_DB, (n, EQUALISER_BANDS)) * chance(EQUALISER_CHANCE)[:, None],
            chance(augment.telephone_chance),
            has_background / decibels(*augment.snr_db),
            is_babble,
            rng.random(n),
            10 ** rng.uniform(-5, -3, n),
            np.where(chance(augment.gain_chance), decibels(*augment.gain_db), 1.0),
        )
        return cls(*(torch.from_numpy(part) for part in drawn))

    def __call__(self, samples: Tensor, n_samples: Tensor, noise: Tensor) -> Tensor:
        """(row, sample) changed, in [-1, 1], and 0 behind the first `n_samples` (row,) of each.

        Args:
            noise: (sample,) to take backgrounds from; may be empty.
        """
        device = samples.device
        columns = [
            part.to(device, torch.float32, non_blocking=True)[:, None]
            for part in (self.background, self.noise_at, self.floor, self.gain)
        ]
        background, noise_at, floor, gain = columns
        times = torch.arange(samples.shape[1], device=device)
        is_heard = times < n_samples.to(device)[:, None]
        samples = self.filter(samples) * is_heard
        around = babble(samples)
        if len(noise):
            places = ((noise_at * len(noise)).long() + times) % len(noise)
            around = torch.where(self.is_babble.to(device)[:, None], around, noise[places])
        around = around * is_heard
        samples = samples + around * background * level(samples) / (level(around) + 1e-6)
        samples = samples + floor * torch.randn_like(samples)
        return (samples * gain).clamp(-1, 1) * is_heard

    def filter(self, samples: Tensor) -> Tensor:
        """(row, sample) in their rooms, through equalisers and telephones."""
        n = samples.shape[1]
        size = (-(-n // TAPS) + 1) * TAPS  # room for the filters, and quick to transform
        response = torch.fft.rfft(self.rooms(samples.device), size) * self.gains(size, samples.device)
        filtered: Tensor = torch.fft.irfft(torch.fft.rfft(samples, size) * response, size)
        return filtered[:, :n]

    def rooms(self, device: torch.device) -> Tensor:
        """(row, tap): the direct sound, and exponentially falling noise."""
        seconds, levels = (part.to(device, torch.float32)[:, None] for part in (self.room, self.room_level))
        times = torch.arange(TAPS, device=device) / SAMPLE_RATE
        noise = torch.randn(len(seconds), TAPS, device=device) * 10 ** (-3 * times / seconds)
        answers: Tensor = noise * levels / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
        answers[:, 0] = 1
        return answers

    def gains(self, size: int, device: torch.device) -> Tensor:
        """(row, frequency) of a spectrum of `size` samples: factors that shift nothing."""
        hertz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=device)
        places = (EQUALISER_BANDS - 1) * torch.log1p(hertz / 700) / math.log1p(SAMPLE_RATE / 2 / 700)  # in mel
        low = places.long().clamp(max=EQUALISER_BANDS - 2)
        bands = self.equaliser.to(device, torch.float32)
        decibels = torch.lerp(bands[:, low], bands[:, low + 1], places - low)
        (lowest, highest), (rise, fall) = TELEPHONE, TELEPHONE_EDGES
        telephone = torch.sigmoid((hertz - lowest) / rise) * torch.sigmoid((highest - hertz) / fall)
        return 10 ** (decibels / 20) * torch.where(self.is_telephone.to(device)[:, None], telephone, 1.0)


def babble(samples: Tensor) -> Tensor:
    """Of each row the sum of a few others; of a single one nothing."""
    others = [samples.roll(i, 0) for i in range(1, min(len(samples), N_BABBLING + 1))]
    return torch.stack(others).sum(0) if others else torch.zeros_like(samples)


def level(samples: Tensor) -> Tensor:
    """(row, 1) root mean square."""
    return samples.square().mean(1, keepdim=True).sqrt()
