"""The one thread that owns the model: it takes the streams that are ready, earliest deadline first, as a batch.

What a session hands over waits in its job's inbox and is applied to the stream by this thread alone, so
that no stream is touched by two threads. Nothing is dropped: what the stream has no room for stays in the
inbox, and its owner must stop reading when `Progress` falls behind (see `Session.is_behind`).
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.audio import HOP, SAMPLE_RATE, Samples
from core.engine import Engine, Stream, StreamConfig
from core.transcript import Event

logger = logging.getLogger(__name__)


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


Output = Event | Flushed | Finished | Failed | Progress
Item = Samples | Command
Deliver = Callable[[Sequence[Output]], None]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One batch, for the metrics."""

    n_streams: int
    step_s: float  # time in the engine
    delay_s: float  # longest time a ready stream waited for it


@dataclass(eq=False, slots=True)
class Job:
    """One stream in the scheduler. Only the scheduler's thread touches anything but the inbox."""

    stream: Stream
    deliver: Deliver
    hop_s: float
    inbox: deque[Item]
    answer: Flushed | Finished | None = None  # due as soon as the stream is not ready any more
    ready_at: float | None = None
    is_over: bool = False

    @property
    def deadline(self) -> float:
        """The next hop of audio is there at this time."""
        return self.hop_s + (self.ready_at or 0.0)


class Scheduler:
    """Batches the ready streams of all jobs. `start` and `close` it, or call `run_once` yourself.

    Args:
        max_batch: streams in one batch: more make the step longer, for all of them.
        clock: monotonic seconds.
        on_step: is told of each batch, on the scheduler's thread.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch: int = 16,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"Expected a batch of at least 1 stream. Found: {max_batch}")
        self.engine = engine
        self.max_batch = max_batch
        self.clock = clock
        self.on_step = on_step
        self.active: dict[Job, None] = {}  # may have something to do
        self.wake = threading.Condition()
        self.thread: threading.Thread | None = None
        self.is_closing = False

    @property
    def is_alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def start(self) -> None:
        self.is_closing = False
        self.thread = threading.Thread(target=self.run, name="scheduler", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the thread after its current batch; jobs that are left get no more answers."""
        with self.wake:
            self.is_closing = True
            self.wake.notify()
        if self.thread is not None:
            self.thread.join()

    def open(self, config: StreamConfig, deliver: Deliver) -> Job:
        """A new stream. `deliver` is called on the scheduler's thread and must only hand over."""
        return Job(self.engine.new_stream(config), deliver, config.hop * HOP / SAMPLE_RATE, deque())

    def submit(self, job: Job, items: Sequence[Item]) -> None:
        """Hands samples and commands over, in order; from any thread."""
        if items and not job.is_over:
            with self.wake:
                job.inbox.extend(items)
                self.active[job] = None
                self.wake.notify()

    def cancel(self, job: Job) -> None:
        """Forgets a job; from any thread. A batch that runs with it now is finished, and not delivered."""
        with self.wake:
            job.is_over = True
            job.inbox.clear()
            self.active.pop(job, None)

    def run(self) -> None:
        try:
            while True:
                with self.wake:
                    while not self.active and not self.is_closing:
                        self.wake.wait()
                    if self.is_closing:
                        return
                self.run_once()
        except BaseException:
            logger.exception("the scheduler died")
            for job in list(self.active):
                self.fail(job, "internal", "the recogniser has stopped; reconnect later")
            raise

    def run_once(self) -> bool:
        """Feeds the streams and runs one batch; False where nothing was ready."""
        now = self.clock()
        with self.wake:
            jobs = list(self.active)
        ready = [job for job in jobs if self.feed(job, now)]
        batch = sorted(ready, key=lambda job: job.deadline)[: self.max_batch]
        if not batch:
            return False
        delay_s = now - min(job.ready_at for job in batch if job.ready_at is not None)
        for job, events in self.step(batch):
            job.ready_at = None
            self.send(job, [*events, Progress(job.stream.n_processed)])
        if self.on_step is not None:
            self.on_step(StepReport(len(batch), self.clock() - now, delay_s))
        return True

    def feed(self, job: Job, now: float) -> bool:
        """Applies as much of the inbox as there is room for; True where a step would do something."""
        stream = job.stream
        try:
            while not job.is_over:
                # Commands wait for the steps before them, and samples for the commands before those.
                if job.answer is not None:
                    if stream.is_ready:
                        break
                    answer, job.answer = job.answer, None
                    self.send(job, [answer])
                    continue
                item = self.take(job)
                if item is None:
                    break
                if item is Command.FLUSH:
                    stream.flush()
                    job.answer = Flushed()
                elif item is Command.FINISH:
                    stream.finish()
                    job.answer = Finished()
                elif not isinstance(item, Command):
                    room = stream.room
                    gaps = stream.push(item[:room])
                    if gaps:
                        self.send(job, gaps)
                    if len(item) > room:
                        if not stream.is_ready:
                            raise RuntimeError(f"A stream with room for {room} samples waits for more")
                        job.inbox.appendleft(item[room:])
                        break
        except Exception:
            logger.exception("a stream broke while it was fed")
            self.fail(job, "internal", "the recogniser failed on this session's audio")
        if job.is_over or not stream.is_ready:
            job.ready_at = None
            return False
        if job.ready_at is None:
            job.ready_at = now
        return True

    def take(self, job: Job) -> Item | None:
        """The next item; without one, and without work, the job is put to rest in the same breath."""
        with self.wake:
            if job.inbox:
                return job.inbox.popleft()
            if not job.stream.is_ready:
                self.active.pop(job, None)
            return None

    def step(self, batch: Sequence[Job]) -> list[tuple[Job, list[Event]]]:
        """One batched step. Where it fails, each stream is tried alone, and only those that fail are given up."""
        before = [job.stream.next_pass() for job in batch]
        try:
            return list(zip(batch, self.engine.step([job.stream for job in batch]), strict=True))
        except Exception:
            logger.exception("a batch of %d failed; trying its streams one by one", len(batch))
        results = []
        for job, task in zip(batch, before, strict=True):
            try:
                if job.stream.next_pass() != task:
                    raise RuntimeError("The batch failed after this stream had moved on: its events are lost")
                results.append((job, self.engine.step([job.stream])[0]))
            except Exception:
                logger.exception("a stream failed alone")
                self.fail(job, "internal", "the recogniser failed on this session's audio")
        return results

    def send(self, job: Job, outputs: Sequence[Output]) -> None:
        if job.is_over:
            return
        try:
            job.deliver(outputs)
        except RuntimeError:  # its event loop has closed
            self.cancel(job)

    def fail(self, job: Job, code: str, message: str) -> None:
        self.send(job, [Failed(code, message)])
        self.cancel(job)
