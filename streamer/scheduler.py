"""The threads that own the models: they take the streams that are ready, earliest deadline first, as batches.

What a session hands over waits in its job's inbox and is applied to the stream by these threads alone, each stream by
one at a time: one of them feeds and chooses, and a job that is in a batch is nobody else's. Nothing is dropped: what
the stream has no room for stays in the inbox, and its owner must stop reading when `Progress` falls behind (see
`Session.is_behind`).

On a processor several threads of one core each do more than one with all cores, whose products are too small to share;
and while a final pass takes one of them, which may be half a second, the others show partials, of its stream too.

A batch holds windows of one length and one model: padding would change what they say. When sessions that speak in
real time get late, steps that only show partials are left out (the hop widens), and everybody is told; before
that no longer helps, `has_room` turns new sessions away. Neither changes any final.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from core.audio import SAMPLE_RATE, Samples
from core.decoder import Decode
from core.engine import Engine, Joined
from core.stitcher import LogProbs
from core.transcript import Event
from core.windows import LATENCIES, Pass, StreamConfig
from streamer.admission import Admission
from streamer.batch import choose
from streamer.job import (
    Command,
    Deliver,
    Failed,
    Finished,
    Flushed,
    Hearing,
    Item,
    Job,
    OfChannel,
    Output,
    Widened,
)
from streamer.load import Cost, Response, window_s

logger = logging.getLogger(__name__)

CPU_BATCH, GPU_BATCH = 16, 128  # streams in one batch, at most


@dataclass(frozen=True, slots=True)
class StepReport:
    """One batch, for the metrics."""

    n_streams: int
    step_s: float  # time in the engine
    delay_s: float  # longest time a ready stream waited for it
    n_still: int = 0  # streams in whose windows nothing moved, so that no model ran


class Scheduler:
    """Batches the ready streams of all jobs. `start` and `close` it, or call `run_once` yourself.

    Args:
        engine: of jobs that name none.
        others: more engines that jobs may name.
        max_batch: streams in one batch: more make the step longer, for all of them. None is as the device has it.
        clock: monotonic seconds.
        on_step: is told of each batch, on the thread that ran it.
        workers: threads that run batches at the same time.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[StepReport], None] | None = None,
        others: Sequence[Engine] = (),
        workers: int = 1,
    ) -> None:
        if max_batch is None:
            max_batch = GPU_BATCH if engine.model.n_slots else CPU_BATCH
        if max_batch < 1 or workers < 1:
            raise ValueError(f"Expected at least 1 stream in a batch and 1 worker. Found: {max_batch}, {workers}")
        self.engine = engine
        self.max_batch = max_batch
        self.clock = clock
        self.on_step = on_step
        self.jobs: dict[Job, None] = {}  # all that are open
        self.active: dict[Job, None] = {}  # may have something to do, and are in no batch
        self.costs = {one: Cost() for one in (engine, *others)}
        self.admission = Admission(self.costs, workers)
        self.n_workers = workers
        self.n_finals = 0  # batches of final passes that run now
        self.turn = threading.Lock()  # of the worker that feeds the streams and chooses among them
        self.wake = threading.Condition()
        self.n_changes = 0  # a worker that found nothing to do waits for another
        self.warm = threading.Event()  # or broken
        self.has_run = False
        self.threads: list[threading.Thread] = []
        self.is_closing = False

    @property
    def is_alive(self) -> bool:
        return bool(self.threads) and not self.is_closing and all(thread.is_alive() for thread in self.threads)

    def start(self) -> None:
        """Returns when the model has run once: its first windows are slow, and tell nothing about the later ones.

        Raises:
            RuntimeError: it could not run them.
        """
        self.is_closing = False
        self.threads = [
            threading.Thread(target=self.run, args=(i == 0,), name=f"scheduler-{i}", daemon=True)
            for i in range(self.n_workers)
        ]
        for thread in self.threads:
            thread.start()
        self.warm.wait()
        if not self.has_run:
            raise RuntimeError("the model failed on its first windows; its error is in the log")

    def close(self) -> None:
        """Ends the threads after their current batches; jobs that are left get no more answers."""
        with self.wake:
            self.is_closing = True
            self.wake.notify_all()
        for thread in self.threads:
            thread.join()

    def open(
        self,
        config: StreamConfig,
        deliver: Deliver,
        engine: Engine | None = None,
        channels: int = 1,
        wants_partials: bool = True,
        decode: Decode | None = None,
        is_patient: bool = False,
    ) -> Job:
        """A new stream, or one a channel. `deliver` is called on a scheduler's thread and must only hand over.

        Args:
            channels: with more than one, samples are (n, channels) and outputs come as `OfChannel`.
            wants_partials: without, half of the steps or more are left out.
            decode: instead of the engine's way from frames to words.
            is_patient: without partials, hears only what it needs to find the ends of segments (`core.search`).
        """
        engine, now = engine or self.engine, self.clock()

        def tagged(channel: int) -> Deliver:
            return lambda outputs: deliver(
                [OfChannel(channel, output) for output in outputs if not isinstance(output, OfChannel)]
            )

        delivers = [deliver] if channels == 1 else [tagged(channel) for channel in range(channels)]
        jobs = [Job(engine, engine.new_stream(config, decode), one, now, wants_partials) for one in delivers]
        jobs[0].channels = tuple(jobs)
        if is_patient and not wants_partials:
            for job in jobs:
                job.stream.hide_partials()
        with self.wake:
            self.jobs.update(dict.fromkeys(jobs))
        return jobs[0]

    def submit(self, job: Job, items: Sequence[Item]) -> None:
        """Hands samples and commands over, in order; from any thread."""
        if not items or job.is_over:
            return
        now = self.clock()
        with self.wake:
            for channel, one in enumerate(job.channels):
                for item in items:
                    is_split = not isinstance(item, Command) and item.ndim == 2
                    one.inbox.append((now, item[:, channel] if is_split else item))  # type: ignore[index]
                if not one.is_running:
                    self.active[one] = None
            self.changed()

    def cancel(self, job: Job) -> None:
        """Forgets a job; from any thread. A batch that runs with it now is finished, and not delivered."""
        with self.wake:
            for one in (job, *job.channels):
                one.is_over = True
                one.inbox.clear()
                self.active.pop(one, None)
                self.jobs.pop(one, None)

    def changed(self) -> None:
        """There may be something to do. Under `wake`."""
        self.n_changes += 1
        self.wake.notify()

    def has_room(self, config: StreamConfig, engine: Engine | None = None, channels: int = 1) -> bool:
        """Whether one more session fits; from any thread."""
        with self.wake:
            return self.admission.has_room(self.jobs, config, engine or self.engine, channels, self.clock())

    def step_quantile_s(self, q: float) -> float:
        """Seconds from a step's audio to its result, of the last ten seconds' steps in real time; from any thread."""
        with self.wake:
            return self.admission.responses.quantile_s(q, self.clock())

    def run(self, is_first: bool) -> None:
        try:
            if is_first:
                try:
                    self.warm_up()
                    self.has_run = True
                finally:
                    self.warm.set()
            self.warm.wait()
            while True:
                with self.wake:
                    if self.is_closing or not self.has_run:
                        return
                    seen = self.n_changes
                if not self.run_once():
                    with self.wake:
                        self.wake.wait_for(lambda seen=seen: self.is_closing or self.n_changes != seen)  # type: ignore[misc]
        except BaseException:
            logger.exception("the scheduler died")
            with self.wake:
                self.is_closing = True
                self.wake.notify_all()
            for job in list(self.jobs):
                self.fail(job, "internal", "the recogniser has stopped; reconnect later")
            raise

    def warm_up(self) -> None:
        """Runs batches of silence, to know what a step costs before the first session asks."""
        config = StreamConfig.preset("balanced")
        samples = np.zeros(int(window_s(config) * SAMPLE_RATE), np.float32)
        for engine, cost in self.costs.items():
            for latency in LATENCIES:
                preset = StreamConfig.preset(latency)
                slots = engine.slots_for(preset)
                if slots is not None:
                    slots.warm_up(self.max_batch, preset.refresh, preset.most_hops)
            engine.model.emit([samples])  # not counted
            for n in (1, self.max_batch if engine.slots else 2, 1):
                began = self.clock()
                engine.model.emit([samples] * n)
                cost.add(n * window_s(config), self.clock() - began)

    def run_once(self) -> bool:
        """Feeds the streams and runs one batch; False where nothing was ready, or only what must wait."""
        with self.turn:
            batch = self.take_batch(self.clock())
            is_final = bool(batch) and batch[0].is_final
            samples = self.begin_hearing(batch[0]) if is_final else None
        if not batch:
            return False
        try:
            if samples is None:
                self.run_batch(batch)
            else:
                self.hear(batch[0], samples)
        finally:
            with self.wake:
                self.n_finals -= is_final
                for job in batch if samples is None else []:
                    self.give_back(job)
                self.changed()
        return True

    def give_back(self, job: Job) -> None:
        """Any worker may run it from now on. Under `wake`."""
        job.is_running = False
        if not job.is_over:
            self.active[job] = None

    def begin_hearing(self, job: Job) -> Samples | None:
        """The samples of a final pass during which other workers go on with its job; None where it is run as a step."""
        if job.heard_final is not None:
            return None
        if self.n_workers == 1 or not job.goes_on:
            job.hearing = None
            return None
        samples = job.begin_hearing()
        with self.wake:
            self.give_back(job)
        return samples

    def hear(self, job: Job, samples: Samples) -> None:
        """Runs a final pass; whoever takes the job next takes in what it says."""
        hearing, began = job.hearing, self.clock()
        assert hearing is not None
        try:
            log_probs = job.engine.hear([job.stream], [samples])[0]
            hearing.seconds = self.clock() - began
            hearing.log_probs = log_probs
        except Exception:
            self.give_up(job)

    def take_batch(self, now: float) -> list[Job]:
        """Feeds the streams; the jobs to run now, which no other worker sees until they are given back."""
        with self.wake:
            jobs = list(self.active)
            self.admission.adapt(self.jobs, now)
        ready = [job for job in jobs if self.feed(job, now)]
        with self.wake:
            # Final passes may be long: one worker stays free of them.
            if self.n_finals and self.n_finals >= self.n_workers - 1:
                ready = [job for job in ready if self.needs_no_hearing(job, now)]
            ready.sort(key=lambda job: job.deadline)
            batch = choose(ready, self.costs[ready[0].engine], self.max_batch) if ready else []
            self.n_finals += bool(batch) and batch[0].is_final
            for job in batch:
                job.is_running = True
                self.active.pop(job, None)
            if batch and len(batch) < len(ready):
                self.changed()  # for another worker
        return batch

    def needs_no_hearing(self, job: Job, now: float) -> bool:
        """Whether a job can be run now without a long final pass."""
        return not job.is_final or job.heard_final is not None or (self.n_workers > 1 and job.plan_meanwhile(now))

    def run_batch(self, batch: Sequence[Job]) -> None:
        heard = batch[0].heard_final
        began = self.clock() - (0.0 if heard is None else heard.seconds)
        results = self.step(batch, heard)
        done, is_widened = self.clock(), self.admission.is_widened
        audio_s, n_still = 0.0, 0
        for job, task, events in results:
            due, is_new = job.due, task.end_sample > job.heard
            if job.stream.is_still and heard is None:
                n_still += 1
            else:
                audio_s += job.computed_s()
            job.moved(task, done)
            job.stream.shows_newest = False
            with self.wake:
                if task.cut is None and is_new and due <= done:
                    self.admission.responses.add(Response(done, done - due, job.hop_s))
            outputs: list[Output] = [*events, job.progress()]
            if job.told_widened != is_widened and job.wants_partials:
                job.told_widened = is_widened
                outputs.append(Widened(is_widened))
            self.send(job, outputs)
        if audio_s:
            with self.wake:
                self.costs[batch[0].engine].add(audio_s, done - began)
        if self.on_step is not None:
            delay_s = max(0.0, began - min((job.due for job in batch), default=began))
            self.on_step(StepReport(len(batch), done - began, delay_s, n_still))

    def feed(self, job: Job, now: float) -> bool:
        """Applies as much of the inbox as there is room for; True where a step would do something."""
        stream = job.stream
        stream.shows_all = job.wants_partials and not self.admission.is_widened
        try:
            while not job.is_over:
                # Commands wait for the steps before them, and samples for the commands before those.
                if job.answer is not None:
                    if stream.is_ready:
                        break
                    answer, job.answer = job.answer, None
                    self.send(job, [answer])
                    if isinstance(answer, Finished):
                        with self.wake:
                            self.jobs.pop(job, None)
                    continue
                came = self.take(job)
                if came is None:
                    break
                at, item = came
                if item is Command.FLUSH:
                    stream.flush()
                    job.answer = Flushed()
                elif item is Command.FINISH:
                    stream.finish()
                    job.answer = Finished()
                elif not isinstance(item, Command):
                    room = stream.room
                    gaps = stream.push(item[:room])
                    job.arrivals.append((stream.n_samples, at))
                    if gaps:
                        self.send(job, gaps)
                    if len(item) > room:
                        if not stream.is_ready:
                            raise RuntimeError(f"A stream with room for {room} samples waits for more")
                        job.inbox.appendleft((at, item[room:]))
                        break
            task = None if job.is_over else job.next_task()
        except Exception:
            logger.exception("a stream broke while it was fed")
            self.fail(job, "internal", "the recogniser failed on this session's audio")
            task = None
        if task is None:
            job.task = None
            if stream.n_processed > job.told_processed:  # by steps that were left out
                self.send(job, [job.progress()])
        elif task != job.task:
            job.plan(task, now)
            if now - job.due > job.hop_s and not stream.shows_newest:
                # Too late for that partial: rather a newer one, if there is audio for it.
                stream.shows_newest = True
                newer = job.next_task()
                if newer is not None and newer != task:
                    job.plan(newer, now)
        return task is not None

    def take(self, job: Job) -> tuple[float, Item] | None:
        """The next item; without one, and without work, the job is put to rest in the same breath."""
        with self.wake:
            if job.inbox:
                return job.inbox.popleft()
            if not job.stream.is_ready:
                self.active.pop(job, None)
            return None

    def step(self, batch: Sequence[Job], heard: Hearing | None) -> list[tuple[Job, Pass, list[Event]]]:
        """One batched step. Where it fails, each window is tried alone, and only streams that fail are given up."""
        work = [(job, job.task) for job in batch if job.task is not None]
        engine = batch[0].engine
        passes = [(job.stream, task) for job, task in work]
        emitted: list[LogProbs] = []
        joined: list[Joined | None] = [None] * len(work)
        try:
            if heard is None or heard.log_probs is None:
                emitted = engine.emit(passes)
            else:
                emitted, batch[0].hearing = [heard.log_probs], None
            joined = engine.join(passes, emitted)
        except Exception:
            logger.exception("a batch of %d failed; trying its streams one by one", len(batch))
        results = []
        for i, (job, task) in enumerate(work):
            try:
                log_probs = emitted[i] if emitted else engine.emit([(job.stream, task)])[0]
                results.append((job, task, engine.apply(job.stream, task, log_probs, joined[i])))
            except Exception:
                self.give_up(job)
        return results

    def give_up(self, job: Job) -> None:
        """Tells a session, in an `except` block, that its stream broke."""
        logger.exception("a stream failed alone")
        self.fail(job, "internal", "the recogniser failed on this session's audio")

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
