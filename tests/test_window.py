"""The captions window, on a display of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_console import said

from clients.controls import Status
from clients.desktop import Typist, find_typist
from clients.window import THEMES, Window, WindowError
from core.transcript import Gap

ROOT = Path(__file__).parent.parent


@pytest.fixture
def window(display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with Window() as window:
        yield window


def styled(window: Window, tag: str) -> str:
    ranges = window._text.tag_ranges(tag)
    return "".join(window._text.get(a, b) for a, b in zip(ranges[::2], ranges[1::2], strict=True))


def test_words_and_read_outs(window: Window) -> None:
    window.show(said("AN EARLIER FINAL", 3, is_final=True))
    window.show(Gap(3.0, 5.0, "unplugged"))
    window.show(said("GIVE ME THE", 2, segment=1))
    window.status(Status("A microphone", "balanced", -20.0, 0.8))
    assert styled(window, "past") == "AN EARLIER FINAL\n"
    assert styled(window, "bright") == "GIVE ME" and styled(window, "dim").strip() == "THE"
    assert "2.0 s lost: unplugged" in styled(window, "trouble")
    assert "A microphone" in window._bar.cget("text")
    window.status(Status("A microphone", "low", -60.0, trouble="it has gone"))
    assert "it has gone" in window._bar.cget("text")
    window.show(said("GIVE ME THE KEY", 4, is_final=True, segment=1))
    assert styled(window, "past").endswith("GIVE ME THE KEY\n") and not styled(window, "dim").strip()


def test_the_type_grows_with_the_window(window: Window) -> None:
    def size() -> int:
        return abs(int(window._font.cget("size")))

    before = size()
    window.root.geometry("1200x600+0+0")
    window.root.update()
    grown = size()
    assert grown > before >= 24
    window.root.event_generate("<Key>", keysym="plus", when="now")
    assert size() > grown
    window.root.geometry("260x100+0+0")
    window.root.update()
    assert 12 <= size() < before


def test_keys_and_theme(window: Window) -> None:
    assert window.root.attributes("-topmost") == 1
    for name, key in (("s", "s"), ("n", "n"), ("d", "d")):
        window.root.event_generate("<Key>", keysym=name, when="now")
        assert window.controls.take(key)
    window.root.event_generate("<Key>", keysym="space", when="now")
    assert window.controls.is_paused
    assert window._text.cget("background") == THEMES["dark"]["background"]
    window.root.event_generate("<Key>", keysym="t", when="now")
    assert window._text.cget("background") == THEMES["light"]["background"]
    window.root.event_generate("<Key>", keysym="q", when="now")
    assert window.controls.wants_to_quit


def test_words_are_typed_into_the_focused_window(window: Window) -> None:
    """Through the X server, by the tool that `--type` uses."""
    import tkinter

    if shutil.which("xdotool") is None:
        pytest.skip("xdotool is not installed")
    entry = tkinter.Entry(window.root)
    entry.place(x=0, y=0)
    window.root.update()
    entry.focus_force()
    window.root.update()
    Typist(find_typist()).event(said("IT'S GIVEN ME", 2))
    for _ in range(1000):
        window.root.update()
        if len(entry.get()) >= 11:
            break
    assert entry.get() == "IT'S GIVEN "


COPY = """
import os, signal, sys
sys.path.insert(0, "tests")
from test_console import said
from clients.desktop import Clipboard, find_copier
clipboard = Clipboard(find_copier())
for n, text in enumerate(("IT'S GIVEN ME", "THE KEY")):
    clipboard.event(said("NOT YET", 1, segment=n))
    clipboard.event(said(text, 9, is_final=True, segment=n))
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.killpg(0, signal.SIGINT)
clipboard.close()
"""


def test_finals_are_copied(display: str) -> None:
    """Another program gets the transcript from the X server, also after Ctrl-C; nobody waits for a closed pipe."""
    if shutil.which("xclip") is None:
        pytest.skip("xclip is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "WAYLAND_DISPLAY"} | {
        "DISPLAY": display
    }
    commands = [sys.executable, "-c", COPY], ["xclip", "-selection", "clipboard", "-o"]
    for command in commands:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, start_new_session=True
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "IT'S GIVEN ME\nTHE KEY"


def test_screenshot(window: Window, tmp_path: Path) -> None:
    """What is drawn is bright on dark, in big type."""
    if shutil.which("import") is None:
        pytest.skip("ImageMagick is not installed")
    window.show(said("THE LETTERS USED SHOULD BE FINE IN FORM", 8, is_final=True))
    window.show(said("AND THE PAPER OF THE FIRST QUALITY", 5, segment=1))
    window.status(Status("Built-in microphone", "balanced", -18.0, 0.9))
    path = Path(os.environ.get("STREAMER_SCREENSHOT", tmp_path / "window.png"))
    subprocess.run(["import", "-window", str(window.root.winfo_id()), str(path)], check=True, timeout=60)
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(path) as image:
        grey = image.convert("L")
        counts = grey.histogram()
    assert grey.size == (1000, 240)
    assert sum(counts[240:]) > 2_000 and sum(counts[:32]) > 100_000


def test_no_display_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tkinter")
    monkeypatch.delenv("DISPLAY", raising=False)
    if not sys.platform.startswith("linux"):
        pytest.skip("the displays of Linux")
    with pytest.raises(WindowError, match="leave out --window"):
        Window()


def test_no_toolkit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(WindowError, match="python3-tk"):
        Window()
