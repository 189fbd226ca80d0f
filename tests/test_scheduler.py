"""The scheduler without its thread, on planted audio; and once with it."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from planted import PlantedModel, plant

from core.audio import Samples
from core.engine import Engine, Stream, StreamConfig
from core.transcript import Event, Transcript
from streamer.scheduler import Command, Failed, Finished, Flushed, Job, Output, Progress, Scheduler, StepReport

CONFIG = StreamConfig.preset("balanced")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def make(model: PlantedModel | None = None, **options: object) -> Scheduler:
    return Scheduler(Engine(model or PlantedModel()), clock=Clock(), **options)  # type: ignore[arg-type]


def opened(scheduler: Scheduler, config: StreamConfig = CONFIG) -> tuple[Job, list[Output]]:
    outputs: list[Output] = []
    return scheduler.open(config, outputs.extend), outputs


def finals(outputs: Sequence[Output]) -> list[str]:
    return [output.text for output in outputs if isinstance(output, Transcript) and output.is_final]


def run(scheduler: Scheduler) -> None:
    for _ in range(1000):
        if not scheduler.active:
            return
        scheduler.run_once()
    pytest.fail("the scheduler does not come to rest")


def test_one_job_to_its_end() -> None:
    scheduler = make()
    job, outputs = opened(scheduler)
    hello = plant("HELLO~~")[:-80]  # whole hops, so that what follows is on the frame grid
    scheduler.submit(job, [hello, Command.FLUSH, plant("WORLD~~"), Command.FINISH])
    run(scheduler)
    assert finals(outputs) == ["HELLO", "WORLD"]
    # The answer to a flush comes after the finals before it, and before those after it.
    shape = [type(o).__name__ for o in outputs if isinstance(o, Flushed | Finished) or finals([o])]
    assert shape == ["Transcript", "Flushed", "Transcript", "Finished"]
    progress = [output.n_processed for output in outputs if isinstance(output, Progress)]
    assert progress == sorted(progress)


def test_streams_are_batched_and_bounded() -> None:
    model = PlantedModel()
    reports: list[StepReport] = []
    scheduler = make(model, max_batch=3, on_step=reports.append)
    everything = [opened(scheduler) for _ in range(5)]
    for i, (job, _) in enumerate(everything):
        scheduler.submit(job, [plant("AB"[i % 2] * 3 + "~~~"), Command.FINISH])
    run(scheduler)
    assert max(model.lengths) == 3
    assert max(report.n_streams for report in reports) == 3
    assert all(report.delay_s >= 0 and report.step_s > 0 for report in reports)
    for i, (_, outputs) in enumerate(everything):
        assert finals(outputs) == ["AB"[i % 2] * 3]
        assert isinstance(outputs[-1], Finished)


def test_earliest_deadline_first() -> None:
    order: list[str] = []
    scheduler = make(max_batch=1)
    patient = scheduler.open(StreamConfig.preset("accurate"), lambda outputs: order.append("accurate"))
    urgent = scheduler.open(StreamConfig.preset("low"), lambda outputs: order.append("low"))
    scheduler.submit(patient, [np.zeros(50_000, np.float32)])
    scheduler.submit(urgent, [np.zeros(10_000, np.float32)])
    scheduler.run_once()
    assert order == ["low"]
    run(scheduler)
    assert order.count("accurate") > 0


def test_a_long_message_waits_in_the_inbox_and_nothing_is_lost() -> None:
    scheduler = make()
    job, outputs = opened(scheduler, StreamConfig.preset("balanced", backlog=250))
    samples = plant("ONE~~TWO~~" * 40)
    assert len(samples) > job.stream.buffer.capacity
    scheduler.submit(job, [samples, Command.FINISH])
    run(scheduler)
    assert finals(outputs) == ["ONE", "TWO"] * 40
    assert job.stream.n_samples == len(samples)


class FragileModel(PlantedModel):
    """Breaks on a letter Z."""

    def read(self, window: Samples) -> np.ndarray:
        log_probs = super().read(window)
        if (log_probs.argmax(1) == 27).any():
            raise RuntimeError("out of memory")
        return log_probs


def test_a_failure_hurts_its_own_session_only(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make(FragileModel())
    everything = [opened(scheduler) for _ in range(3)]
    for (job, _), text in zip(everything, ("ABLE~~", "ZOO~~", "BAKER~~"), strict=True):
        scheduler.submit(job, [plant(text), Command.FINISH])
    run(scheduler)
    assert finals(everything[0][1]) == ["ABLE"]
    assert finals(everything[2][1]) == ["BAKER"]
    failed = everything[1][1]
    assert isinstance(failed[-1], Failed)
    assert "out of memory" not in failed[-1].message
    assert "one by one" in caplog.text
    scheduler.submit(everything[1][0], [plant("LATE~~")])
    assert not scheduler.active


def test_events_that_a_broken_batch_lost_are_told(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make()
    first, second = opened(scheduler), opened(scheduler)
    advance = scheduler.engine.advance

    def broken(stream: Stream, *rest: object) -> list[Event]:
        if stream is second[0].stream:
            raise ValueError("broken after the first stream has moved on")
        return advance(stream, *rest)  # type: ignore[arg-type]

    scheduler.engine.advance = broken  # type: ignore[method-assign, assignment]
    for job, _ in (first, second):
        scheduler.submit(job, [plant("ABLE~~")])
    run(scheduler)
    assert isinstance(first[1][-1], Failed)
    assert isinstance(second[1][-1], Failed)


def test_samples_that_the_stream_refuses_fail_the_job(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make()
    job, outputs = opened(scheduler)
    scheduler.submit(job, [np.full(10, np.nan, np.float32)])
    run(scheduler)
    assert [type(output) for output in outputs] == [Failed]


def test_cancel_and_a_closed_loop() -> None:
    scheduler = make()
    job, outputs = opened(scheduler)
    scheduler.submit(job, [plant("HELLO~~")])
    scheduler.cancel(job)
    run(scheduler)
    assert outputs == []

    def closed(outputs: Sequence[Output]) -> None:
        raise RuntimeError("Event loop is closed")

    job = scheduler.open(CONFIG, closed)
    scheduler.submit(job, [plant("HELLO~~")])
    run(scheduler)
    assert job.is_over


def test_the_thread() -> None:
    scheduler = make()
    done = threading.Event()
    outputs: list[Output] = []

    def deliver(some: Sequence[Output]) -> None:
        outputs.extend(some)
        if isinstance(outputs[-1], Finished):
            done.set()

    scheduler.start()
    job = scheduler.open(CONFIG, deliver)
    for samples in np.array_split(plant("HELLO~~WORLD"), 20):
        scheduler.submit(job, [samples])
    scheduler.submit(job, [Command.FINISH])
    assert done.wait(10)
    scheduler.close()
    assert not scheduler.is_alive
    assert finals(outputs) == ["HELLO", "WORLD"]


def test_batch_must_hold_something() -> None:
    with pytest.raises(ValueError, match="at least 1 stream"):
        make(max_batch=0)
