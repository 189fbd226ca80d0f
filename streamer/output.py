"""Where results go: events as text in the asked format, and files that appear only when they are whole."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.captions import event_object, result_object, to_json, to_srt, to_vtt
from core.transcript import Event, Gap, Transcript

EXTENSIONS = {"text": "txt", "json": "json", "jsonl": "jsonl", "srt": "srt", "vtt": "vtt"}


class Writer:
    """Renders one recording's events in the asked format, as early as the format allows.

    `path` is given where several recordings share one output: text lines begin with it, objects hold it.
    """

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


def plan_outputs(files: Sequence[str], kind: str, output: str | None) -> tuple[str, ...]:
    """A path for each file where `output` is a directory; empty where all files share one output.

    Raises:
        ValueError: subtitles of several files in one, one output for two files, or an output that is an input.
    """
    targets: tuple[str, ...] = ()
    if output is not None and (Path(output).is_dir() or output.endswith(("/", os.sep))):
        if not Path(output).is_dir():
            raise ValueError(f"--output {output}: no such directory")
        stems = ["stdin" if file == "-" else Path(file).stem for file in files]
        targets = tuple(str(Path(output) / f"{stem}.{EXTENSIONS[kind]}") for stem in stems)
        if twice := [target for i, target in enumerate(targets) if target in targets[:i]]:
            raise ValueError(f"{twice[0]} would be written twice; transcribe files of the same name one by one")
    elif kind in ("srt", "vtt") and len(files) > 1:
        raise ValueError(f"--format {kind} describes one recording: with several files give --output DIRECTORY")
    for target in targets or ((output,) if output is not None else ()):
        for file in files:
            if os.path.isfile(target) and os.path.isfile(file) and os.path.samefile(target, file):
                raise ValueError(f"--output {target} would replace the recording {file}")
    return targets


def write_to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def opened_output(path: str | None) -> Iterator[Callable[[str], object]]:
    """Standard output, or a file that appears under its name only when it is whole.

    After an exception a file of that name is as it was. Devices and pipes are written directly.

    Raises:
        OSError: nothing can be written there; told before anything is transcribed.
    """
    if path is None:
        yield write_to_stdout
        return
    target = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
    if target.is_dir():
        raise OSError(f"cannot write {path}: it is a directory")
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8") as device:
            yield device.write
        return
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~current_umask()
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror}") from e
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file.write
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def current_umask() -> int:
    """The permissions that new files are not to have; it can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
