"""What one stream remembers, and which window of it runs next.

A stream runs two kinds of windows, all starting on the hop grid. *Steps* of `left | hop | right` frames tell partials
and where segments end. When one ends (endpoint, flush or end of stream) its *final pass* runs the whole segment once
more, with context on both sides. Every decision depends on sample positions alone, never on when or in which pieces the
samples came.

Not every step can end a segment: a pause must last first. Those between only show partials, and may be left out
(`Stream.shows_all = False`) where time is short; the finals stay the same to the bit. Of a stream that never shows
partials steps are fewer yet (`Stream.only_ends`): most of its audio is too loud for a pause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from core.acoustic import Features
from core.audio import HOP, SAMPLE_RATE, Samples, check_samples, n_frames, n_samples_for, to_seconds
from core.decoder import Decode, WordSpan
from core.endpoint import (
    NEVER,
    Endpoint,
    EndpointConfig,
    Lull,
    Measure,
    find_cut,
    find_endpoint,
    find_lull,
    find_pause,
    may_be_pause,
)
from core.ring_buffer import RingBuffer
from core.slots import Slot
from core.statistics import Statistics
from core.stitcher import MARGIN, LogProbs, empty
from core.tail import LONGEST, Memory
from core.transcript import Gap, Word

OFTENEST = 50  # frames between two reviews
REFRESH = 6  # frames that steps compute again where they find the ends of segments alone
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
        return min(needed, self.farthest)

    @property
    def farthest(self) -> int:
        """Hops from one step to the next, at most: enough left context remains."""
        return max(1, 1 + (self.left - MARGIN) // self.hop)

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


Told = tuple[list[WordSpan], tuple[Word, ...], int]  # spans, the words of all but the last, and how many are committed


def no_words(log_probs: LogProbs, start_frame: int) -> list[WordSpan]:
    """The decoder of a stream that no engine has made."""
    return []


class Stream:
    """All that one stream remembers. Push samples, step the engine, read its events."""

    def __init__(
        self,
        config: StreamConfig,
        n_vocab: int,
        statistics: Statistics | None = None,
        decode: Decode = no_words,
        n_features: int = 0,
        halo: int = 0,
    ) -> None:
        """A stream without history.

        Args:
            statistics: of what is heard, for models that normalise by them.
            n_features: numbers a frame that are kept of what the model made of it before its encoder; 0 keeps none.
            halo: frames of samples to keep before each window.
        """
        self.config = config
        self.decode = decode
        self.shows_partials = True  # False saves decoding them, where no word could be committed by one
        segment = config.endpoint.max_length + config.window + config.context
        self.buffer = RingBuffer(n_samples_for(segment + config.context + config.backlog + halo))
        self.features = RingBuffer(segment + config.context, 32, n_features) if n_features else None
        self.frames = empty(0, n_vocab)  # of the running segment, up to the last step that could end it
        self.shown = self.frames  # the same, and the steps that only show partials beyond
        self.shows_all = True  # False leaves those out
        self.shows_newest = False  # True leaves out all of them but the last that there is audio for
        self.target = config.hop  # first frame that is not stable after the next step that can end the segment
        self.latest = config.hop * hops_to_endpoint(Lull(NEVER, 0, False), 0, config, is_loud=True)  # of that frame
        self.hushed_row = 0  # of the segment, the first behind its last letter; a letter may lie a little elsewhere
        self.loudness = 0.0  # mean energy of its letters so far
        self.segment = 0
        self.n_samples = 0  # accepted so far
        self.processed_frame = 0  # first frame that was not stable when the segment before ended
        self.barriers: deque[int] = deque()  # sample positions of flushes that wait
        self.pending: Pass | None = None  # the final pass of a segment that has ended
        self.committed: tuple[WordSpan, ...] = ()
        self.reviews: tuple[tuple[WordSpan, ...], ...] = ()  # the words of the last ones, the newest first
        self.reviewed_frame = 0  # first frame that was not stable then
        self.pause_frame = 0  # a pause that ends the segment lasts until here at least
        self.settled: tuple[WordSpan, ...] = ()  # of the frames before `settled_frame`, which partials decode no more
        self.settled_frame = 0
        self.last_partial: tuple[str, int] = ("", 0)
        self.told: Told = ([], (), 0)  # of those but the last, as they are told: need not be made again
        self.is_plain = False  # of partials that are decoded greedily and shown as they are, this is settled instead:
        self.settled_words: tuple[Word, ...] = ()
        self.settled_text: tuple[str, ...] = ()  # of those, as one; empty without any
        self.settled_end = 0  # the frame that ends the last of them
        self.is_finished = False
        self.statistics = statistics
        self.slot: Slot | None = None  # where the last window is on the device
        self.memory = Memory()  # of the last step that could end the segment
        self.shown_memory = Memory()  # of the last step
        self.states: Features | None = None  # of the final pass that has just been run, where the decoder reads them
        self.is_still = False  # nothing moved in the last window, and no model was run for it

    @property
    def n_processed(self) -> int:
        """Samples whose frames are stable or final."""
        return HOP * max(self.processed_frame, self.shown.stable_frame)

    @property
    def is_ready(self) -> bool:
        """Whether a step would do something."""
        return self.next_pass() is not None

    def push(self, samples: Samples) -> list[Gap]:
        """Accepts 16 kHz mono samples in [-1, 1], any number.

        Returns:
            A gap where more came than the backlog holds; the samples beyond are not accepted, so that
            what was accepted stays whole.

        Raises:
            ValueError: samples are not (n,) or not finite, or the stream has been finished.
        """
        if self.is_finished:
            raise ValueError("Expected samples before the end of the stream. Found: samples after finish()")
        samples = check_samples(samples)
        room = self.buffer.capacity - len(self.buffer)
        taken = samples[:room]
        self.buffer.append(taken)
        self.n_samples += len(taken)
        if len(taken) == len(samples):
            return []
        at = to_seconds(self.n_samples)
        lost = to_seconds(len(samples) - len(taken))
        return [Gap(at, round(at + lost, 3), "more audio than the backlog holds came before it could be processed")]

    @property
    def room(self) -> int:
        """Samples that `push` would accept now."""
        return self.buffer.capacity - len(self.buffer)

    def flush(self) -> None:
        """Makes every word so far final, by the next steps; the stream goes on."""
        if not self.barriers or self.barriers[-1] != self.n_samples:
            self.barriers.append(self.n_samples)

    def finish(self) -> None:
        """Ends the stream: the steps that are left make its tail final."""
        if not self.is_finished:
            self.flush()
            self.is_finished = True

    def next_pass(self) -> Pass | None:
        """The window to run next; None where more samples are needed first."""
        if self.pending is not None:
            return self.pending
        if self.only_ends:
            self.put_off()
        stable = min(self.target, self.next_shown) if self.shows_all else self.target
        if (step := self.step_to(stable, only_shows=stable < self.target)) is not None:
            return step
        if self.barriers:
            cut = max(n_frames(self.limit), self.frames.start_frame)
            return Pass(self.context_start, self.limit, cut, is_barrier=True)
        return None

    def next_meanwhile(self) -> Pass | None:
        """A step that only shows a partial, for the time in which the final pass that is next is run elsewhere."""
        if self.next_shown > self.target + self.config.window:
            return None
        return self.step_to(self.next_shown, only_shows=True)

    @property
    def only_ends(self) -> bool:
        """Whether steps, which are run on this machine, serve nothing but to find the ends of segments."""
        is_reviewed = self.config.commit_after < self.config.endpoint.max_length
        return not (self.shows_all or self.shows_partials or is_reviewed or self.features is None)

    @property
    def refresh(self) -> int:
        """Frames that a step computes again, besides the new ones."""
        refresh = self.config.refresh
        return min(refresh, REFRESH) if self.only_ends and refresh < self.config.window else refresh

    def aim(self, lull: Lull, ask: Callable[[], NDArray[np.bool_]]) -> None:
        """Decides when the next step that can end the segment is due.

        Args:
            ask: tells, where it matters, which of the segment's (n_frames,) rows have a letter.
        """
        frames, config = self.frames, self.config
        self.target = frames.stable_frame + config.hop * hops_to_endpoint(lull, frames.n_stable, config)
        if self.only_ends:
            hops = hops_to_endpoint(lull, frames.n_stable, config, is_loud=True)
            self.latest = frames.stable_frame + config.hop * hops
            has_letter = ask()
            n = len(has_letter)
            self.hushed_row, self.loudness = n, 0.0
            if lull.first < NEVER:
                self.hushed_row = max(0, n - lull.run - config.endpoint.slack)
                self.loudness = float(self.measure(n)()[has_letter].mean())

    def put_off(self) -> None:
        """Makes the next step larger while its audio is too loud for a quiet pause, and one that is not cannot end."""
        config = self.config
        while self.target < self.latest and n_samples_for(self.target + config.right) <= self.limit:
            energy = self.measure(self.target + config.right - self.frames.start_frame, self.hushed_row)
            if may_be_pause(energy(), self.loudness, config.endpoint):
                self.latest = self.target
            else:
                self.target += config.hop

    def begin_segment(self, has_letter: NDArray[np.bool_]) -> None:
        """Decides when its first step is due, of whose frames so far (n_frames,) have a letter."""
        if not self.only_ends:
            self.target = self.frames.stable_frame + self.config.hop
            return
        self.aim(find_lull(has_letter, self.config.endpoint), lambda: has_letter)
        if self.frames.start_frame > self.memory.origin + LONGEST // 2:
            # Later a whole window would have to be computed again; a segment's first ones are the shortest.
            self.memory = self.shown_memory = Memory()

    @property
    def limit(self) -> int:
        """Samples that may be heard now."""
        return self.barriers[0] if self.barriers else self.n_samples

    @property
    def next_shown(self) -> int:
        """First frame that is not stable after the next step that shows a partial."""
        config, shown = self.config, self.shown.stable_frame
        hops = 1 if self.shows_all else config.most_hops
        if self.shows_newest:
            hops = max(hops, min((n_frames(self.limit) - config.right - shown) // config.hop, config.most_hops))
        return shown + hops * config.hop

    def step_to(self, stable: int, only_shows: bool) -> Pass | None:
        """The step after which that is the first frame that is not stable; None where its samples are not there yet."""
        config = self.config
        end = n_samples_for(stable + config.right)
        first = self.frames.start_frame if self.only_ends else 0
        start = HOP * max(first, stable - config.hop - config.left)
        return Pass(start, end, only_shows=only_shows) if end <= self.limit else None

    def stable_after(self, step: Pass) -> int:
        """First frame that is not stable after a step."""
        return n_frames(step.end_sample) - self.config.right

    def memory_for(self, step: Pass) -> Memory:
        """What a step goes on from. Those that can end the segment hang on no step that may be left out."""
        return replace(self.shown_memory if step.only_shows else self.memory)

    def remember(self, step: Pass, memory: Memory) -> None:
        """Keeps what a step has computed."""
        if memory.end_frame >= self.shown_memory.end_frame:
            self.shown_memory = memory
        if step.cut is None and not step.only_shows:
            self.memory = memory

    @property
    def n_committed_rows(self) -> int:
        """Of the segment's frames, those that end with the last committed word."""
        return self.committed[-1].end_frame - self.frames.start_frame if self.committed else 0

    @property
    def pause_row(self) -> int:
        """Of the segment's frames, the first by which a pause that ends it may have lasted long enough."""
        return self.pause_frame - self.frames.start_frame

    def endpoint(self, has_letter: NDArray[np.bool_], n_stable: int) -> Endpoint | None:
        """`find_endpoint` in the segment, of which (n_frames,) rows have a letter."""
        rules, measure = self.config.endpoint, self.measure(len(has_letter))
        return find_endpoint(has_letter, measure, n_stable, rules, self.n_committed_rows, self.pause_row)

    def cut(self, task: Pass, has_letter: NDArray[np.bool_]) -> int | None:
        """The frame before which the segment ends, by what its final pass has heard.

        None where the segment goes on, or another pass, which is pending then, has to tell. A pause is told by the pass
        that ends where the pause has just lasted long enough by its own letters, wherever those of the steps were.
        """
        first, n, rules = self.frames.start_frame, len(has_letter), self.config.endpoint
        if task.is_barrier:
            endpoint = self.endpoint(has_letter, n)
            if endpoint is None or not endpoint.has_speech:
                return task.cut
            self.pending = self.final_pass(endpoint)  # the last step was too early for it
            return None
        if not task.is_pause:
            return first + find_cut(has_letter, rules, self.n_committed_rows).cut
        if not has_letter.any():
            return task.cut
        endpoint = find_pause(has_letter, self.measure(n), rules, 0, self.n_committed_rows, self.pause_row)
        if endpoint is None:
            last = int(np.flatnonzero(has_letter)[-1])
            self.pause_frame = first + max(last + 1 + rules.after_speech, n + 1)
            return None
        if endpoint.end == n:
            return first + endpoint.cut
        if endpoint.end > n:
            self.pause_frame = first + endpoint.cut + rules.after_speech // 2
        if endpoint.end < n or first + endpoint.end <= self.frames.end_frame:
            self.pending = self.final_pass(endpoint)
        return None

    def measure(self, n: int, first: int = 0) -> Measure:
        """Mean square of the samples of each of the segment's first `n` frames, a hop each, from frame `first` on."""
        start = HOP * self.frames.start_frame

        def energy() -> NDArray[np.float32]:
            samples = self.buffer.read(start + HOP * first, start + HOP * max(first, n)).reshape(-1, HOP)
            return np.asarray(np.einsum("ij,ij->i", samples, samples) / HOP)

        return energy

    @property
    def context_start(self) -> int:
        """First sample of the running segment's final pass."""
        return HOP * max(0, self.frames.start_frame - self.config.context)

    def final_pass(self, endpoint: Endpoint) -> Pass:
        """The whole segment up to an endpoint and what follows it, with context before."""
        first = self.frames.start_frame
        end = n_samples_for(first + endpoint.end)
        return Pass(self.context_start, end, first + endpoint.cut, is_pause=endpoint.is_pause)

    def review_pass(self) -> Pass | None:
        """The whole segment so far, if words may be committed before its end and enough has come since the last one."""
        config, frames = self.config, self.frames
        if (
            config.commit_after >= config.endpoint.max_length
            or frames.stable_frame < self.reviewed_frame + config.review
        ):
            return None
        return Pass(self.context_start, n_samples_for(frames.end_frame), frames.end_frame, is_review=True)


def hops_to_endpoint(lull: Lull, n_stable: int, config: StreamConfig, is_loud: bool = False) -> int:
    """Steps until the segment can end: the pause that ends it has yet to last.

    Args:
        is_loud: whether none of them can be a quiet one.
    """
    rules = config.endpoint
    if lull.first < rules.before_speech:
        least = rules.after_speech * (rules.loud_factor if is_loud else 1)
        wait = min(least + rules.slack - lull.run, rules.max_length - n_stable)
    else:
        wait = rules.before_speech - n_stable
    return max(1, min(-(-wait // config.hop), config.farthest if is_loud else config.most_hops))
