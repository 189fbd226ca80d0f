"""Running mean and covariance of a stream, for models that want their input or its channels normalised over time.

The channels of a convolution are linear in the samples under its taps: their mean and variance over time follow from
the mean and the covariance of windows of as many samples, which are few numbers. Windows of one sample give those of
the waveform. What was heard fades out, because a minute of silence must not make the next word deafening.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from core.audio import SAMPLE_RATE, Samples
from core.features import VARIANCE_FLOOR
from core.ring_buffer import RingBuffer

FADE = 0.95  # of its weight is left to what was heard, with every second: about 20 s count


@dataclass(slots=True)
class Statistics:
    """Of windows of `kernel` samples, `stride` apart; the results do not depend on how samples were cut."""

    kernel: int = 1
    stride: int = 1
    n_samples: int = 0  # heard so far
    n_windows: int = 0
    weight: float = 0.0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))  # (kernel,)
    products: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))  # (kernel, kernel)
    rest: Samples = field(default_factory=lambda: np.zeros(0, np.float32))  # from the next window's first sample on

    @classmethod
    def of(cls, kernel: int, stride: int) -> Statistics:
        return cls(kernel, stride, total=np.zeros(kernel), products=np.zeros((kernel, kernel)))

    def hear(self, samples: RingBuffer, end: int) -> None:
        """Adds what a stream holds before sample `end`, and was not added yet."""
        if end > self.n_samples:
            self.add(samples.read(self.n_samples, end))

    def add(self, samples: Samples) -> None:
        self.n_samples += len(samples)
        rest = np.concatenate([self.rest, samples])
        n = max(0, (len(rest) - self.kernel) // self.stride + 1)
        self.rest = rest[n * self.stride :]
        if not n:
            return
        windows = np.lib.stride_tricks.sliding_window_view(rest, self.kernel)[:: self.stride][:n].astype(np.float64)
        block = SAMPLE_RATE // self.stride
        while len(windows):
            place = self.n_windows % block
            keep = FADE if place == 0 else 1.0
            part, windows = windows[: block - place], windows[block - place :]
            self.weight = keep * self.weight + len(part)
            self.total = keep * self.total + part.sum(0)
            self.products = keep * self.products + part.T @ part
            self.n_windows += len(part)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(kernel,) of each place in a window."""
        return self.total / self.weight

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(kernel, kernel)."""
        return self.products / self.weight - np.outer(self.mean, self.mean)

    @property
    def moments(self) -> tuple[float, np.float64]:
        """Mean and deviation of the samples."""
        power = max(0.0, float(np.trace(self.covariance)) / self.kernel)
        return float(self.mean.mean()), np.sqrt(np.float64(power + VARIANCE_FLOOR))

    def normalise(self, samples: Samples) -> Samples:
        mean, deviation = self.moments
        return np.asarray((samples - mean) / deviation, np.float32)


def channel_norm(
    norm: nn.GroupNorm,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    covariance: Tensor,
    power: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """What a norm over time does to a convolution of the waveform: (…, channel) factors and (…, channel) summands.

    Args:
        weight: (channel, tap) of the convolution.
        mean: (…, tap) of the samples under the taps, where the result shall be: not every device has double precision.
        covariance: (…, tap, tap) of those.
        power: (…, 1) or one, of the samples, where the norm was meant for samples of power 1.
    """
    device = mean.device
    weight = weight.to(device).double()
    middle = mean @ weight.T if bias is None else mean @ weight.T + bias.to(device)
    variance = ((weight @ covariance) * weight).sum(-1)
    gain = norm.weight.to(device).double() / (variance + norm.eps * power).sqrt()
    return gain, norm.bias.to(device) - middle * gain
