"""One stream in the scheduler: what goes in, what comes out, and when its next window is due."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.audio import FRAMES_PER_SECOND, HOP, RECEPTIVE_FIELD, SAMPLE_RATE, Samples
from core.engine import Engine
from core.stitcher import LogProbs
from core.stream import Stream
from core.transcript import Event
from core.windows import Pass, StreamConfig
from streamer.hotwords import HotWords
from streamer.load import step_s

AHEAD_S = 2.0  # audio sent faster than real time is put behind that of others by this much at most
CATCH_UP = 0.9  # a session that was ahead once counts as real time again after ten times that
FLUSH_S = 0.25  # a flush costs its session this much of its turn
YOUNG_S, IDLE_S = 5.0, 3.0  # a session counts as at work from its beginning, and after a step, for so long


@dataclass(frozen=True, eq=False, slots=True)
class Opening:
    """The stream that a session asks for. Another object is another stream."""

    config: StreamConfig
    model: str = ""  # empty: whatever the server has
    n_streams: int = 1  # one a channel that is transcribed by itself
    partials: bool = True  # without, steps that only show partials may be left out
    note: str = ""  # for the log
    hotwords: HotWords = ()  # of this stream, besides the server's
    is_patient: bool = False  # nobody waits for finals, which may be found later where pauses are not quiet

    def backlog_s(self, n_pushed: int, n_processed: int, is_widened: bool) -> float:
        """Seconds of that many samples that wait for the model, without those that a step may need as context anyway.

        Args:
            is_widened: steps that only show partials are left out.
        """
        context = self.config.longest_wait
        if self.partials or not self.is_patient:
            hops = self.config.most_hops if is_widened or not self.partials else 1
            context = hops * self.config.hop + self.config.right
        return max(0, n_pushed - n_processed - HOP * context) / SAMPLE_RATE


class Command(enum.Enum):
    FLUSH = "flush"  # answered by `Flushed` after the last event of the audio before it
    FINISH = "finish"  # answered by `Finished`; nothing may follow


@dataclass(frozen=True, slots=True)
class Flushed:
    pass


@dataclass(frozen=True, slots=True)
class Finished:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    """The last word of a job that broke. The other jobs go on."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    n_processed: int  # 16 kHz samples of the stream that need no more work, but for context


@dataclass(frozen=True, slots=True)
class Widened:
    """Steps that only show partials are left out from now on, or no more."""

    is_widened: bool


@dataclass(frozen=True, slots=True)
class OfChannel:
    """What one channel of a job with several says."""

    channel: int
    output: Event | Flushed | Finished | Failed | Progress | Widened


Output = Event | Flushed | Finished | Failed | Progress | Widened | OfChannel
Item = Samples | Command  # samples (n,), or (n, channels) for a job with several
Deliver = Callable[[Sequence[Output]], None]


@dataclass(eq=False, slots=True)
class Hearing:
    """A final pass that waits for a worker, or that one runs, while another shows partials of the same stream."""

    task: Pass
    due: float
    has_begun: bool = False
    log_probs: LogProbs | None = None  # when it is done
    seconds: float = 0.0  # that it took


