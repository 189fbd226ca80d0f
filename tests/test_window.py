"""The captions window, on a display of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_console import said

from clients.controls import Status
from clients.desktop import Typist, find_typist
from clients.window import THEMES, Window, WindowError, wrap
from core.transcript import Gap

pygame = pytest.importorskip("pygame")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def window(display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with Window() as window:
        yield window


def styled(window: Window, name: str) -> str:
    return " ".join(word for line in window.shown for word, of in line if of == name)


def press(window: Window, text: str) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=0, unicode=text))
    window.pump()


def test_words_and_read_outs(window: Window) -> None:
    window.show(said("AN EARLIER FINAL", 3, is_final=True))
    window.show(Gap(3.0, 5.0, "unplugged"))
    window.show(said("GIVE ME THE", 2, segment=1))
    window.status(Status("A microphone", "balanced", -20.0, 0.8))
    assert styled(window, "past") == "AN EARLIER FINAL"
    assert styled(window, "bright") == "GIVE ME" and styled(window, "dim") == "THE"
    assert "2.0 s lost: unplugged" in styled(window, "trouble")
    assert "A microphone" in window.bar
    window.status(Status("A microphone", "low", -60.0, trouble="it has gone"))
    assert "it has gone" in window.bar
    window.show(said("GIVE ME THE KEY", 4, is_final=True, segment=1))
    assert styled(window, "past").endswith("GIVE ME THE KEY") and not styled(window, "dim")


def test_lines_are_whole_and_the_newest_are_seen(window: Window) -> None:
    window.show(said(" ".join(f"WORD{i}" for i in range(200)), 150))
    seen = [word for line in window.shown for word, _ in line]
    assert 1 < len(window.shown) <= 5
    assert seen == [f"WORD{i}" for i in range(200 - len(seen), 200)]
    assert styled(window, "bright") == "" or styled(window, "bright").endswith("WORD149")
    words = [("A", "x"), ("BB", "x"), ("CCCCCC", "y"), ("D", "x")]
    assert wrap(words, 4, len) == [words[:2], [("CCCC", "y")], [("CC", "y"), ("D", "x")]]


def test_the_type_grows_with_the_window(window: Window) -> None:
    before = window.type_size
    window.window.size = (1200, 600)
    window.pump()
    grown = window.type_size
    assert grown > before >= 24
    press(window, "+")
    assert window.type_size > grown
    window.window.size = (260, 100)
    window.pump()
    assert 12 <= window.type_size < before
    press(window, "f")
    assert window.window.size == pygame.display.get_desktop_sizes()[0]
    press(window, "f")


def test_keys_and_theme(window: Window) -> None:
    assert window.window.always_on_top and window.window.resizable
    for key in "snd":
        press(window, key)
        assert window.controls.take(key)
    press(window, " ")
    assert window.controls.is_paused

    def background() -> str:
        red, green, blue, _ = window.window.get_surface().get_at((1, 1))
        return f"#{red:02x}{green:02x}{blue:02x}"

    assert background() == THEMES["dark"]["background"]
    press(window, "t")
    assert background() == THEMES["light"]["background"]
    pygame.event.post(pygame.event.Event(pygame.WINDOWCLOSE, window=window.window))
    window.pump()
    assert window.controls.wants_to_quit


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@pytest.fixture
def manager(display: str) -> Iterator[None]:
    """A window manager: frames, the focus, Alt-F4."""
    needs("openbox", "xdotool")
    process = subprocess.Popen(["openbox"], env=on_display(display), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while subprocess.run(["xdotool", "get_desktop"], env=on_display(display), capture_output=True).returncode:
        assert time.monotonic() < until
        time.sleep(0.05)
    yield
    process.terminate()
    process.wait()


def to_window(display: str, *action: str) -> None:
    command = ["xdotool", "search", "--onlyvisible", "--class", "^streamer$", *action]
    subprocess.run(command, env=on_display(display), check=True, timeout=60)


@pytest.mark.usefixtures("manager")
def test_a_person_s_resizing(window: Window, display: str) -> None:
    before = window.type_size
    to_window(display, "windowsize", "1200", "600")
    until = time.monotonic() + 60
    while window.window.size != (1200, 600):
        window.pump()
        assert time.monotonic() < until
    assert window.type_size > before


@pytest.mark.usefixtures("manager")
def test_closing_the_window_ends_the_session_and_saves(display: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The whole command: it is closed as any window is, while something is being said."""
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(1).standard_normal(16_000 * 60), 16_000)
    command = [sys.executable, "-m", "streamer", "--play", "noise.wav", "--window", "--model", str(tiny_model_dir)]
    environment = {**on_display(display), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--record", "heard.wav", "--output", "said.srt"],
        cwd=tmp_path,
        env=environment,
        stderr=pipe,
        text=True,
    ) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "heard.wav").exists() or (tmp_path / "heard.wav").stat().st_size < 64_000:
            assert time.monotonic() < until and process.poll() is None, process.communicate()
            time.sleep(0.05)
        to_window(display, "windowfocus", "key", "--clearmodifiers", "alt+F4")
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "said.srt").read_text().startswith("1\n00:00:0")


