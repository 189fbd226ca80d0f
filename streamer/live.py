"""Live sessions: what comes from a microphone or a played file, recognised here or by a server, goes to a screen
and to whatever else was asked for. The sound's clock runs on through losses, so that all times fit a recording."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from clients.captions_file import CaptionsFile
from clients.controls import Screen, Status, level_db
from clients.desktop import Clipboard, Command, DesktopError, Typist, find_copier, find_typist
from clients.devices import Device, find_device, find_system_audio
from clients.file import open_audio
from clients.live_input import LiveInput, PlayedFile, SteadyMicrophone
from clients.microphone import NOTHING, Heard
from clients.recording import Recording
from core.audio import Samples
from core.transcript import Event, Gap, Transcript
from streamer.output import EXTENSIONS, LiveFile, Writer, render, write_to_stdout
from streamer.timeline import Delay, EventStream, Timeline

DELAYS_S = {"low": 0.5, "balanced": 1.0, "accurate": 2.0}  # of the loudspeaker after the recogniser


class LiveStream(Protocol):
    """A stream and what is known of who recognises it."""

    @property
    def stream(self) -> EventStream: ...

    @property
    def model(self) -> str: ...

    @property
    def trouble(self) -> str:
        """Why nothing is recognised; empty where all is well."""

    def lag_s(self) -> float:
        """Seconds of audio that were handed over and are not recognised yet."""


class Sink(Protocol):
    """Takes events; raises OSError or DesktopError where it can no longer."""

    def event(self, event: Event) -> None: ...

    def close(self) -> None: ...


class LiveSession:
    """One input, one stream, one screen, any number of sinks."""

    def __init__(
        self,
        args: argparse.Namespace,
        source: LiveInput,
        live: LiveStream,
        screen: Screen,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.args, self.source, self.live, self.screen = args, source, live, screen
        self.timeline = Timeline(live.stream)
        self.delay = Delay()
        self.finals: list[Transcript] = []
        self.gaps: list[Gap] = []
        self.failures: list[str] = []
        self.file: LiveFile | Writer | None = None
        self.recording: Recording | None = None
        self.sinks = list(sinks)

    def open_outputs(self, stack: ExitStack) -> None:
        """Raises OSError where a file cannot be written, before anything is said."""
        args = self.args
        if args.captions_file is not None:
            self.sinks.append(CaptionsFile(args.captions_file))
        if args.record is not None:
            self.recording = stack.enter_context(Recording(args.record))
        if args.output is not None:
            self.file = LiveFile(args.output, args.format, args.partials, self.live.model)
        elif args.format != "text":
            self.file = Writer(args.format, write_to_stdout, args.partials, warns=False)
        if args.exec is not None:
            self.sinks.append(Command(args.exec))

    def run(self, has_been_interrupted: Callable[[], bool]) -> None:
        """Until the keys, a signal or the input end it; whatever does, the last words come out."""
        controls = self.screen.controls
        try:
            while not (controls.wants_to_quit or has_been_interrupted() or self.source.has_ended):
                was_paused = controls.is_paused
                heard = self.source.read()
                self.screen.status(self.status(heard.samples))
                self.source.pause(controls.is_paused)
                self.hear(NOTHING if was_paused else heard)  # a server's last words come during the pause
                if controls.take("n"):
                    self.take(self.timeline.flush())
                if controls.take("s"):
                    self.save()
                if controls.take("d"):
                    self.screen.note(self.source.switch())
        finally:
            with ExitStack() as ending:  # each of these also where one before it fails
                ending.callback(self.close)
                ending.callback(lambda: self.take(self.timeline.finish()))
                for heard in self.source.finish() if not controls.is_paused else ():
                    self.hear(heard)

    def status(self, samples: Samples) -> Status:
        source = self.source
        lag = source.waiting_s + self.live.lag_s()
        level = level_db(samples)
        latency = self.args.latency or "latency"  # the server's choice
        trouble = source.trouble or self.live.trouble
        return Status(source.name, latency, level, self.delay.seconds, lag, source.n_overruns, trouble)

    def hear(self, heard: Heard) -> None:
        if self.recording is not None:
            try:
                self.recording.skip(heard.lost_s)
                self.recording.push(heard.samples)
            except OSError as e:
                self.recording = None
                self.fail(f"the recording has ended: {e}")
        self.take(self.timeline.push(heard))

    def take(self, events: Sequence[Event]) -> None:
        """Gives events to all who want them; that the screen has gone is told when they have them all."""
        now, gone = self.timeline.audio_s, None
        for event in events:
            self.delay.see(event, now + self.source.waiting_s)
            if isinstance(event, Gap):
                self.gaps.append(event)
            elif event.is_final:
                self.finals.append(event)
            self.write(event, now)
            try:
                self.screen.show(event)
            except OSError as e:
                gone = e
            for sink in list(self.sinks):
                try:
                    sink.event(event)
                except (OSError, DesktopError) as e:
                    self.sinks.remove(sink)
                    self.fail(str(e))
        if gone is not None:
            raise gone

    def write(self, event: Event, now: float) -> None:
        if self.file is None:
            return
        try:
            self.file.event(event, now)
        except OSError as e:
            self.file = None
            self.fail(f"the output has ended: {e}")

    def fail(self, text: str) -> None:
        """An output that fails is told, and left alone; the session goes on."""
        self.failures.append(text)
        with suppress(OSError):  # the screen has gone, too
            self.screen.note(text)

    def save(self) -> None:
        """The finals so far, in a new file of the working directory."""
        kind = "text" if self.args.format == "jsonl" else self.args.format
        path = Path(time.strftime(f"streamer-%Y%m%d-%H%M%S.{EXTENSIONS[kind]}"))
        text = render(kind, self.finals, self.gaps, self.timeline.audio_s, self.live.model)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as e:
            self.fail(f"not saved: {e}")
        else:
            self.screen.note(f"saved {path.name}")

    def close(self) -> None:
        try:
            if isinstance(self.file, LiveFile):
                self.file.end(self.timeline.audio_s)
            elif self.file is not None:
                self.file.end(self.timeline.audio_s, self.live.model)
        except OSError as e:
            self.fail(f"the output has ended: {e}")
        for sink in self.sinks:
            try:
                sink.close()
            except (OSError, DesktopError) as e:
                self.fail(str(e))


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C, SIGTERM or the terminal's end has come; the second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def open_played(args: argparse.Namespace) -> PlayedFile:
    """Raises AudioError."""
    source = open_audio(args.play, args.sample_rate, args.encoding, args.channels)
    return PlayedFile(Path(source.name).name, source.blocks, DELAYS_S[args.latency or "balanced"])


def find_microphone(args: argparse.Namespace) -> Device:
    """Raises MicrophoneError."""
    return find_system_audio() if args.system_audio else find_device(args.input_device)


def open_input(args: argparse.Namespace) -> SteadyMicrophone | PlayedFile:
    """Raises MicrophoneError or AudioError."""
    return SteadyMicrophone(args.input_device, args.system_audio) if args.play is None else open_played(args)


def open_screen(args: argparse.Namespace) -> Screen:
    """With `--type` it takes no keys: they may be the words that are typed.

    Raises:
        WindowError: none can be opened.
    """
    if args.window:
        from clients.window import Window

        return Window(args.theme, takes_keys=not args.type)
    from clients.console import LiveCaptions

    # Another format on standard output is for a program: the captions keep out of its way.
    return LiveCaptions(on_stderr=args.output is None and args.format != "text", takes_keys=not args.type)


def open_desktop(args: argparse.Namespace) -> list[Sink]:
    """Raises DesktopError."""
    sinks: list[Sink] = []
    if args.clipboard:
        sinks.append(Clipboard(find_copier()))
    if args.type:
        sinks.append(Typist(find_typist()))
    return sinks


@contextmanager
def waiting(screen: Screen, text: str) -> Iterator[None]:
    screen.wait(text)
    try:
        yield
    finally:
        screen.wait("")


def run_live(
    args: argparse.Namespace, opening: Callable[[], AbstractContextManager[LiveStream]], prepare: Callable[[], None]
) -> int:
    """Live captions until `q`, Ctrl-C or the end of what is played; 1 where an output failed on the way.

    What cannot be is told first. `prepare` imports what `opening` needs: libraries that are being loaded let no
    sound in. Then the input is opened, and what is said while `opening` loads the model waits.

    Raises:
        MicrophoneError, AudioError, WindowError, DesktopError, OSError: something that was asked for cannot be.
    """
    with ExitStack() as stack:
        played = None if args.play is None else stack.enter_context(open_played(args))
        if played is None:
            find_microphone(args)
        sinks = open_desktop(args)
        screen = open_screen(args)
        with waiting(screen, "getting ready"):
            prepare()
        source = played or stack.enter_context(SteadyMicrophone(args.input_device, args.system_audio))
        with waiting(screen, f"{source.name} is open; what is said now waits"):
            live = stack.enter_context(opening())
        session = LiveSession(args, source, live, screen, sinks)
        session.open_outputs(stack)
        has_been_interrupted = stack.enter_context(interruption())
        with screen:
            if isinstance(source, PlayedFile) and source.note:
                screen.note(source.note)
            session.run(has_been_interrupted)
    for failure in session.failures:
        print(f"streamer: error: {failure}", file=sys.stderr)
    return 1 if session.failures else 0


def run_microphone(args: argparse.Namespace) -> int:
    """Live captions that are recognised here; see `run_live`."""

    @contextmanager
    def opening() -> Iterator[LiveStream]:
        from streamer.recognizer import load_recognizer
        from streamer.transcribe import LocalStream, config_of

        recognizer = load_recognizer(args)
        yield LocalStream(recognizer.stream(config=config_of(args)), recognizer.model.name)

    def prepare() -> None:
        import streamer.recognizer  # noqa: F401

    return run_live(args, opening, prepare)
