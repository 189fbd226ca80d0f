"""The scheduler without its thread, on planted audio; and once with it."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from planted import PlantedModel, plant

from core.audio import Samples
from core.engine import Engine
from core.stream import Stream
from core.transcript import Event, Transcript
from core.windows import StreamConfig
from streamer.job import Command, Deliver, Failed, Finished, Flushed, Job, OfChannel, Output, Progress, Widened
from streamer.scheduler import Scheduler, StepReport
from streamer.serve import share_cores

CONFIG = StreamConfig(left=150)


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


def test_a_stream_that_breaks_after_the_model_breaks_alone(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make()
    first, second = opened(scheduler), opened(scheduler)
    advance = scheduler.engine.advance

    def broken(stream: Stream, *rest: object) -> list[Event]:
        if stream is second[0].stream:
            raise ValueError("broken after the first stream has moved on")
        return advance(stream, *rest)  # type: ignore[arg-type]

    scheduler.engine.advance = broken  # type: ignore[method-assign, assignment]
    for job, _ in (first, second):
        scheduler.submit(job, [plant("ABLE~~"), Command.FINISH])
    run(scheduler)
    assert finals(first[1]) == ["ABLE"]
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


class Laboratory:
    """A scheduler whose time passes in the model alone, and sessions that speak in real time with random phases."""

    def __init__(self, cost: float, widens: bool = True) -> None:
        self.now = 0.0
        laboratory = self

        class Timed(PlantedModel):
            def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
                laboratory.now += cost * sum(map(len, windows)) / 16_000
                assert len(set(map(len, windows))) == 1
                return super().emit(windows)

        self.model = Timed()
        self.scheduler = Scheduler(Engine(self.model), clock=lambda: self.now)  # type: ignore[arg-type]
        self.scheduler.warm_up()
        if not widens:
            self.scheduler.admission.adapt = lambda jobs, now: None  # type: ignore[method-assign]

    def run(self, samples: np.ndarray, n: int, packet: int = 3200) -> list[list[Output]]:
        """All say the same, one beginning after the other, so that their pauses do not fall together."""
        begin = self.now
        sessions = [opened(self.scheduler) for _ in range(n)]
        packets = sorted(
            (begin + 4.3 * i / n + min(start + packet, len(samples)) / 16_000, i, start)
            for i in range(n)
            for start in range(0, len(samples), packet)
        )
        last = (len(samples) - 1) // packet * packet
        while packets or self.scheduler.active:
            while packets and (packets[0][0] <= self.now or not self.scheduler.active):
                at, i, start = packets.pop(0)
                self.now = max(self.now, at)
                items: list[Samples | Command] = [samples[start : start + packet]]
                self.scheduler.submit(sessions[i][0], [*items, Command.FINISH] if start == last else items)
            self.scheduler.run_once()
        return [outputs for _, outputs in sessions]


SPEECH = plant("THE HOP GROWS WIDER WHEN TIME IS SHORT~~" * 6)


def final_events(outputs: Sequence[Output]) -> list[Transcript]:
    return [output for output in outputs if isinstance(output, Transcript) and output.is_final]


def test_overload_leaves_steps_out_and_says_so_and_changes_no_final() -> None:
    (alone,) = Laboratory(0.001).run(SPEECH, 1)
    assert not any(isinstance(output, Widened) for output in alone)
    # 12 sessions need some 12 * 10 s of windows a second: 1.15 times what there is.
    narrow, wide = Laboratory(0.0095, widens=False), Laboratory(0.0095)
    narrow.run(SPEECH, 12)
    results = wide.run(SPEECH, 12)
    for outputs in results:
        assert final_events(outputs) == final_events(alone)
        assert [output.is_widened for output in outputs if isinstance(output, Widened)] == [True]
        assert len(outputs) < len(alone)
    assert sum(wide.model.lengths) < 0.8 * sum(narrow.model.lengths)
    assert wide.now < len(SPEECH) / 16_000 + 4.3 + 0.5
    assert wide.scheduler.step_quantile_s(0.95) < 0.5 < narrow.scheduler.step_quantile_s(0.95)


def test_calm_brings_the_steps_back() -> None:
    laboratory = Laboratory(0.0095)
    laboratory.run(SPEECH, 12)
    assert laboratory.scheduler.admission.is_widened
    laboratory.now += 10
    laboratory.run(SPEECH, 1)
    assert not laboratory.scheduler.admission.is_widened


def test_sessions_without_partials_cost_half() -> None:
    counts = []
    for wants_partials in (True, False):
        scheduler = make(model := PlantedModel())
        outputs: list[Output] = []
        job = scheduler.open(CONFIG, outputs.extend, wants_partials=wants_partials)
        scheduler.submit(job, [SPEECH, Command.FINISH])
        run(scheduler)
        counts.append(len(model.lengths))
        assert len(finals(outputs)) == 6
    assert counts[1] < 0.7 * counts[0]


def test_sessions_that_nobody_waits_for_hear_little_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "only_ends", property(lambda stream: not stream.shows_partials))
    heard, counts = [], []
    for is_patient in (False, True):
        scheduler = make(model := PlantedModel())
        outputs: list[Output] = []
        job = scheduler.open(CONFIG, outputs.extend, wants_partials=False, is_patient=is_patient)
        scheduler.submit(job, [SPEECH, Command.FINISH])
        run(scheduler)
        heard.append(finals(outputs))
        counts.append(sum(model.lengths))
    assert heard[0] == heard[1] != []
    assert counts[1] < 0.8 * counts[0]


def test_silence_in_which_no_step_is_run_counts_as_processed() -> None:
    scheduler = make(model := PlantedModel())
    job, outputs = opened(scheduler)
    noise = np.resize(np.array([0.01, -0.01], np.float32), 50 * 320)
    noise[::320] = 0  # what the model reads
    scheduler.submit(job, [plant("HELLO~~")[:-80], *[noise] * 2])
    run(scheduler)
    assert finals(outputs) == ["HELLO"] and job.stream.hush == 0, "so that all noise may be speech"
    scheduler.submit(job, [np.concatenate([plant("WORLD")[:-80], noise, noise, noise])])
    run(scheduler)
    assert finals(outputs) == ["HELLO", "WORLD"] and job.stream.hush > 0
    for _ in range(40):
        n, told = len(model.lengths), len(outputs)
        scheduler.submit(job, [noise[: 25 * 320]])
        run(scheduler)
        if len(model.lengths) == n:
            break
    assert [type(output) for output in outputs[told:]] == [Progress]
    assert job.stream.n_samples - job.stream.n_processed <= (2 * CONFIG.hop + CONFIG.right) * 320


def test_room_ends_before_steps_come_later_than_the_hop() -> None:
    laboratory = Laboratory(0.01)
    scheduler = laboratory.scheduler
    n = 0
    while scheduler.has_room(CONFIG):
        opened(scheduler)
        n += 1
        assert n < 100
    assert n == 16  # each needs some 6 s of windows a second, of which the model runs 100
    for job in list(scheduler.jobs):
        scheduler.cancel(job)
    laboratory.run(SPEECH, n)
    assert scheduler.step_quantile_s(0.95) < 0.5


def test_the_first_session_is_always_taken() -> None:
    scheduler = Laboratory(0.5).scheduler
    assert scheduler.has_room(CONFIG)
    opened(scheduler)
    assert not scheduler.has_room(CONFIG)


def test_steps_that_come_late_close_the_door() -> None:
    laboratory = Laboratory(0.0095, widens=False)
    laboratory.run(SPEECH, 12)
    assert laboratory.scheduler.admission.responses.lateness(laboratory.now) > 1
    opened(laboratory.scheduler)
    assert not laboratory.scheduler.has_room(CONFIG)
    laboratory.now += 11
    opened(laboratory.scheduler)
    assert laboratory.scheduler.has_room(CONFIG)


def test_a_file_sent_at_once_waits_behind_those_who_speak() -> None:
    laboratory = Laboratory(0.03)
    scheduler = laboratory.scheduler
    ended: list[tuple[float, str]] = []

    def note(name: str) -> Deliver:
        return lambda outputs: ended.extend((laboratory.now, name) for o in outputs if isinstance(o, Finished))

    file = scheduler.open(CONFIG, note("file"))
    scheduler.submit(file, [np.tile(SPEECH, 4), Command.FINISH])
    live = scheduler.open(CONFIG, note("live"))
    for start in range(0, len(SPEECH), 3200):
        while scheduler.active and laboratory.now < start / 16_000:
            scheduler.run_once()
        laboratory.now = max(laboratory.now, start / 16_000)
        scheduler.submit(live, [SPEECH[start : start + 3200]])
    scheduler.submit(live, [Command.FINISH])
    run(scheduler)
    (live_s, first), (file_s, second) = ended
    assert (first, second) == ("live", "file")
    assert live_s < len(SPEECH) / 16_000 + 1 < file_s - 3


def test_windows_of_two_models_are_never_mixed() -> None:
    first, second = PlantedModel(), PlantedModel()
    engines = [Engine(first), Engine(second)]  # type: ignore[arg-type]
    scheduler = Scheduler(engines[0], clock=Clock(), others=engines[1:])
    outputs: list[list[Output]] = [[] for _ in range(4)]
    for i, into in enumerate(outputs):
        job = scheduler.open(CONFIG, into.extend, engine=engines[i % 2])
        scheduler.submit(job, [plant("HELLO~~"), Command.FINISH])
    run(scheduler)
    assert [finals(some) for some in outputs] == [["HELLO"]] * 4
    assert max(first.lengths) == max(second.lengths) == 2


def test_channels_are_transcribed_apart() -> None:
    scheduler = make()
    outputs: list[Output] = []
    job = scheduler.open(CONFIG, outputs.extend, channels=2)
    left, right = plant("LEFT SIDE~~"), plant("RIGHT~~~")
    n = max(len(left), len(right))
    both = np.stack([np.pad(side, (0, n - len(side))) for side in (left, right)], 1)
    for part in np.array_split(both, 7):
        scheduler.submit(job, [part])
    scheduler.submit(job, [Command.FINISH])
    run(scheduler)
    said = [(o.channel, o.output) for o in outputs if isinstance(o, OfChannel)]
    assert len(said) == len(outputs)
    texts = {(channel, o.text) for channel, o in said if isinstance(o, Transcript) and o.is_final}
    assert texts == {(0, "LEFT SIDE"), (1, "RIGHT")}
    assert sorted(channel for channel, o in said if isinstance(o, Finished)) == [0, 1]
    assert not scheduler.jobs
    job = scheduler.open(CONFIG, outputs.extend, channels=2)
    scheduler.submit(job, [both])
    scheduler.cancel(job)
    assert not scheduler.jobs and not scheduler.active


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_cannot_run_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(PlantedModel):
        def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
            raise RuntimeError("no kernel")

    scheduler = make(Broken())
    with pytest.raises(RuntimeError, match="first windows"):
        scheduler.start()
    scheduler.close()
    assert "no kernel" in caplog.text


def test_batch_must_hold_something() -> None:
    with pytest.raises(ValueError, match="at least 1 stream"):
        make(max_batch=0)


def test_several_workers_give_each_stream_its_own_text_in_order() -> None:
    texts = ["~".join("ABCDEFGH"[(i + j) % 8] * 3 for j in range(12)) for i in range(9)]

    def run_all(workers: int) -> list[list[Output]]:
        scheduler = Scheduler(Engine(PlantedModel()), max_batch=2, workers=workers)  # type: ignore[arg-type]
        everything: list[list[Output]] = [[] for _ in texts]
        over = [threading.Event() for _ in texts]

        def deliver(i: int) -> Deliver:
            def take(outputs: Sequence[Output]) -> None:
                everything[i].extend(outputs)
                if isinstance(outputs[-1], Finished):
                    over[i].set()

            return take

        jobs = [scheduler.open(CONFIG, deliver(i)) for i in range(len(texts))]
        scheduler.start()
        parts = [np.array_split(plant(text), 30) for text in texts]
        for k in range(30):
            for job, pieces in zip(jobs, parts, strict=True):
                scheduler.submit(job, [pieces[k], *([Command.FLUSH] if k == 15 else [])])
        for job in jobs:
            scheduler.submit(job, [Command.FINISH])
        assert all(one.wait(60) for one in over)
        scheduler.close()
        assert not scheduler.is_alive and not scheduler.jobs
        return everything

    alone, together = run_all(1), run_all(3)
    for expected, found in zip(alone, together, strict=True):
        assert finals(found) == finals(expected)
        kinds = [type(output) for output in found if isinstance(output, Flushed | Finished)]
        assert kinds == [Flushed, Finished]
        progress = [output.n_processed for output in found if isinstance(output, Progress)]
        assert progress == sorted(progress)


def test_one_worker_stays_free_of_final_passes() -> None:
    is_at_final, may_end = threading.Event(), threading.Event()
    shown = threading.Event()

    class Slow(PlantedModel):
        def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
            if max(map(len, windows)) > 100_000:  # a final pass of ten seconds
                is_at_final.set()
                assert may_end.wait(60)
            return super().emit(windows)

    scheduler = Scheduler(Engine(Slow()), workers=2)  # type: ignore[arg-type]
    scheduler.start()
    ended = [threading.Event(), threading.Event()]

    def until(event: threading.Event, kind: type) -> Deliver:
        return lambda outputs: event.set() if any(isinstance(output, kind) for output in outputs) else None

    for i in range(2):
        job = scheduler.open(CONFIG, until(ended[i], Finished))
        scheduler.submit(job, [plant("ABCDEFGHIJ" * 16), Command.FINISH])
    assert is_at_final.wait(60)
    live = scheduler.open(CONFIG, until(shown, Transcript))
    scheduler.submit(live, [plant("HELLO~~")])
    assert shown.wait(60)  # while one final pass runs, and another waits
    assert not any(one.is_set() for one in ended)
    may_end.set()
    assert all(one.wait(60) for one in ended)
    scheduler.close()


class Recorder:
    """What a job is told, and a way to wait for it."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.came = threading.Condition()

    def __call__(self, outputs: Sequence[Output]) -> None:
        with self.came:
            self.outputs.extend(outputs)
            self.came.notify_all()

    def wait(self, is_there: Callable[[Output], bool]) -> bool:
        with self.came:
            return self.came.wait_for(lambda: any(map(is_there, self.outputs)), 60)


