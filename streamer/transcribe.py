"""What `streamer FILE...`, `--mic` and `connect` do once the arguments are understood."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clients.file import AudioError, Source, open_audio
from core.audio import SAMPLE_RATE, Samples
from core.captions import event_object, result_object, to_json, to_srt, to_text, to_vtt
from core.transcript import Event, Gap, Transcript
from streamer.recognizer import Recognizer

LONG_FILE_S = 30  # a progress bar is worth it from here on


class Writer:
    """Renders one recording's events in the asked format, as early as the format allows."""

    def __init__(self, kind: str, write: Callable[[str], object], partials: bool, path: str | None = None) -> None:
        self.kind = kind
        self.write = write
        self.partials = partials
        self.path = path
        self.finals: list[Transcript] = []
        self.gaps: list[Gap] = []

    def event(self, event: Event, audio_s: float) -> None:
        if isinstance(event, Gap):
            self.gaps.append(event)
            print(f"streamer: warning: lost {event.start_s}-{event.end_s} s: {event.reason}", file=sys.stderr)
        elif event.is_final:
            self.finals.append(event)
        elif not self.partials:
            return
        if self.kind == "jsonl":
            self.line(event_object(event, audio_s))
        elif self.kind == "text" and isinstance(event, Transcript):
            prefix = f"{self.path}: " if self.path else ""
            self.write(f"{prefix}{event.text}\n" if event.is_final else f"{prefix}… {event.text}\n")

    def line(self, value: dict[str, object]) -> None:
        self.write(to_json(value if self.path is None else {"path": self.path, **value}) + "\n")

    def end(self, duration_s: float, model: str) -> None:
        if self.kind == "jsonl":
            self.line({"type": "end", "audio_s": duration_s})
        elif self.kind == "json":
            self.write(to_json(result_object(self.finals, self.gaps, duration_s, model, self.path)) + "\n")
        elif self.kind in ("srt", "vtt"):
            self.write((to_srt if self.kind == "srt" else to_vtt)(self.finals))


@contextmanager
def opened_output(path: str | None) -> Iterator[Callable[[str], object]]:
    """Standard output, or a file that appears under its name only when it is whole."""
    if path is None:

        def write(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        yield write
        return
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror}") from e
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file.write
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(source.name, total=source.duration_s)
        for block in source.blocks:
            yield block
            progress.advance(task, len(block) / SAMPLE_RATE)


def run_files(args: argparse.Namespace) -> int:
    """Transcribes every file; the good ones also where others cannot be read (exit code 1 then)."""
    recognizer: Recognizer | None = None
    failures = 0
    with opened_output(args.output) as write:
        for path in args.files:
            try:
                source = open_audio(path, args.sample_rate, args.encoding)
                if recognizer is None:  # a missing file is told before the model is loaded
                    recognizer = Recognizer.load(args.model, args.device, args.dtype, args.threads)
                transcribe_source(recognizer, source, args, write)
            except AudioError as e:
                failures += 1
                print(f"streamer: error: {e}", file=sys.stderr)
    return 1 if failures else 0


def transcribe_source(
    recognizer: Recognizer, source: Source, args: argparse.Namespace, write: Callable[[str], object]
) -> None:
    several = len(args.files) > 1
    writer = Writer(args.format, write, args.partials, source.name if several else None)
    blocks = with_progress(source)
    if args.offline:
        parts = list(blocks)
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        result = recognizer.transcribe(samples, SAMPLE_RATE, args.latency, offline=True)
        for final in result.segments:
            writer.event(final, result.duration_s)
        writer.end(result.duration_s, recognizer.model.name)
        return
    stream = recognizer.stream(latency=args.latency)
    for event in recognizer.events(stream, paced(blocks) if args.realtime else blocks):
        writer.event(event, stream.audio_s)
    if not stream.audio_s:
        raise AudioError(f"{source.name}: the audio has no samples; expected some")
    writer.end(stream.audio_s, recognizer.model.name)


def run_microphone(args: argparse.Namespace) -> int:
    """Live captions until `q`, Ctrl-C or the end of the microphone."""
    from clients.console import LiveCaptions
    from clients.microphone import Microphone

    with Microphone(args.input_device) as microphone, opened_output(args.output) as write:
        recognizer = Recognizer.load(args.model, args.device, args.dtype, args.threads)
        stream = recognizer.stream(latency=args.latency)
        writer = Writer(args.format, write if args.output else lambda text: None, args.partials)
        with LiveCaptions(microphone.name, args.latency) as captions:

            def show(events: Sequence[Event]) -> None:
                for event in events:
                    captions.show(event)
                    writer.event(event, stream.audio_s)

            try:
                while not captions.wants_to_quit:
                    samples = microphone.read()
                    captions.status(samples, microphone.waiting_s, microphone.n_overruns)
                    if not captions.is_paused:
                        show(stream.push(samples))
                    if captions.take_flush():
                        show(stream.flush())
            except KeyboardInterrupt:
                pass
            show(stream.finish())
        writer.end(stream.audio_s, recognizer.model.name)
        if captions.wants_to_save and not args.output:
            path = time.strftime("streamer-%Y%m%d-%H%M%S.txt")
            Path(path).write_text(to_text(writer.finals), encoding="utf-8")
            print(f"saved {path}", file=sys.stderr)
    return 0
