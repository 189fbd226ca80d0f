"""What a live screen shows beside the words, and what its keys ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from core.audio import Samples
from core.transcript import Event, Transcript

LEVELS = " ▁▂▃▄▅▆▇█"
FLOOR_DB = -60.0
KEYS = ("q quit", "s save", "space pause", "n new line", "d device")
NO_KEYS = ("Ctrl-C quit",)  # where none can be read, or where what is typed would be taken for them
PLAIN = str.maketrans(LEVELS + "·", " 12345678|")  # for a terminal that has but ASCII


@dataclass(frozen=True, slots=True)
class Status:
    device: str
    latency: str  # the preset
    level_db: float  # loudness of the last samples, 0 is full scale
    delay_s: float | None = None  # end of the newest committed word to its being shown
    lag_s: float = 0.0  # audio that waits to be recognised
    n_overruns: int = 0
    trouble: str = ""  # why nothing is heard


def level_db(samples: Samples) -> float:
    """Loudness of (n,) samples in decibels, at least `FLOOR_DB`."""
    if not len(samples):
        return FLOOR_DB
    return max(FLOOR_DB, float(10 * np.log10(float(np.mean(np.square(samples))) + 1e-10)))


def level_bar(db: float) -> str:
    """One block character for −60 dB to 0 dB."""
    return LEVELS[int(np.clip((db - FLOOR_DB) / -FLOOR_DB * (len(LEVELS) - 1), 0, len(LEVELS) - 1))]


def status_line(status: Status, is_paused: bool, width: int, keys: Sequence[str] = KEYS) -> str:
    """As many of the read-outs as fit, the important ones first; then as many of the keys."""
    delay = "" if status.delay_s is None else f" {status.delay_s:.1f} s"
    parts = [f"{level_bar(status.level_db)} {status.trouble or status.device}"]
    if is_paused:
        parts[0] = "paused"
    if status.n_overruns:
        parts.append(f"{status.n_overruns} overruns")
    parts += [f"lag {status.lag_s:.1f} s", f"{status.latency}{delay}", *keys]
    line = parts[0][:width]
    for part in parts[1:]:
        if len(line) + 3 + len(part) <= width:
            line += f" · {part}"
    return line


def clock(seconds: float) -> str:
    """`75.25` to `01:15.2`; hours where there are some."""
    tenths = int(seconds * 10)
    hours = f"{tenths // 36_000}:" if tenths >= 36_000 else ""
    return f"{hours}{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def committed_and_provisional(partial: Transcript) -> tuple[str, str]:
    """The two parts of a running line."""
    words = partial.words
    return tuple(" ".join(w.text for w in words if w.is_committed == state) for state in (True, False))  # type: ignore[return-value]


class Controls:
    """What the keys asked for. q, s, space, n and d; others are left alone."""

    def __init__(self) -> None:
        self.wants_to_quit = self.is_paused = False
        self._wanted: set[str] = set()

    def press(self, keys: str) -> None:
        for key in keys.lower():
            if key == "q":
                self.wants_to_quit = True
            elif key == " ":
                self.is_paused = not self.is_paused
                self._wanted.add("n")  # words before a pause do not run into those after it
            elif key in "snd":
                self._wanted.add(key)

    def take(self, key: str) -> bool:
        """Whether `s`, `n` or `d` was pressed since this was last asked."""
        was_pressed = key in self._wanted
        self._wanted.discard(key)
        return was_pressed


class Screen(Protocol):
    """Where a live session shows itself: a terminal or a window."""

    @property
    def controls(self) -> Controls: ...

    def wait(self, text: str) -> None:
        """What takes its time before the session; empty when that is over."""

    def show(self, event: Event) -> None: ...

    def status(self, status: Status) -> None:
        """The read-outs; also looks at the keyboard."""

    def note(self, text: str) -> None:
        """A line about the program, not the speech."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