@dataclass(eq=False, slots=True)
class Job:
    """One stream in the scheduler. Only the scheduler's threads touch anything but the inbox, one at a time."""

    engine: Engine
    stream: Stream
    deliver: Deliver
    opened_at: float
    wants_partials: bool = True
    channels: tuple[Job, ...] = ()  # of one job for each channel the first is asked and told everything
    inbox: deque[tuple[float, Item]] = field(default_factory=deque)  # with the time it came
    arrivals: deque[tuple[int, float]] = field(default_factory=deque)  # (samples of the stream, when they came)
    answer: Flushed | Finished | None = None  # due as soon as the stream is not ready any more
    task: Pass | None = None  # the window to run next
    hearing: Hearing | None = None
    due: float = 0.0  # when real time would have brought its audio
    heard: int = 0  # samples up to the end of the last window
    heard_due: float = 0.0  # `due` of that
    stepped_at: float = 0.0
    told_widened: bool = False
    told_processed: int = 0  # samples
    is_running: bool = False  # in a batch, and nobody else's
    is_over: bool = False

    @property
    def hop_s(self) -> float:
        return self.stream.config.hop / FRAMES_PER_SECOND

    @property
    def deadline(self) -> float:
        """The next hop of audio is there at this time."""
        return self.due + self.hop_s

    def is_at_work(self, now: float) -> bool:
        return not self.is_over and (self.opened_at > now - YOUNG_S or self.stepped_at > now - IDLE_S)

    @property
    def is_final(self) -> bool:
        """The window to run next is a final pass."""
        return self.task is not None and self.task.cut is not None

    @property
    def goes_on(self) -> bool:
        """Whether the stream of a final pass can show partials until that has been run."""
        task = self.task
        is_apart = task is not None and task.cut is not None and not task.is_barrier and not task.is_review
        return is_apart and self.wants_partials and not self.engine.slots

    @property
    def heard_final(self) -> Hearing | None:
        """The final pass that has been run, where taking it in is what is next."""
        hearing = self.hearing
        return hearing if hearing and hearing.log_probs is not None and hearing.task is self.task else None

    def next_task(self) -> Pass | None:
        """The stream's next window, or what may be done before."""
        if self.hearing is None:
            return self.stream.next_pass()
        is_running = self.hearing.has_begun and self.hearing.log_probs is None
        return self.stream.next_meanwhile() if is_running else self.hearing.task

    def plan(self, task: Pass, now: float) -> None:
        """Notes when the window of `task` is due. What comes faster than real time is due as if it did not."""
        self.task, self.due = task, self.heard_due
        if self.hearing is not None and self.hearing.task is task:
            self.due = self.hearing.due
            return
        if task.is_barrier:  # so that one who flushes after every word does not come before all others
            self.due = min(max(self.heard_due, now) + FLUSH_S, now + AHEAD_S)
        if task.cut is not None:
            return
        while self.arrivals and self.arrivals[0][0] < task.end_sample:
            self.arrivals.popleft()
        arrival = self.arrivals[0][1] if self.arrivals else now
        heard_s = max(0, task.end_sample - self.heard) / SAMPLE_RATE
        self.due = min(max(self.heard_due + CATCH_UP * heard_s, arrival), now + AHEAD_S)

    def plan_meanwhile(self, now: float) -> bool:
        """Puts a partial before a final pass that no worker is there for; False where there is none."""
        step = self.stream.next_meanwhile() if self.goes_on else None
        if step is None or self.task is None:
            return False
        self.hearing = self.hearing or Hearing(self.task, self.due)
        self.plan(step, now)
        return True

    def begin_hearing(self) -> Samples:
        """The samples of a final pass, during which other workers go on with its stream."""
        assert self.task is not None
        self.hearing, task = Hearing(self.task, self.due, has_begun=True), self.task
        self.task = None
        return self.engine.window(self.stream, task)

    def progress(self) -> Progress:
        """What is to be told of it."""
        self.told_processed = self.stream.n_processed
        return Progress(self.told_processed)

    def moved(self, task: Pass, now: float) -> None:
        """The window of `task` has been run."""
        self.heard, self.heard_due = max(self.heard, task.end_sample), self.due
        self.stepped_at, self.task = now, None

    def computed_s(self) -> float:
        """Seconds that are computed of the window to run next."""
        task, config = self.task, self.stream.config
        assert task is not None
        if task.cut is not None or self.engine.is_whole or self.stream.only_ends:
            return (task.end_sample - task.start_sample) / SAMPLE_RATE
        return step_s(config, max(0, task.end_sample - self.heard) / HOP, is_whole=False)

    @property
    def window_samples(self) -> int:
        """Length of the window to run next."""
        assert self.task is not None
        return max(self.task.end_sample - self.task.start_sample, RECEPTIVE_FIELD)
