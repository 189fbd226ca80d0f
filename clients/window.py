"""Live captions in a window of their own: above the others, in big type that grows with the window.

The toolkit is pygame-ce (SDL). Keys as in the terminal; also `t` for the other theme, `f` for the whole screen, Escape
to leave it, `+` and `-` for the type's size.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType, TracebackType
from typing import Any, Self

from clients.controls import KEYS, NO_KEYS, Controls, Status, committed_and_provisional, status_line
from clients.desktop import keep_focus
from core.transcript import Event, Gap

THEMES = {
    "dark": {"background": "#101014", "bright": "#ffffff", "dim": "#8a8f98", "past": "#e4e8ee", "trouble": "#ff6b6b"},
    "light": {"background": "#fbfbf8", "bright": "#000000", "dim": "#8a8a86", "past": "#202226", "trouble": "#b00020"},
}
FONTS = ("dejavusans", "segoeui", "helveticaneue", "notosans", "liberationsans", "arial")  # else the toolkit's own
N_PAST = 50  # finals kept above the running one
LINES_SHOWN = 4.2  # the type is as big as that many lines need the window's height
MARGIN = 16
BAR_SIZE = 13
OPENING_S = 1.0  # a new window is given the focus so late

Styled = tuple[str, str]  # a word and its colour's name


class WindowError(Exception):
    """No window can be opened; the message says what to install."""


def load_toolkit(takes_focus: bool) -> ModuleType:
    """pygame with a display. Raises WindowError."""
    if not takes_focus:
        os.environ.setdefault("SDL_WINDOW_NO_ACTIVATION_WHEN_SHOWN", "1")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # Ctrl-C is the session's
    for system in ("X11", "WAYLAND"):  # the name by which rules of the desktop know the window
        os.environ.setdefault(f"SDL_VIDEO_{system}_WMCLASS", "streamer")
    try:
        import pygame
    except ImportError as e:
        raise WindowError("the captions window needs pygame-ce: pip install 'streamer[window]'") from e
    try:
        pygame.display.init()
        if pygame.display.get_driver() in ("dummy", "offscreen") and "SDL_VIDEODRIVER" not in os.environ:
            raise pygame.error("there is no display")
        pygame.font.init()
    except pygame.error as e:
        pygame.display.quit()
        raise WindowError(f"no window can be opened: {e}; in a terminal: leave out --window") from e
    return pygame


def wrap(words: Sequence[Styled], width: float, measure: Callable[[str], float]) -> list[list[Styled]]:
    """Lines no wider than `width`; a word that alone is wider is cut."""
    lines: list[list[Styled]] = []
    space, at = measure(" "), 0.0
    for word in words:
        long = measure(word[0])
        if lines and at + space + long <= width:
            lines[-1].append(word)
            at += space + long
        else:
            text, colour = word
            while long > width and len(text) > 1:
                n = max(1, int(len(text) * width / long))
                while n > 1 and measure(text[:n]) > width:
                    n -= 1
                lines.append([(text[:n], colour)])
                text = text[n:]
                long = measure(text)
            lines.append([(text, colour)])
            at = long
    return lines


class Window:
    """Shows events as they come. It lives on the thread that made it, which calls `status` often.

    Raises:
        WindowError: there is no toolkit, or no display.
    """

    def __init__(
        self,
        theme: str = "dark",
        title: str = "streamer",
        size: tuple[int, int] = (1000, 240),
        takes_keys: bool = True,  # or leaves them, and the focus, to the window in which somebody writes
    ) -> None:
        self.controls = Controls()
        self.theme = theme
        self.shown: list[list[Styled]] = []  # the lines that are seen
        self.bar = ""
        self._takes_keys = takes_keys
        self._give_back: Callable[[], None] | None = None if takes_keys else keep_focus()
        self._opened_at = math.inf  # on the clock
        self._zoom = 1.0
        self._past: list[Styled] = []
        self._running = ("", "")
        self._status: Status | None = None
        self._is_full = False
        self._pygame = pygame = load_toolkit(takes_keys)
        self._font: Callable[[int], Any] = lru_cache(8)(self._load_font)
        self._face = {bold: pygame.font.match_font(FONTS, bold) for bold in (False, True)}
        screen_width, screen_height = pygame.display.get_desktop_sizes()[0]
        width, height = min(size[0], screen_width), size[1]
        place = (max(0, (screen_width - width) // 2), max(0, screen_height - height - 80))
        self.window = pygame.Window(title, (width, height), place, resizable=True, always_on_top=True)
        self.window.minimum_size = (240, 90)

    def _load_font(self, size: int) -> Any:
        """Of that many pixels; small type is for the line under the captions."""
        return self._pygame.font.Font(self._face[size != BAR_SIZE], size)

    @property
    def type_size(self) -> int:
        """Pixels of the captions' type: it follows the window's size."""
        width, height = self.window.size
        return int(max(12, min(height / LINES_SHOWN / 1.25, width / 18) * self._zoom))

    def pump(self) -> None:
        """Takes what came from the window system."""
        pygame, has_changed = self._pygame, False
        for event in pygame.event.get():
            if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
                self.controls.wants_to_quit = True
            elif event.type == pygame.KEYDOWN:
                self._press(event.key, event.unicode)
                has_changed = True
            elif event.type == pygame.WINDOWFOCUSGAINED and self._give_back:
                if time.monotonic() < self._opened_at + OPENING_S:  # who clicks into it later means it
                    self._give_back()
            elif event.type in (pygame.WINDOWSIZECHANGED, pygame.WINDOWEXPOSED):
                has_changed = True
        if has_changed:
            self._draw()

    def _press(self, key: int, text: str) -> None:
        if text == "\x03":  # Control-C
            self.controls.wants_to_quit = True
        elif not self._takes_keys:
            return
        elif text == "t":
            self.theme = "light" if self.theme == "dark" else "dark"
        elif text == "f" or (self._is_full and key == self._pygame.K_ESCAPE):
            self._is_full = not self._is_full
            if self._is_full:
                self.window.set_fullscreen(desktop=True)
            else:
                self.window.set_windowed()
        elif text in ("+", "-"):
            self._zoom = min(3.0, max(0.4, self._zoom * (1.15 if text == "+" else 1 / 1.15)))
        else:
            self.controls.press(text)

    def wait(self, text: str) -> None:
        self.bar = text
        self._draw()
        self.pump()

    def show(self, event: Event) -> None:
        if isinstance(event, Gap):
            self._past.append((f"[{event.end_s - event.start_s:.1f} s lost: {event.reason}]", "trouble"))
        elif event.is_final:
            if event.text:
                self._past.append((event.text, "past"))
            self._running = ("", "")
        else:
            self._running = committed_and_provisional(event)
        del self._past[:-N_PAST]
        self._draw()

    def note(self, text: str) -> None:
        """A line about the program, not the speech."""
        self._past.append((f"[{text}]", "trouble"))
        self._draw()

    def status(self, status: Status) -> None:
        """The line under the captions; lets the window live."""
        self.pump()
        width = int((self.window.size[0] - 2 * MARGIN) / self._font(BAR_SIZE).size("n")[0])
        bar = status_line(status, self.controls.is_paused, max(20, width), KEYS if self._takes_keys else NO_KEYS)
        if (bar, self._status) != (self.bar, status):
            self.bar, self._status = bar, status
            self._draw()

    def _draw(self) -> None:
        colours, small, big = THEMES[self.theme], self._font(BAR_SIZE), self._font(self.type_size)
        surface = self.window.get_surface()
        width, height = surface.get_size()
        bottom, line_height = height - small.get_linesize() - 6, big.get_linesize()
        running = [
            (word, name) for text, name in zip(self._running, ("bright", "dim"), strict=True) for word in text.split()
        ]
        paragraphs = [[(word, name) for word in text.split()] for text, name in self._past] + [running]
        self.shown = []
        for words in reversed(paragraphs):  # only whole lines are seen, the newest at the bottom
            room = max(1, bottom // line_height) - len(self.shown)
            lines = wrap(words, width - 2 * MARGIN, lambda text: float(big.size(text)[0]))
            self.shown = [*lines[max(0, len(lines) - room) :], *self.shown] if room > 0 else self.shown
        surface.fill(colours["background"])
        y = bottom - line_height * len(self.shown)
        for line in self.shown:
            x = MARGIN
            for word, name in line:
                drawn = big.render(word + " ", True, colours[name])
                surface.blit(drawn, (x, y))
                x += drawn.get_width()
            y += line_height
        colour = colours["trouble" if self._status is not None and self._status.trouble else "dim"]
        surface.blit(small.render(self.bar, True, colour), (MARGIN, bottom + 3))
        self.window.flip()

    def __enter__(self) -> Self:
        self._opened_at = time.monotonic()
        if self._takes_keys and self._pygame.display.get_driver() != "wayland":
            self.window.focus()  # the compositor decides there, and some end when they are asked without a seat
        self._draw()
        self.pump()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.window.destroy()
        self._pygame.display.quit()
