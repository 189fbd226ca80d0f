"""Words for other programs of the desktop: typed into the focused window, copied, or given to a command."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from core.transcript import Event, Gap

logger = logging.getLogger(__name__)

X11_TYPIST = ["xdotool", "type", "--clearmodifiers", "--delay", "4", "--file", "-"]
# wtype waits until its keyboard is known, or the first letters are lost; GNOME's compositor heeds only the second.
WAYLAND_TYPISTS = (["wtype", "-s", "100", "-"], ["ydotool", "type", "--file", "-"])
PATIENCE_S = 20  # for a tool that types, and for the commands that still run at the end


class DesktopError(Exception):
    """This desktop cannot do it; the message says what to install."""


def find_typist(environment: Mapping[str, str] = os.environ) -> Callable[[str], None]:
    """What types a text into the focused window; it has been tried on an empty one.

    Wayland lets no program type for another but through its own tools; elsewhere X11's tool or pynput does it.

    Raises:
        DesktopError: there is no desktop, no tool for it, or none that it heeds.
    """
    if sys.platform.startswith("linux"):
        if environment.get("WAYLAND_DISPLAY"):
            tools = [tool for tool in WAYLAND_TYPISTS if shutil.which(tool[0])]
            if not tools:
                raise DesktopError("--type on Wayland needs wtype (or ydotool with its daemon); install it")
            return first_that_works(tools)
        if not environment.get("DISPLAY"):
            raise DesktopError("--type needs a desktop: neither DISPLAY nor WAYLAND_DISPLAY is set")
        if shutil.which("xdotool"):
            return first_that_works([X11_TYPIST])
    try:
        from pynput.keyboard import Controller
    except Exception as e:
        if not isinstance(e, ImportError):  # the display's own errors
            raise DesktopError(f"--type: this desktop lets no program type: {e}") from e
        either = "xdotool, or " if sys.platform.startswith("linux") else ""
        raise DesktopError(f"--type needs {either}the extra `desktop`: pip install 'streamer[desktop]'") from e
    keyboard = Controller()
    return lambda text: keyboard.type(text)


def keep_focus(environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """What gives the focus back to the window that has it now; nothing but X11 needs that, or lets a program do it."""
    if environment.get("WAYLAND_DISPLAY") or not environment.get("DISPLAY") or not shutil.which("xdotool"):
        return lambda: None
    done = subprocess.run(["xdotool", "getwindowfocus"], capture_output=True, text=True, check=False)
    window = done.stdout.strip()

    def give_back() -> None:
        if window:
            subprocess.run(["xdotool", "windowfocus", window], capture_output=True, check=False)

    return give_back


def first_that_works(tools: Sequence[list[str]]) -> Callable[[str], None]:
    """Raises DesktopError with the last one's reason."""
    for tool in tools:
        try:
            run_tool(tool, "")
        except DesktopError as e:
            reason = e
        else:
            return partial(run_tool, tool)
    raise DesktopError(f"--type: this desktop lets no program type: {reason}") from reason


def find_copier(environment: Mapping[str, str] = os.environ) -> Callable[[str], None]:
    """What puts a text into the clipboard.

    Raises:
        DesktopError: there is none, or no tool for it.
    """
    if sys.platform.startswith("linux"):
        wayland, x11 = environment.get("WAYLAND_DISPLAY"), environment.get("DISPLAY")
        tools = [["wl-copy"]] if wayland else []
        tools += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]] if x11 else []
        for tool in tools:
            if shutil.which(tool[0]):
                return partial(run_tool, tool)
        raise DesktopError("--clipboard finds none; install xclip (X11) or wl-clipboard (Wayland)")
    try:
        import pyperclip
    except ImportError as e:
        raise DesktopError("--clipboard needs the extra `desktop`: pip install 'streamer[desktop]'") from e

    def copy(text: str) -> None:
        try:
            pyperclip.copy(text)
        except pyperclip.PyperclipException as e:
            raise DesktopError(f"cannot copy: {e}") from e

    return copy


def run_tool(command: list[str], text: str) -> None:
    """Gives a text to a tool; one that stays to serve the clipboard holds no pipe of ours and outlives Ctrl-C.

    Raises:
        DesktopError: it fails.
    """
    with tempfile.TemporaryFile("w+") as told:
        run = partial(subprocess.run, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True)
        try:
            run(command, input=text, text=True, errors="replace", timeout=PATIENCE_S, check=True)
        except subprocess.CalledProcessError as e:
            told.seek(0)
            raise DesktopError(f"{command[0]} failed: {' '.join(told.read().split()) or e.returncode}") from e
        except (OSError, subprocess.TimeoutExpired) as e:
            raise DesktopError(f"{command[0]} failed: {e}") from e


class Typist:
    """Types every committed word once, as soon as it is committed, a space after each.

    `GIVE ME` (1 committed) types `GIVE `; `GIVE ME A` (2 committed) then `ME `.
    """

    def __init__(self, type_text: Callable[[str], None]) -> None:
        self._type = type_text
        self._segment, self._n = -1, 0  # words of the segment that are typed

    def event(self, event: Event) -> None:
        if isinstance(event, Gap):
            return
        if event.segment != self._segment:
            self._segment, self._n = event.segment, 0
        words = event.words[self._n : event.n_committed_words]
        if words:
            self._n = event.n_committed_words
            self._type("".join(word.text + " " for word in words))

    def close(self) -> None:
        """Nothing is held back."""


class Clipboard:
    """Holds the whole transcript, after every final."""

    def __init__(self, copy: Callable[[str], None]) -> None:
        self._copy = copy
        self._lines: list[str] = []

    def event(self, event: Event) -> None:
        if not isinstance(event, Gap) and event.is_final and event.text:
            self._lines.append(event.text)
            self._copy("\n".join(self._lines))

    def close(self) -> None:
        """The clipboard keeps its text."""


class Command:
    """Gives every final to a shell command, on its standard input: one after the other, beside the session."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._finals: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="exec", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        if not isinstance(event, Gap) and event.is_final and event.text:
            self._finals.put(event.text)

    def close(self) -> None:
        """Waits a while for the commands."""
        self._finals.put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            logger.warning("--exec: %d finals still wait for %r", self._finals.qsize(), self._command)

    def _run(self) -> None:
        while (text := self._finals.get()) is not None:
            code = run_shell(self._command, text + "\n")
            if code:
                logger.warning("--exec: %r ended with code %d", self._command, code)


def run_shell(command: str, text: str) -> int:
    """The command's exit code. What it says is shown when it has ended, above the running words; Ctrl-C in the
    terminal is for the session, not for the command."""
    with tempfile.TemporaryFile("w+", errors="replace") as told:
        code = subprocess.run(
            command,
            shell=True,
            input=text,
            text=True,
            errors="replace",
            check=False,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        ).returncode
        told.seek(0)
        with contextlib.suppress(OSError):  # nobody reads any more
            print(told.read(), end="", flush=True)
    return code
