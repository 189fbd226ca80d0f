"""What one stream remembers, and which window of it runs next.

A stream runs two kinds of windows, all starting on the hop grid. *Steps* of `left | hop | right` frames tell partials
and where segments end. When one ends (endpoint, flush or end of stream) its *final pass* runs the whole segment once
more, with context on both sides. Every decision depends on sample positions alone, never on when or in which pieces the
samples came.

Not every step can end a segment: a pause must last first. Those between only show partials, and may be left out where
time is short (`Stream.shows_all = False`) or nobody speaks (`core.silence`); the finals stay the same to the bit. Steps
of a stream that never shows partials (`Stream.only_ends`) hear no more than `core.search` asks for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.acoustic import Features
from core.audio import HOP, Samples, check_samples, n_frames, n_samples_for, to_seconds
from core.decoder import Decode, WordSpan
from core.endpoint import (
    NEVER,
    Endpoint,
    Lull,
    Measure,
    find_cut,
    find_endpoint,
    find_lull,
    find_pause,
    find_silence,
)
from core.ring_buffer import RingBuffer
from core.search import AHEAD, Search
from core.silence import hush_of, is_hushed
from core.slots import Slot
from core.statistics import Statistics
from core.stitcher import LogProbs, empty
from core.tail import Memory
from core.transcript import Gap, Word
from core.windows import Heard, Pass, StreamConfig, hops_to_endpoint

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
        self.search = Search(config.endpoint)  # where that is, if steps only find the ends of segments
        self.segment = 0
        self.n_samples = 0  # accepted so far
        self.processed_frame = 0  # first frame that was not stable when the segment before ended
        self.barriers: deque[int] = deque()  # sample positions of flushes that wait
        self.hush = -1.0  # sound of no more energy is silence, as the last pause was; below 0: there was none yet
        self.silent_frame = 0  # first frame that was not stable after a step that was left out because of that
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
        self.heard: Heard | None = None  # by a final pass that asked a shorter one, which may find no end
        self.is_still = False  # nothing moved in the last window, and no model was run for it

    @property
    def n_processed(self) -> int:
        """Samples whose frames are stable or final, or silence."""
        return HOP * max(self.processed_frame, self.shown.stable_frame, self.silent_frame)

    @property
    def is_ready(self) -> bool:
        """Whether a step would do something."""
        return self.next_pass() is not None

    def hide_partials(self) -> None:
        """Saves what only they need, from the beginning on."""
        self.shows_all = self.shows_partials = False
        if self.only_ends:
            self.aim(Lull(NEVER, 0, False))

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
            self.listen()
        stable = self.target
        if self.shows_all:
            self.skip_silence()
            stable = min(stable, self.next_shown)
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
    def right(self) -> int:
        """Frames after those that become stable that a step hears."""
        return min(self.config.right, AHEAD) if self.only_ends else self.config.right

    def aim(self, lull: Lull) -> None:
        """Decides when the next step that can end the segment is due, by where its letters so far are."""
        frames, config = self.frames, self.config
        if self.only_ends:
            self.target = frames.start_frame + self.search.aim(lull, len(frames.marks), frames.n_stable, config.hop)
        else:
            self.target = frames.stable_frame + config.hop * hops_to_endpoint(lull, frames.n_stable, config)

    def listen(self) -> None:
        """Makes the next step due earlier where the sound is that of a pause."""
        first, slack = self.frames.start_frame, self.config.endpoint.slack
        n, n_measured = min(self.limit // HOP, self.target - slack) - first, self.search.n_measured
        if n > n_measured:
            self.search.measure(self.measure(n, n_measured)())
        if (row := self.search.quiet_row()) is not None:
            self.target = min(self.target, first + row + slack)
        least = self.config.endpoint.before_speech
        if self.frames.n_stable < least < self.target - first and self.search.is_hushed(least, self.hush):
            self.search.is_silent = True
            self.target = first + least

    def begin_segment(self, frame: int, is_letter: NDArray[np.bool_], is_silent: bool = False) -> None:
        """Forgets what was of the one before, and decides when the first step of this is due.

        Args:
            frame: its first.
            is_letter: of each id.
            is_silent: silence has been let go of.
        """
        frames, config = self.frames.since(frame), self.config
        self.heard = None
        self.processed_frame = self.n_processed // HOP
        is_ahead = self.shown.stable_frame > self.frames.stable_frame
        # The next window ends here: rows beyond would have nothing to replace them.
        self.frames = frames.until(frames.n_stable + config.hop + config.right)
        self.shown = self.shown.since(frame) if is_ahead else self.frames
        self.committed = self.settled = self.reviews = ()
        self.reviewed_frame = self.pause_frame = self.settled_frame = frame
        self.told = ([], (), 0)
        self.settled_words, self.settled_text, self.settled_end = (), (), 0
        self.last_partial = ("", 0)
        self.target = self.frames.stable_frame + config.hop
        if self.only_ends:
            self.search = Search(config.endpoint, self.search.is_loud, is_silent)
            self.aim(find_lull(is_letter[self.frames.ids], config.endpoint))

    @property
    def limit(self) -> int:
        """Samples that may be heard now."""
        return self.barriers[0] if self.barriers else self.n_samples

    @property
    def next_shown(self) -> int:
        """First frame that is not stable after the next step that shows a partial."""
        config, shown = self.config, max(self.shown.stable_frame, self.silent_frame)
        hops = 1 if self.shows_all else config.most_hops
        if self.shows_newest:
            hops = max(hops, min((n_frames(self.limit) - config.right - shown) // config.hop, config.most_hops))
        return shown + hops * config.hop

    def skip_silence(self) -> None:
        """Leaves out steps that only show partials, where these would say what the ones before said."""
        while (stable := self.next_shown) < self.target and self.shows_nothing_new(stable):
            self.silent_frame = stable

    def shows_nothing_new(self, stable: int) -> bool:
        """Whether what the step up to there hears for the first time, or hears more of what follows it, is silence."""
        config, end = self.config, stable + self.config.right
        if self.hush < 0 or config.steady or n_samples_for(end) > self.limit:
            return False
        first = self.frames.start_frame
        return is_hushed(self.measure(end - first, stable - config.hop - first)(), self.hush)

    def step_to(self, stable: int, only_shows: bool) -> Pass | None:
        """The step after which that is the first frame that is not stable; None where its samples are not there yet."""
        end = n_samples_for(stable + self.right)
        if self.only_ends:
            start = max(self.frames.start_frame, stable - self.search.reach)
        else:
            start = max(0, stable - self.config.hop - self.config.left)
        return Pass(HOP * start, end, only_shows=only_shows) if end <= self.limit else None

    def stable_after(self, step: Pass) -> int:
        """First frame that is not stable after a step."""
        return n_frames(step.end_sample) - self.right

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

    def pause(self, has_letter: NDArray[np.bool_], slack: int = 0) -> Endpoint | None:
        """`find_pause` in the segment, by letters that a final pass has heard."""
        rules, measure = self.config.endpoint, self.measure(len(has_letter))
        return find_pause(has_letter, measure, rules, slack, self.n_committed_rows, self.pause_row)

    def silence(self, has_letter: NDArray[np.bool_]) -> int:
        """`find_silence`, by what a final pass has heard where no step has."""
        return find_silence(has_letter, self.config.endpoint) if self.only_ends and not self.committed else 0

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
            pause = self.pause(has_letter)
            if pause is None or pause.end > n:
                return first + find_cut(has_letter, rules, self.n_committed_rows).cut
            self.pending = self.final_pass(pause)  # which no step has found
            self.search.is_loud = True
            return None
        if not has_letter.any():
            return task.cut
        endpoint = self.pause(has_letter)
        if endpoint is None:
            missed = self.pause(has_letter, min(1, rules.slack))
            if missed is not None and missed.end < n:
                self.pending = self.final_pass(missed)  # which has not heard the letter that makes it too short
                return None
            last = int(np.flatnonzero(has_letter)[-1])
            self.pause_frame = first + max(last + 1 + rules.after_speech, n + 1)
            return None
        if endpoint.end == n:
            self.hush = hush_of(self.measure(n)(), has_letter, endpoint.cut, rules.quiet_ratio)
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
