"""What a step of a session costs beside the model: stitching, decoding, and all else until its events are there."""

from __future__ import annotations

import time
from dataclasses import dataclass

from core.audio import HOP, SAMPLE_RATE, Samples
from core.decoder import Decode, WordSpan
from core.engine import Engine, StreamConfig
from core.stitcher import Emission, LogProbs, stitch
from streamer.bench.metrics import percentiles


@dataclass(slots=True)
class TimedDecode:
    """A decoder, and the processor seconds of its last call."""

    decode: Decode
    seconds: float = 0.0

    def __call__(self, log_probs: LogProbs, start_frame: int, is_draft: bool = False) -> list[WordSpan]:
        began = time.process_time()
        spans = self.decode(log_probs, start_frame, is_draft)
        self.seconds += time.process_time() - began
        return spans


def session_s(engine: Engine, samples: Samples, config: StreamConfig) -> float:
    """Processor seconds of a whole session, final passes and all."""
    stream = engine.new_stream(config)
    began = time.process_time()
    for start in range(0, len(samples), HOP * config.hop):
        stream.push(samples[start : start + HOP * config.hop])
        engine.drain(stream)
    stream.finish()
    engine.drain(stream)
    return time.process_time() - began


def measure_steps(engine: Engine, samples: Samples, config: StreamConfig) -> dict[str, dict[str, float]]:
    """Percentiles in µs over the steps of a stream: `stitch`, `decode`, `other` and the `whole`."""
    decode = TimedDecode(engine.decode)
    stream = engine.new_stream(config, decode)
    micros: dict[str, list[float]] = {"stitch": [], "decode": [], "other": [], "whole": []}
    for start in range(0, len(samples), SAMPLE_RATE):
        stream.push(samples[start : start + SAMPLE_RATE])
        while (task := stream.next_pass()) is not None:
            log_probs = engine.model.emit([engine.window(stream, task)])[0]
            stable = stream.stable_after(task)
            frames = stream.frames if stable >= stream.target else stream.shown
            window = Emission(log_probs, task.start_sample // HOP).since(frames.start_frame)
            decode.seconds = 0.0
            began = time.process_time()
            engine.apply(stream, task, log_probs)
            whole = time.process_time() - began
            if task.cut is None:
                began = time.process_time()
                stitch(frames, window, stable, engine.alphabet.silent)
                stitched = time.process_time() - began
                parts = {"stitch": stitched, "decode": decode.seconds, "other": whole - stitched - decode.seconds}
                for name, seconds in {**parts, "whole": whole}.items():
                    micros[name].append(1e6 * seconds)
    return {name: percentiles(values, 1) for name, values in micros.items()}
