"""What `/metrics` tells Prometheus. One registry for each app, so that two apps can live in one process."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from streamer.scheduler import Scheduler, StepReport

STEP_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds


class Metrics:
    """Safe to update from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.sessions = Gauge("streamer_sessions", "Sessions that are transcribed now", registry=registry)
        self.lingering = Gauge("streamer_sessions_lingering", "Sessions that wait for a resume", registry=registry)
        self.started = Counter("streamer_sessions_started", "Sessions started", registry=registry)
        self.resumed = Counter("streamer_sessions_resumed", "Connections that resumed a session", registry=registry)
        self.refused = Counter("streamer_refused", "Connections refused", ["reason"], registry=registry)
        self.audio = Counter("streamer_audio_seconds", "Audio accepted", registry=registry)
        self.gaps = Counter("streamer_gaps", "Pieces of audio that were not transcribed", registry=registry)
        self.failures = Counter("streamer_sessions_failed", "Sessions given up by the recogniser", registry=registry)
        self.lag = Gauge("streamer_lag_seconds", "Longest backlog of any session", registry=registry)
        self.step = Histogram(
            "streamer_step_seconds", "Time in the model for one batch", buckets=STEP_BUCKETS, registry=registry
        )
        self.delay = Histogram(
            "streamer_queue_delay_seconds",
            "Longest time a ready stream waited for its batch",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self.latency = Gauge(
            "streamer_step_latency_seconds",
            "From a step's audio to its result, of the last ten seconds' steps in real time",
            ["quantile"],
            registry=registry,
        )
        self.widened = Gauge("streamer_widened", "Whether steps for partials are left out", registry=registry)
        self.factor = Gauge("streamer_real_time_factor", "Time in the model by audio accepted", registry=registry)
        self.factor.set_function(lambda: self.step_s / self.audio_s if self.audio_s else 0.0)
        self.step_s = self.audio_s = 0.0
        ProcessCollector(registry=registry)  # processor time and memory, on Linux
        self.batch = Histogram(
            "streamer_batch_size", "Streams in one batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )

        self.still = Counter("streamer_still_windows", "Windows of silence that no model ran for", registry=registry)

    def on_step(self, report: StepReport) -> None:
        self.still.inc(report.n_still)
        self.step.observe(report.step_s)
        self.step_s += report.step_s
        self.delay.observe(report.delay_s)
        self.batch.observe(report.n_streams)

    def on_audio(self, audio_s: float) -> None:
        self.audio.inc(audio_s)
        self.audio_s += audio_s

    def watch(self, scheduler: Scheduler) -> None:
        """Asks the scheduler itself for what it measures."""
        for q in (0.5, 0.95, 0.99):
            self.latency.labels(str(q)).set_function(partial(scheduler.step_quantile_s, q))
        self.widened.set_function(lambda: float(scheduler.admission.is_widened))

    def text(self) -> bytes:
        return generate_latest(self.registry)
