"""`streamer bench mic`: how long after a word was spoken it is on the screen, with all that lies between being real.

A file is played into a loudspeaker of PulseAudio or PipeWire that leads nowhere, and captioned from there as
`streamer --mic` does. A word's *emission latency* is the time from its end until the terminal has been given it. Its
end is that of one pass over the file (`own_aligner`). When the file began is told by a second recorder of the same
loudspeaker, which waits for 10 ms of sound at a time: in both recordings the file is found by cross-correlation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import soundfile
from rich.console import Console

from clients.console import LiveCaptions
from clients.file import open_audio
from clients.microphone import MicrophoneError
from core.audio import SAMPLE_RATE, Samples, decode_pcm
from core.engine import Engine
from core.normalise import normalise
from core.offline import emit_long
from core.transcript import Event, Gap
from streamer.bench.latency import spoken
from streamer.bench.latency_report import Heard, delays
from streamer.bench.latency_table import PERCENTILES
from streamer.bench.metrics import percentiles
from streamer.bench.references import Reference, own_aligner
from streamer.bench.replay import ShownWord, Snapshot, shown_word
from streamer.live import LiveSession, open_input
from streamer.recognizer import Recognizer, load_recognizer
from streamer.transcribe import LocalStream

LEAD_S, TAIL_S = 2, 3  # silence before and after a file
SINK_RATE = 48_000  # Hz, as most loudspeakers have
PROBE_MS = 10
SAME = 0.8  # at least, of 1: how alike the file and what came back of it are


class TimedCaptions(LiveCaptions):
    """The terminal's captions, and when each of them had been written; where there is no terminal, to nowhere."""

    def __init__(self, nowhere: Any) -> None:
        is_there = sys.stderr.isatty()
        super().__init__(Console(stderr=True) if is_there else Console(file=nowhere, force_terminal=True, width=100))
        self.shown: list[tuple[float, Event]] = []

    def show(self, event: Event) -> None:
        super().show(event)
        self.shown.append((time.monotonic(), event))


class Probe:
    """A recorder that hears a source with little delay, and knows when."""

    def __init__(self, source: str) -> None:
        command = ["parec", f"--device={source}", f"--rate={SAMPLE_RATE}", "--channels=1", "--format=s16le"]
        self._process = subprocess.Popen([*command, f"--latency-msec={PROBE_MS}"], stdout=subprocess.PIPE, bufsize=0)
        self._reads: list[tuple[float, bytes]] = []
        self._thread = threading.Thread(target=self._read, name="probe")

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read(1 << 16):
            self._reads.append((time.monotonic(), data))

    def began(self, samples: Samples) -> float:
        """When the first of the samples sounded, on the monotonic clock: by the promptest of all reads of them."""
        reads = list(self._reads)  # more may come meanwhile
        at = find(samples, decode_pcm(b"".join(data for _, data in reads), "pcm_s16le"))
        ends = np.cumsum([len(data) // 2 for _, data in reads])
        during = (ends > at) & (ends <= at + len(samples))
        times = np.array([moment for moment, _ in reads])
        return float(np.min(times[during] - (ends[during] - at) / SAMPLE_RATE))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._thread.join()
        self._process.communicate()  # waits, and closes its pipe


def find(samples: Samples, heard: Samples) -> int:
    """Where in a recording the samples begin.

    Raises:
        MicrophoneError: they are not in it, or broken up.
    """
    size = 1 << (len(heard) + len(samples)).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(samples, size)), size)
    at = int(np.argmax(likeness[: max(1, len(heard) - len(samples) + 1)]))
    found = heard[at : at + len(samples)]
    norms = np.linalg.norm(found) * np.linalg.norm(samples[: len(found)])
    alike = float(np.dot(found, samples[: len(found)]) / norms) if norms else 0.0
    if alike < SAME:
        raise MicrophoneError(f"the sound did not come back whole. Expected a likeness of {SAME}. Found: {alike:.2f}")
    return at