def test_a_stream_shows_partials_while_its_own_final_pass_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    is_at_final, may_end = threading.Event(), threading.Event()
    scheduler = Scheduler(Engine(PlantedModel()), workers=2)  # type: ignore[arg-type]
    hear = scheduler.hear

    def slow(job: Job, samples: Samples) -> None:
        is_at_final.set()
        assert may_end.wait(60)
        hear(job, samples)

    monkeypatch.setattr(scheduler, "hear", slow)
    scheduler.start()
    told = Recorder()
    job = scheduler.open(CONFIG, told)
    hello, world = plant("HELLO~~")[:-80], plant("WORLD~~~~")
    scheduler.submit(job, [hello])
    assert is_at_final.wait(60)
    scheduler.submit(job, [world[:20_000]])
    assert told.wait(lambda output: isinstance(output, Transcript) and output.text.endswith("WORLD"))
    assert not finals(told.outputs)
    scheduler.submit(job, [world[20_000:], Command.FINISH])
    may_end.set()
    assert told.wait(lambda output: isinstance(output, Finished))
    scheduler.close()
    assert finals(told.outputs) == ["HELLO", "WORLD"]
    progress = [output.n_processed for output in told.outputs if isinstance(output, Progress)]
    assert progress == sorted(progress)


def test_a_final_pass_that_fails_apart_ends_its_own_session_only(caplog: pytest.LogCaptureFixture) -> None:
    class LastStraw(PlantedModel):
        def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
            if threading.current_thread() in busy:
                raise RuntimeError("out of memory")
            return super().emit(windows)

    busy: set[threading.Thread] = set()
    scheduler = Scheduler(Engine(LastStraw()), workers=2)  # type: ignore[arg-type]
    hear = scheduler.hear

    def poisoned(job: Job, samples: Samples) -> None:
        if job is broken:
            busy.add(threading.current_thread())
        hear(job, samples)
        busy.clear()

    scheduler.hear = poisoned  # type: ignore[method-assign]
    scheduler.start()
    told = [Recorder(), Recorder()]
    broken, whole = (scheduler.open(CONFIG, one) for one in told)
    for job in (broken, whole):
        scheduler.submit(job, [plant("HELLO~~~"), Command.FINISH])
    assert told[0].wait(lambda output: isinstance(output, Failed))
    assert told[1].wait(lambda output: isinstance(output, Finished))
    scheduler.close()
    assert isinstance(told[0].outputs[-1], Failed) and not finals(told[0].outputs)
    assert finals(told[1].outputs) == ["HELLO"]
    assert "out of memory" in caplog.text


@pytest.mark.parametrize(("step_s", "workers"), [(0.01, 4), (0.29, 4), (0.31, 2), (0.7, 1), (9.0, 1)])
def test_a_worker_has_one_core_unless_its_steps_would_take_too_long(
    step_s: float, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, threads = [0.0], [0]

    class SlowModel(PlantedModel):
        def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
            now[0] += step_s
            return super().emit(windows)

    monkeypatch.setattr("streamer.serve.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("streamer.serve.torch.set_num_threads", lambda n: threads.append(n))
    assert share_cores([Engine(PlantedModel()), Engine(SlowModel())], 4) == workers  # type: ignore[arg-type]
    assert threads[1] == 1 and workers * threads[-1] <= 4
    away = SlowModel()
    for kind, n in (("cuda", 2), ("mps", 1)):
        away.model.device = torch.device(kind)
        assert share_cores([Engine(away)], 4) == n  # type: ignore[arg-type]
