"""Live captions in a terminal: committed words bright, provisional ones dim, finals scroll up.

Without a terminal every final is a plain line. Keys: q quit, s save, space pause, n new line (flush).
"""

from __future__ import annotations

import os
import select
import sys
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from core.audio import Samples
from core.transcript import Event, Gap, Transcript

LEVELS = " ▁▂▃▄▅▆▇█"


class Keys:
    """Single key presses, where standard input is a terminal; none elsewhere."""

    def __init__(self) -> None:
        self._saved: Any = None

    def __enter__(self) -> Self:
        if os.name == "posix" and sys.stdin.isatty():
            import termios
            import tty

            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)

    def pressed(self) -> str:
        """The keys since the last call."""
        keys = ""
        if os.name == "nt":
            import msvcrt

            while msvcrt.kbhit():  # type: ignore[attr-defined]
                keys += msvcrt.getwch()  # type: ignore[attr-defined]
        elif self._saved is not None:
            while select.select([sys.stdin], [], [], 0)[0]:
                key = os.read(sys.stdin.fileno(), 1).decode("ascii", "replace")
                if not key:
                    break
                keys += key
        return keys


def render(partial: Transcript) -> Text:
    """The running line: committed words bright, the others dim."""
    line = Text()
    for word in partial.words:
        line.append(word.text + " ", style="bold" if word.is_committed else "dim")
    return line


def level_bar(samples: Samples) -> str:
    """One block character for the loudness, −60 dB to 0 dB."""
    if not len(samples):
        return LEVELS[0]
    db = 10 * np.log10(float(np.mean(np.square(samples))) + 1e-10)
    return LEVELS[int(np.clip((db + 60) / 60 * (len(LEVELS) - 1), 0, len(LEVELS) - 1))]


class LiveCaptions:
    """Shows events as they come. `with LiveCaptions(device, latency) as captions: captions.show(event)`."""

    def __init__(self, device: str, latency: str, console: Console | None = None, on_stderr: bool = False) -> None:
        self.console = console or Console(highlight=False, stderr=on_stderr)
        self.device = device
        self.latency = latency
        self.wants_to_quit = self.is_paused = False
        self._wants_flush = self._wants_save = False
        self._keys = Keys()
        self._partial = Text()
        self._status = Text()
        self._live = Live(console=self.console, refresh_per_second=12, transient=True, redirect_stdout=not on_stderr)

    def show(self, event: Event) -> None:
        if isinstance(event, Gap):
            self._line(Text(f"[{event.end_s - event.start_s:.1f} s lost: {event.reason}]", style="red"))
        elif event.is_final:
            self._partial = Text()
            tenths = int(event.start_s * 10)
            stamp = f"{tenths // 600:02}:{tenths // 10 % 60:02}.{tenths % 10}  "
            self._line(Text(stamp, style="cyan") + Text(event.text))
        else:
            self._partial = render(event)
        self._draw()

    def status(self, samples: Samples, lag_s: float, n_overruns: int) -> None:
        """The line under the captions, and what the keys ask for."""
        self._obey(self._keys.pressed())
        state = "paused" if self.is_paused else f"{level_bar(samples)} {self.device}"
        overruns = f" · {n_overruns} overruns" if n_overruns else ""
        text = f"{state} · {self.latency} · lag {lag_s:.1f} s{overruns} · q quit, s save, space pause, n new line"
        self._status = Text(text, style="dim", overflow="ellipsis", no_wrap=True)
        self._draw()

    def take_flush(self) -> bool:
        """Whether `n` was pressed since the last call."""
        wanted, self._wants_flush = self._wants_flush, False
        return wanted

    def take_save(self) -> bool:
        """Whether `s` was pressed since the last call."""
        wanted, self._wants_save = self._wants_save, False
        return wanted

    def note(self, text: str) -> None:
        """A line about the program, not the speech."""
        self._line(Text(text, style="dim"))

    def _line(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)  # the terminal wraps; a file or pipe gets whole lines

    def _obey(self, keys: str) -> None:
        for key in keys:
            self.wants_to_quit |= key == "q"
            self._wants_save |= key == "s"
            self._wants_flush |= key == "n"
            if key == " ":
                self.is_paused = not self.is_paused

    def _draw(self) -> None:
        if self.console.is_terminal:
            self._live.update(Text("\n").join([self._partial, self._status]))

    def __enter__(self) -> Self:
        self._keys.__enter__()
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()
        self._keys.__exit__()
