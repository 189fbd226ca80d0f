"""What `streamer FILE...` does once the arguments are understood."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import numpy as np

from clients.file import AudioError, Source, open_audio
from core.audio import SAMPLE_RATE, Samples, frames_in
from core.windows import StreamConfig
from streamer.output import Writer, opened_output
from streamer.recognizer import Recognizer, RecognizerStream, load_recognizer

LONG_FILE_S = 30  # a progress bar is worth it from here on


class NothingToWrite(Exception):
    """No file could be transcribed: an output of an earlier run stays."""


def paced(blocks: Iterable[Samples], packet: int = SAMPLE_RATE // 10) -> Iterator[Samples]:
    """100 ms at a time, none before it would have been heard."""
    start, n = time.monotonic(), 0
    for block in blocks:
        for first in range(0, len(block), packet):
            part = block[first : first + packet]
            n += len(part)
            time.sleep(max(0.0, start + n / SAMPLE_RATE - time.monotonic()))
            yield part


def with_progress(source: Source) -> Iterator[Samples]:
    """The source's blocks, with a bar on standard error where that is a terminal and the file is long."""
    if source.duration_s is None or source.duration_s < LONG_FILE_S or not sys.stderr.isatty():
        yield from source.blocks
        return
    from rich.console import Console
    from rich.progress import Progress

    # Where both are one terminal the result must scroll above the bar; elsewhere it must not end up in the bar.
    redirects = sys.stdout.isatty()
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=redirects) as progress:
        task = progress.add_task(source.name, total=source.duration_s)
        for block in source.blocks:
            yield block
            progress.advance(task, len(block) / SAMPLE_RATE)


def run_files(args: argparse.Namespace) -> int:
    """Transcribes every file; the good ones also where others cannot be read (exit code 1 then)."""
    recognizer: Recognizer | None = None
    failures = 0
    with suppress(NothingToWrite), opened_output(None if args.targets else args.output) as shared:
        for i, path in enumerate(args.files):
            try:
                source = open_audio(path, args.sample_rate, args.encoding, args.channels)
                if recognizer is None:  # a missing file is told before the model is loaded
                    recognizer = load_recognizer(args)
                with opened_output(args.targets[i]) if args.targets else nullcontext(shared) as write:
                    transcribe_source(recognizer, source, args, write)
            except AudioError as e:
                failures += 1
                print(f"streamer: error: {e}", file=sys.stderr)
        if failures == len(args.files):
            raise NothingToWrite
    return 1 if failures else 0


def transcribe_source(
    recognizer: Recognizer, source: Source, args: argparse.Namespace, write: Callable[[str], object]
) -> None:
    is_shared = len(args.files) > 1 and not args.targets
    writer = Writer(args.format, write, args.partials, source.name if is_shared else None)
    blocks = with_progress(source)
    if args.offline:
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
        check_length(source, len(samples))
        result = recognizer.transcribe(samples, SAMPLE_RATE, args.latency, offline=True)
        for final in result.segments:
            writer.event(final, result.duration_s)
        writer.end(result.duration_s, recognizer.model.name)
        return
    stream = recognizer.stream(partials=args.partials, config=config_of(args))
    for event in recognizer.events(stream, paced(blocks) if args.realtime else blocks):
        writer.event(event, stream.audio_s)
    check_length(source, stream.audio_s)
    writer.end(stream.audio_s, recognizer.model.name)


def config_of(args: argparse.Namespace) -> StreamConfig:
    config = StreamConfig.preset(args.latency, steady=args.steady)
    return config if args.commit_ms is None else replace(config, commit_after=frames_in(args.commit_ms))


def check_length(source: Source, length: float) -> None:
    if not length:
        raise AudioError(f"{source.name}: the audio has no samples; expected some")


@dataclass(frozen=True, slots=True)
class LocalStream:
    """A live stream that this process recognises, in step with its audio."""

    stream: RecognizerStream
    model: str
    trouble: str = ""

    def lag_s(self) -> float:
        return 0.0