def on_display(display: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "WAYLAND_DISPLAY"}
    return {**kept, "DISPLAY": display}


@pytest.mark.usefixtures("manager")
def test_the_window_leaves_the_focus_to_where_words_are_typed(
    display: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command with `--window --type`: the words are in the entry that had the focus, and pressed no key."""
    tkinter = pytest.importorskip("tkinter")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    root = tkinter.Tk()
    try:
        entry = tkinter.Entry(root)
        entry.pack()
        root.update()
        entry.focus_force()
        root.update()
        command = [sys.executable, "-m", "streamer", "--play", str(sample), "--window", "--type"]
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            until = time.monotonic() + 120
            while process.poll() is None or time.monotonic() < until and not entry.get().endswith("FORM "):
                root.update()
                time.sleep(0.02)
                assert time.monotonic() < until + 10
        assert process.returncode == 0
        assert entry.get().startswith("IT IS OF THE FIRST IMPORTANCE ") and entry.get().endswith(" FORM ")
    finally:
        root.destroy()


def test_words_are_typed_into_the_focused_window(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the X server, by the tool that `--type` uses."""
    tkinter = pytest.importorskip("tkinter")
    needs("xdotool")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    root = tkinter.Tk()
    try:
        entry = tkinter.Entry(root)
        entry.pack()
        root.update()
        entry.focus_force()
        root.update()
        Typist(find_typist()).event(said("IT'S GIVEN ME", 2))
        for _ in range(1000):
            root.update()
            if len(entry.get()) >= 11:
                break
        assert entry.get() == "IT'S GIVEN "
    finally:
        root.destroy()


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
    needs("xclip")
    environment = on_display(display)
    commands = [sys.executable, "-c", COPY], ["xclip", "-selection", "clipboard", "-o"]
    for command in commands:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, start_new_session=True
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "IT'S GIVEN ME\nTHE KEY"


def test_screenshot(window: Window, tmp_path: Path) -> None:
    """What the X server shows is bright on dark, in big type."""
    needs("import")
    window.show(said("THE LETTERS USED SHOULD BE FINE IN FORM", 8, is_final=True))
    window.show(said("AND THE PAPER OF THE FIRST QUALITY", 5, segment=1))
    window.status(Status("Built-in microphone", "balanced", -18.0, 0.9))
    path = Path(os.environ.get("STREAMER_SCREENSHOT", tmp_path / "window.png"))
    place, size = window.window.position, window.window.size
    crop = f"{size[0]}x{size[1]}+{place[0]}+{place[1]}"
    subprocess.run(["import", "-window", "root", "-crop", crop, "+repage", str(path)], check=True, timeout=60)
    grey = pygame.surfarray.array3d(pygame.image.load(path)).max(2)
    assert grey.shape == (1000, 240)
    assert (grey >= 240).sum() > 2_000 and (grey < 32).sum() > 100_000


def test_no_display_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the displays of Linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WindowError, match="leave out --window"):
        Window()


def test_no_toolkit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(WindowError, match="pip install"):
        Window()
