"""What `streamer FILE...` and `streamer --mic` do once the arguments are understood."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np

from clients.file import AudioError, Source, open_audio
from clients.microphone import BLOCK_MS, Microphone, MicrophoneError
from core.audio import SAMPLE_RATE, Samples
from core.captions import to_text
from core.transcript import Event, Gap
from streamer.output import Writer, opened_output, write_to_stdout
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
    stream = recognizer.stream(latency=args.latency, partials=args.partials)
    for event in recognizer.events(stream, paced(blocks) if args.realtime else blocks):
        writer.event(event, stream.audio_s)
    check_length(source, stream.audio_s)
    writer.end(stream.audio_s, recognizer.model.name)


def check_length(source: Source, length: float) -> None:
    if not length:
        raise AudioError(f"{source.name}: the audio has no samples; expected some")


def run_microphone(args: argparse.Namespace) -> int:
    """Live captions until `q`, Ctrl-C or the end of the microphone; whatever ends it, the last words come out.

    The captions are the text format; another format goes to standard output, and the captions to standard error.
    """
    from clients.console import LiveCaptions

    is_captioned = args.output is None and args.format == "text"
    with Microphone(args.input_device) as microphone, opened_output(args.output) as write:
        recognizer = load_recognizer(args)
        stream = recognizer.stream(latency=args.latency)
        writer = Writer(args.format, (lambda text: None) if is_captioned else write, args.partials)
        on_stderr = write is write_to_stdout and not is_captioned
        with LiveCaptions(microphone.name, args.latency, on_stderr=on_stderr) as captions:

            def show(events: Sequence[Event]) -> None:
                for event in events:
                    captions.show(event)
                    writer.event(event, stream.audio_s)

            failure = None
            try:
                while not captions.wants_to_quit:
                    show(overruns(microphone, stream))
                    samples = microphone.read()
                    captions.status(samples, microphone.waiting_s, microphone.n_overruns)
                    if not captions.is_paused:
                        show(stream.push(samples))
                    if captions.take_flush():
                        show(stream.flush())
                    if captions.take_save():
                        captions.note(f"saved {save(writer)}")
            except KeyboardInterrupt:
                pass
            except MicrophoneError as e:
                failure = e
            if not captions.is_paused:
                show(stream.push(microphone.finish()))
            show(stream.finish())
        writer.end(stream.audio_s, recognizer.model.name)
    if failure is not None:
        raise failure
    return 0


def overruns(microphone: Microphone, stream: RecognizerStream) -> list[Gap]:
    """What the microphone lost since the last call."""
    n = microphone.take_overruns()
    at = stream.audio_s
    return [Gap(at, round(at + n * BLOCK_MS / 1000, 3), f"{n} blocks of the microphone came too fast")] if n else []


def save(writer: Writer) -> str:
    """The finals so far, in a new file of the working directory; its name."""
    path = Path(time.strftime("streamer-%Y%m%d-%H%M%S.txt"))
    path.write_text(to_text(writer.finals), encoding="utf-8")
    return path.name
