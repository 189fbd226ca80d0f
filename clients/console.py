"""Live captions in a terminal: committed words bright, provisional ones dim, finals scroll up.

Without a terminal every final is a plain line. Keys: q quit, s save, space pause, n new line (flush), d device.
"""

from __future__ import annotations

import io
import logging
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from clients.controls import KEYS, NO_KEYS, PLAIN, Controls, Status, clock, status_line
from core.transcript import Event, Gap, Transcript

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O?.|$)", re.S)  # ECMA-48's control sequences, and the keypad's


class Keys:
    """Single key presses, where standard input is a terminal; none elsewhere. Ctrl-Z gives the terminal back whole."""

    def __init__(self, show_cursor: Callable[[bool], object] = lambda _: None) -> None:
        self._saved: Any = None
        self._before: dict[signal.Signals, Any] = {}
        self._show_cursor = show_cursor

    def __enter__(self) -> Self:
        if os.name == "posix" and sys.stdin is not None and sys.stdin.isatty():
            import termios

            self._saved = termios.tcgetattr(sys.stdin)
            self._take()
            if threading.current_thread() is threading.main_thread():
                for number, handler in ((signal.SIGCONT, self._take), (signal.SIGTSTP, self._stop)):
                    self._before[number] = signal.signal(number, handler)
        return self

    def _take(self, *_: object) -> None:
        import tty

        tty.setcbreak(sys.stdin)

    def _stop(self, *_: object) -> None:
        self._give_back()
        self._show_cursor(True)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        # Here after `fg`.
        signal.signal(signal.SIGTSTP, self._stop)
        self._take()
        self._show_cursor(False)

    def _give_back(self) -> None:
        import termios

        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._give_back()

    @property
    def are_there(self) -> bool:
        return self._saved is not None or os.name == "nt"

    def pressed(self) -> str:
        """The keys since the last call; those that have no letter, such as arrows, are left out."""
        keys = ""
        if os.name == "nt":
            import msvcrt

            while msvcrt.kbhit():  # type: ignore[attr-defined]
                key = msvcrt.getwch()  # type: ignore[attr-defined]
                if key in "\x00\xe0":
                    msvcrt.getwch()  # type: ignore[attr-defined]
                else:
                    keys += key
        elif self._saved is not None:
            while select.select([sys.stdin], [], [], 0)[0]:
                key = os.read(sys.stdin.fileno(), 1).decode("ascii", "replace")
                if not key:
                    break
                keys += key
        return ESCAPES.sub("", keys)


def render(partial: Transcript, width: int, n_lines: int) -> Text:
    """The running words, committed ones bright, the others dim: as many of the last as fit into the lines."""
    lines: list[list[Text]] = [[]]
    room = width
    parts = [(part, word.is_committed) for word in partial.words for part in chop_cells(word.text, width)]
    for part, is_committed in parts:  # a word alone may be wider than the terminal
        if lines[-1] and cell_len(part) > room:
            lines.append([])
            room = width
        lines[-1].append(Text(part, style="bold" if is_committed else "dim"))
        room -= cell_len(part) + 1
    return Text("\n").join(Text(" ").join(line) for line in lines[-n_lines:])


class Output(Console):
    """A console whose reader may go: that is an error like others, not the program's end."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads the captions any more")


def redirect_log(before: TextIO, after: TextIO) -> None:
    """Log lines that went to one stream go to another."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)


class LiveCaptions:
    """Shows events as they come. `with LiveCaptions() as captions: captions.show(event)`."""

    def __init__(self, console: Console | None = None, on_stderr: bool = False, takes_keys: bool = True) -> None:
        """`takes_keys`: whether what is typed here is meant for the session."""
        self.console = console or Output(highlight=False, stderr=on_stderr)
        self.controls = Controls()
        self._is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._has_all_signs = self.console.encoding.startswith("utf")
        if not self._has_all_signs and isinstance(self.console.file, io.TextIOWrapper):
            self.console.file.reconfigure(errors="replace")
        self._keys = Keys(self.console.show_cursor if self._is_live else lambda _: None)
        self._takes_keys = takes_keys
        self._partial: Transcript | None = None
        self._status: Status | None = None
        self._trouble = ""
        self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=not on_stderr)

    def wait(self, text: str) -> None:
        if self._is_live:
            self.console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
            self.console.print(Text(text, style="dim"), end="")

    def show(self, event: Event) -> None:
        if isinstance(event, Gap):
            self._line(Text(f"[{event.end_s - event.start_s:.1f} s lost: {event.reason}]", style="red"))
        elif event.is_final:
            self._partial = None
            if event.text:
                self._line(Text(clock(event.start_s) + "  ", style="cyan") + Text(event.text))
        else:
            self._partial = event
        self._draw()

    def status(self, status: Status) -> None:
        """The line under the captions, and what the keys ask for."""
        keys = self._keys.pressed()
        if self._takes_keys:
            self.controls.press(keys)
        if status.trouble != self._trouble and not self._is_live and status.trouble:
            self.note(status.trouble)
        self._trouble = status.trouble
        self._status = status
        self._draw()

    def note(self, text: str) -> None:
        """A line about the program, not the speech."""
        self._line(Text(text, style="dim"))

    def _line(self, text: Text) -> None:
        self._draw(refresh=False)  # in one go with the line: a final takes the place of its running words
        self.console.print(text, soft_wrap=not self._is_live)  # a file or pipe gets whole lines

    def _draw(self, refresh: bool = True) -> None:
        if not self._is_live or not self._live.is_started:
            return
        width, height = self.console.size
        lines = [render(self._partial, width, max(1, height - 2))] if self._partial else []
        if self._status is not None:
            keys = KEYS if self._takes_keys and self._keys.are_there else NO_KEYS
            text = status_line(self._status, self.controls.is_paused, width - 1, keys)
            text = text if self._has_all_signs else text.translate(PLAIN)
            style = "red" if self._status.trouble else "dim"
            lines.append(Text(text, style=style))
            lines[-1].truncate(width - 1)  # a device's name may have wide letters
        self._live.update(Text("\n").join(lines), refresh=refresh)

    def __enter__(self) -> Self:
        self._keys.__enter__()
        if self._is_live:
            before = sys.stderr
            self._live.start()
            redirect_log(before, sys.stderr)  # what is logged scrolls up like the finals
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._live.update(Text(""))
            during = sys.stderr
            self._live.stop()
            redirect_log(during, sys.stderr)
        self._keys.__exit__()