def pactl(*arguments: str) -> str:
    """Raises MicrophoneError where there is no sound server."""
    if any(shutil.which(tool) is None for tool in ("pactl", "paplay", "parec")):
        raise MicrophoneError(
            "streamer bench mic needs PulseAudio or PipeWire and pactl, paplay, parec "
            "(Debian and Ubuntu: apt install pulseaudio pulseaudio-utils libasound2-plugins)"
        )
    done = subprocess.run(["pactl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MicrophoneError(f"the sound server does not answer: {done.stderr.strip()}; start PulseAudio or PipeWire")
    return done.stdout.strip()


@contextmanager
def null_sink() -> Iterator[str]:
    """A loudspeaker that leads nowhere, as long as it is needed."""
    name = f"streamer_bench_{os.getpid()}"
    module = pactl("load-module", "module-null-sink", f"sink_name={name}", f"rate={SINK_RATE}")
    try:
        yield name
    finally:
        pactl("unload-module", module)


def reference(engine: Engine, path: str, samples: Samples) -> Reference:
    """What one pass hears in the file, and when.

    Raises:
        ValueError: nothing.
    """
    log_probs = emit_long(engine, samples, engine.new_stream())
    text = normalise(" ".join(word.text for word in engine.decode(log_probs, 0)))
    if not text:
        raise ValueError(f"{path}: expected speech. Found no word")
    starts_s, ends_s = zip(*own_aligner(engine)(samples, log_probs, text.split()), strict=True)
    return Reference(path, len(samples) / SAMPLE_RATE, tuple(text.split()), starts_s, ends_s, text)


def snapshots(shown: Sequence[tuple[float, Event]], began: float, offset_s: float) -> list[Snapshot]:
    """What the screen showed, on the clock of the file.

    Args:
        began: when the file began, on the clock of `shown`.
        offset_s: when it did, on the clock of the words.
    """
    found: list[Snapshot] = []
    finals: tuple[ShownWord, ...] = ()
    for moment, event in shown:
        if isinstance(event, Gap):
            continue
        words = [shown_word(word) for word in event.words]
        moved = (ShownWord(w.text, w.start_s - offset_s, w.end_s - offset_s, w.confidence) for w in words)
        n_committed = len(finals) + event.n_committed_words
        at_s, both = moment - began, (*finals, *moved)
        if event.is_final:
            finals = both
        found.append(spoken(Snapshot(at_s, at_s, both, n_committed)))
    return found


def caption(recognizer: Recognizer, latency: str, samples: Samples) -> Heard:
    """Plays the samples and captions them. Raises MicrophoneError."""
    from streamer.cli import transcribe_parser

    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        sink = stack.enter_context(null_sink())
        recording = str(folder / "heard.wav")
        source = ["--input-device", f"pulse:{sink}.monitor", "--record", recording, "--latency", latency]
        args = transcribe_parser().parse_args(["--mic", "--format", "text", *source])
        silence = [np.zeros(seconds * SAMPLE_RATE, np.float32) for seconds in (LEAD_S, TAIL_S)]
        soundfile.write(folder / "played.wav", np.concatenate([silence[0], samples, silence[1]]), SAMPLE_RATE)
        nowhere = stack.enter_context(open(os.devnull, "w"))
        with Probe(f"{sink}.monitor") as probe, open_input(args) as microphone, TimedCaptions(nowhere) as screen:
            live = LocalStream(recognizer.stream(latency=latency), recognizer.model.name)
            session = LiveSession(args, microphone, live, screen)
            with ExitStack() as outputs, subprocess.Popen(["paplay", "-d", sink, str(folder / "played.wav")]) as player:
                session.open_outputs(outputs)
                session.run(lambda: player.poll() is not None)
        heard = soundfile.read(recording, dtype="float32")[0]
        offset_s = find(samples, heard) / SAMPLE_RATE
        shown = snapshots(screen.shown, probe.began(samples), offset_s)
    text = " ".join(shown[-1].texts) if shown else ""
    return Heard(tuple(shown), text, None, 0.0, len(samples) / SAMPLE_RATE)


def measure(recognizer: Recognizer, latency: str, paths: Sequence[str]) -> dict[str, Any]:
    """The object that `--json` prints."""
    recordings = [np.concatenate(list(open_audio(path).blocks)) for path in paths]
    said = [reference(recognizer.engine, path, of) for path, of in zip(paths, recordings, strict=True)]
    heard = [caption(recognizer, latency, samples) for samples in recordings]
    of_words = delays(said, heard)
    return {
        "model": recognizer.model.name,
        "latency": latency,
        "n_files": len(paths),
        "audio_s": round(sum(of.duration_s for of in said), 3),
        "n_words": sum(len(of.words) for of in said),
        "emission_s": {kind: percentiles(clocks["with_compute"]) for kind, clocks in of_words.items()},
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"model {result['model']}, latency {result['latency']}, {result['n_files']} files, {result['audio_s']:.1f} s, "
        f"{result['n_words']} words",
        "Seconds from the end of a word until it is on the screen",
        f"{'word is':12} {' '.join(f'{head:>7}' for head in (*PERCENTILES, 'words'))}",
    ]
    for kind, of in result["emission_s"].items():
        lines.append(f"{kind:12} {' '.join(f'{of.get(p, 0):7.2f}' for p in PERCENTILES)} {of['n']:7}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="speech, which is played one after the other")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    pactl("info")  # before the model is loaded
    result = measure(load_recognizer(args), args.latency, args.files)
    print(json.dumps(result) if args.json else table(result))
    return 0
