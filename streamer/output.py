"""Where results go: events as text in the asked format, and files that appear only when they are whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from clients.captions_file import new_beside, replace_text
from core.captions import event_object, result_object, to_json, to_srt, to_text, to_vtt
from core.transcript import Event, Gap, Transcript

EXTENSIONS = {"text": "txt", "json": "json", "jsonl": "jsonl", "srt": "srt", "vtt": "vtt"}


def format_of(kind: str | None, output: str | None) -> str:
    """The asked format; else the one that the output's name ends in; else text."""
    by_extension = {extension: name for name, extension in EXTENSIONS.items()}
    return kind or by_extension.get(Path(output or "").suffix.lower().removeprefix("."), "text")


def render(kind: str, finals: Sequence[Transcript], gaps: Sequence[Gap], duration_s: float, model: str) -> str:
    """A whole transcript as text, srt, vtt or json."""
    if kind == "json":
        return to_json(result_object(finals, gaps, duration_s, model)) + "\n"
    return {"text": to_text, "srt": to_srt, "vtt": to_vtt}[kind](finals)


class Writer:
    """Renders one recording's events in the asked format, as early as the format allows.

    `path` is given where several recordings share one output: text lines begin with it, objects hold it.
    """

    def __init__(
        self,
        kind: str,
        write: Callable[[str], object],
        partials: bool,
        path: str | None = None,
        warns: bool = True,
    ) -> None:
        self.kind = kind
        self.write = write
        self.partials = partials
        self.path = path
        self.warns = warns  # of gaps, on standard error
        self.keeps = kind in ("json", "srt", "vtt")  # the others are written as they come, for days perhaps
        self.finals: list[Transcript] = []
        self.gaps: list[Gap] = []

    def event(self, event: Event, audio_s: float) -> None:
        if isinstance(event, Gap):
            if self.keeps:
                self.gaps.append(event)
            if self.warns:
                print(f"streamer: warning: lost {event.start_s}-{event.end_s} s: {event.reason}", file=sys.stderr)
        elif event.is_final:
            if self.keeps:
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


def check_targets(targets: Mapping[str, str | None], recording: str | None) -> None:
    """Options and the files that they write.

    Raises:
        ValueError: two write the same file, or one the recording that is read.
    """
    seen: dict[str, str] = {}
    for option, path in targets.items():
        if path is None or os.path.exists(path) and not os.path.isfile(path):  # devices take what is given
            continue
        place = os.path.realpath(path)
        if not os.path.isdir(os.path.dirname(place)):
            raise ValueError(f"{option} {path}: there is no folder {os.path.dirname(place)}; make it first")
        if recording is not None and os.path.realpath(recording) == place:
            raise ValueError(f"{option} {path} would replace the recording")
        if place in seen:
            raise ValueError(f"{seen[place]} and {option} would both write {path}")
        seen[place] = option


def write_to_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError as e:
        sys.stdout.write(encodable(text, e.encoding))
    sys.stdout.flush()


def encodable(text: str, encoding: str) -> str:
    r"""What an encoding lacks as JSON may have it, too: `→` to `\u2192` in Latin-1. Only `…` has another form."""
    plain = text.replace("…", "...")
    return "".join(c if c.encode(encoding, "ignore") else json.dumps(c)[1:-1] for c in plain)


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
    handle, name = new_beside(target)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file.write
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class LiveFile:
    """A transcript that grows while it is spoken, valid at every moment, also after a kill.

    Lines (text, jsonl) are appended and synchronised; the other formats are replaced whole with every final, in
    one step. Devices and pipes get what `Writer` writes.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, path: str, kind: str, partials: bool, model: str) -> None:
        self.kind, self.model = kind, model
        self.target = Path(os.path.realpath(path))
        if self.target.is_dir():
            raise OSError(f"cannot write {path}: it is a directory")
        self.is_appended = kind in ("text", "jsonl") or (self.target.exists() and not self.target.is_file())
        if self.is_appended:
            try:
                self.file = self.target.open("w", encoding="utf-8")
            except OSError as e:
                raise OSError(f"cannot write {path}: {e.strerror}") from e
        self.writer = Writer(kind, self.append if self.is_appended else lambda text: None, partials, warns=False)
        if not self.is_appended:
            self.replace(0.0)

    def append(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()
        if self.target.is_file():
            os.fsync(self.file.fileno())

    def replace(self, audio_s: float) -> None:
        text = render(self.kind, self.writer.finals, self.writer.gaps, audio_s, self.model)
        replace_text(self.target, text, is_durable=True)

    def event(self, event: Event, audio_s: float) -> None:
        self.writer.event(event, audio_s)
        if not self.is_appended and (isinstance(event, Gap) or event.is_final):
            self.replace(audio_s)

    def end(self, duration_s: float) -> None:
        if self.is_appended:
            self.writer.end(duration_s, self.model)
            self.file.close()
        else:
            self.replace(duration_s)
