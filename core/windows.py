"""How a stream is cut into windows: lengths, presets, and what a window is run for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from core.audio import HOP, SAMPLE_RATE
from core.endpoint import EndpointConfig, Lull
from core.stitcher import MARGIN, LogProbs

OFTENEST = 50  # frames between two reviews
LATENCIES = ("low", "balanced", "accurate")


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How a stream is cut into windows. All lengths in frames of 20 ms."""

    left: int = 100  # context before the frames that become stable
    hop: int = 25  # frames that become stable in one step
    right: int = 25  # context after them
    # A word is committed when reviews agree on it (`core.commitment`) and it ended this long before the end of what the
    # newer one heard. Longer than any segment: words are committed with their final alone, and nothing is reviewed.
    commit_after: int = 1000
    steady: bool = False  # partials show only words whose frames are stable: later, and few of them change
    refresh: int = 1000  # frames that a step computes again, besides the new ones (`core.tail`); here all
    # What the final pass hears before its segment, as far as audio is there. More of it costs time, and words: 5.1 and
    # 16.3 % are wrong in the two validation sets, eight utterances a recording; 5.2 and 16.5 with 100.
    context: int = 50
    backlog: int = 3000  # audio that may wait; what does not fit is a gap
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self) -> None:
        for name, least in (("left", 0), ("hop", 1), ("right", 0), ("commit_after", 0), ("refresh", 0), ("context", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least} frames. Found: {getattr(self, name)}")
        if self.backlog < self.window:
            raise ValueError(
                f"backlog must hold one window of {self.left} + {self.hop} + {self.right} frames. Found: {self.backlog}"
            )

    @property
    def window(self) -> int:
        """Frames of a whole window."""
        return self.left + self.hop + self.right

    @property
    def review(self) -> int:
        """Frames between two reviews, at least."""
        return max(OFTENEST, self.commit_after)

    @property
    def algorithmic_latency_ms(self) -> int:
        """Time from a sound to a stable frame, without computing: hop and right context."""
        return (self.hop + self.right) * HOP * 1000 // SAMPLE_RATE

    @property
    def most_hops(self) -> int:
        """Steps that may be left out in a row, and the one after them: no pause ends meanwhile, and enough left
        context remains."""
        needed = -(-(self.endpoint.after_speech + self.endpoint.slack) // self.hop)
        return min(needed, max(1, 1 + (self.left - MARGIN) // self.hop))

    @property
    def longest_wait(self) -> int:
        """Frames behind the stable ones that a step may wait for where steps only find ends (`core.search`)."""
        return max(self.hop, self.endpoint.before_speech, self.endpoint.max_length) + 2 * self.right

    @classmethod
    def preset(
        cls, latency: str, endpoint: EndpointConfig | None = None, steady: bool = False, **changes: int
    ) -> StreamConfig:
        """The settings behind `--latency`.

        Raises:
            ValueError: no such preset.
        """
        # Frames are computed twice: as they come, and again with all of their right context.
        presets = {
            "low": cls(left=200, hop=13, right=12, refresh=12),
            "balanced": cls(left=200, hop=25, right=25, refresh=25),
            "accurate": cls(left=200, hop=50, right=50, refresh=50),
        }
        if latency not in presets:
            raise ValueError(f"Expected a latency of {', '.join(LATENCIES)}. Found: {latency!r}")
        config = presets[latency]
        return replace(config, endpoint=endpoint or config.endpoint, steady=steady, **changes)


@dataclass(frozen=True, slots=True)
class Pass:
    """One window to run: samples [start, end) of the stream."""

    start_sample: int
    end_sample: int
    cut: int | None = None  # a final pass: the segment ends before this frame
    is_barrier: bool = False  # a final pass that a flush asked for
    is_pause: bool = False  # a final pass that ends the segment only if it finds the pause, too
    is_review: bool = False  # as a final pass, but the segment goes on
    only_shows: bool = False  # a step between those that can end the segment


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What the model made of samples [start, end) of a stream: of a pass that may be asked for again."""

    start_sample: int
    end_sample: int
    log_probs: LogProbs
    states: NDArray[np.float32] | None  # (frame, hidden) that the decoder reads

    def is_of(self, task: Pass) -> bool:
        return (task.start_sample, task.end_sample) == (self.start_sample, self.end_sample)


def hops_to_endpoint(lull: Lull, n_stable: int, config: StreamConfig) -> int:
    """Steps until the segment can end: the pause that ends it has yet to last."""
    rules = config.endpoint
    if lull.first < rules.before_speech:
        wait = min(rules.after_speech + rules.slack - lull.run, rules.max_length - n_stable)
    else:
        wait = rules.before_speech - n_stable
    return max(1, min(-(-wait // config.hop), config.most_hops))
