"""Live captions in a window of their own: above the others, in big type that grows with the window.

The toolkit is Tk, which Python brings or the system's packages do. Keys as in the terminal; also `t` for the other
theme, `f` for the whole screen, Escape to leave it, `+` and `-` for the type's size.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clients.controls import Controls, Status, committed_and_provisional, status_line
from core.transcript import Event, Gap

if TYPE_CHECKING:
    import tkinter

THEMES = {
    "dark": {"background": "#101014", "bright": "#ffffff", "dim": "#8a8f98", "past": "#e4e8ee", "trouble": "#ff6b6b"},
    "light": {"background": "#fbfbf8", "bright": "#000000", "dim": "#8a8a86", "past": "#202226", "trouble": "#b00020"},
}
N_PAST = 50  # finals kept above the running one
LINES_SHOWN = 4.2  # the type is as big as that many lines need the window's height


class WindowError(Exception):
    """No window can be opened; the message says what to install."""


def open_root() -> tkinter.Tk:
    """Raises WindowError."""
    try:
        import tkinter
    except ImportError as e:
        raise WindowError(
            "the captions window needs Tk; install it (Debian and Ubuntu: apt install python3-tk, "
            "Fedora: dnf install python3-tkinter, macOS: brew install python-tk)"
        ) from e
    try:
        return tkinter.Tk(className="streamer")
    except tkinter.TclError as e:
        raise WindowError(f"no window can be opened: {e}; in a terminal: leave out --window") from e


class Window:
    """Shows events as they come. It lives on the thread that made it, which calls `status` often.

    Raises:
        WindowError: there is no toolkit, or no display.
    """

    def __init__(self, theme: str = "dark", title: str = "streamer", size: tuple[int, int] = (1000, 240)) -> None:
        self.controls = Controls()
        self.root = open_root()
        self._zoom = 1.0
        self._theme = theme
        self._past: list[str] = []
        self._running = ("", "")
        self._status: Status | None = None
        self._setup(title, size)
        self._colour()

    def _setup(self, title: str, size: tuple[int, int]) -> None:
        import tkinter
        from tkinter import font

        root = self.root
        root.title(title)
        width, height = size
        x = max(0, (root.winfo_screenwidth() - width) // 2)
        y = max(0, root.winfo_screenheight() - height - 80)
        root.geometry(f"{min(width, root.winfo_screenwidth())}x{height}+{x}+{y}")
        root.minsize(240, 90)
        with contextlib.suppress(tkinter.TclError):  # not every window system has it
            root.attributes("-topmost", True)
        root.protocol("WM_DELETE_WINDOW", lambda: self.controls.press("q"))
        root.bind("<Key>", self._press)
        root.bind("<Configure>", lambda event: self._fit())
        self._font = font.Font(root=root, family="TkDefaultFont", size=-36, weight="bold")
        self._small = font.Font(root=root, family="TkDefaultFont", size=-13)
        self._bar = tkinter.Label(root, anchor="w", padx=12, pady=3, font=self._small)
        self._bar.pack(side="bottom", fill="x")
        self._text = tkinter.Text(
            root, wrap="word", font=self._font, relief="flat", borderwidth=0, highlightthickness=0, padx=16, pady=8
        )
        self._text.configure(state="disabled", cursor="arrow", takefocus=False)
        self._text.pack(side="top", fill="both", expand=True)

    def _press(self, event: tkinter.Event[tkinter.Misc]) -> None:
        key = event.char
        if key == "t":
            self._theme = "light" if self._theme == "dark" else "dark"
            self._colour()
        elif key == "f":
            self.root.attributes("-fullscreen", not self.root.attributes("-fullscreen"))
        elif event.keysym == "Escape":
            self.root.attributes("-fullscreen", False)
        elif key in ("+", "-"):
            self._zoom = min(3.0, max(0.4, self._zoom * (1.15 if key == "+" else 1 / 1.15)))
            self._fit()
        elif key == "\x03":  # Control-C
            self.controls.press("q")
        else:
            self.controls.press(key)

    def _fit(self) -> None:
        """The type follows the window's size; only whole lines are seen."""
        height, width = self._text.winfo_height(), self._text.winfo_width()
        size = int(max(12, min(height / LINES_SHOWN / 1.25, width / 18) * self._zoom))
        if self._font.cget("size") != -size:
            self._font.configure(size=-size)
        line = self._font.metrics("linespace")
        self._text.configure(pady=height % line // 2 if height >= line else 0)
        self._text.see("end")

    def _colour(self) -> None:
        colours = THEMES[self._theme]
        self.root.configure(background=colours["background"])
        self._text.configure(background=colours["background"], foreground=colours["bright"])
        for tag in ("past", "bright", "dim", "trouble"):
            self._text.tag_configure(tag, foreground=colours[tag])
        self._bar.configure(background=colours["background"], foreground=colours["dim"])

    def show(self, event: Event) -> None:
        if isinstance(event, Gap):
            self._past.append(f"[{event.end_s - event.start_s:.1f} s lost: {event.reason}]")
        elif event.is_final:
            if event.text:
                self._past.append(event.text)
            self._running = ("", "")
        else:
            self._running = committed_and_provisional(event)
        del self._past[:-N_PAST]
        self._draw()

    def note(self, text: str) -> None:
        """A line about the program, not the speech."""
        self._past.append(f"[{text}]")
        self._draw()

    def status(self, status: Status) -> None:
        """The line under the captions; lets the window live."""
        self._status = status
        width = max(20, self._bar.winfo_width() // max(1, self._small.measure("n")))
        colour = THEMES[self._theme]["trouble" if status.trouble else "dim"]
        self._bar.configure(text=status_line(status, self.controls.is_paused, width), foreground=colour)
        self.root.update()

    def _draw(self) -> None:
        text = self._text
        text.configure(state="normal")
        text.delete("1.0", "end")
        for line in self._past:
            text.insert("end", line + "\n", "trouble" if line.startswith("[") else "past")
        committed, provisional = self._running
        text.insert("end", committed, "bright")
        text.insert("end", (" " if committed and provisional else "") + provisional, "dim")
        text.configure(state="disabled")
        text.see("end")
        self.root.update()

    def __enter__(self) -> Self:
        self.root.update()
        self._fit()
        self.root.focus_force()
        self.root.update()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.root.destroy()
