"""Typing, copying and the captions window on Wayland: a compositor of the test's own, without a screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_console import said

from clients.desktop import Clipboard, Typist, find_copier, find_typist

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60
TERMINAL = """stty -echo; cat > "$XDG_RUNTIME_DIR/typed" """


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def compositor() -> Iterator[dict[str, str]]:
    """The environment of its programs. A terminal has the focus and keeps what is typed in the file `typed`."""
    for tool in ("sway", "foot", "wtype", "wl-copy", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    with tempfile.TemporaryDirectory() as name:  # a socket's path must be short
        place = Path(name)
        (place / "terminal").write_text(TERMINAL)
        (place / "config").write_text(f"exec foot sh {place / 'terminal'}\n")
        kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
        environment = {**kept, "XDG_RUNTIME_DIR": name, "HOME": name}
        headless = {"WLR_BACKENDS": "headless", "WLR_RENDERER": "pixman", "WLR_LIBINPUT_NO_DEVICES": "1"}
        command = ["sway", "-c", str(place / "config")]
        if os.getuid() == 0:  # sway does not run for root
            command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
            for path in (place, *place.iterdir()):
                shutil.chown(path, "nobody")
        with subprocess.Popen(command, env={**environment, **headless}, stderr=subprocess.DEVNULL) as process:
            try:
                wait(lambda: process.poll() is not None or (place / "typed").exists())
                if process.poll() is not None:
                    pytest.skip("sway does not run here")
                display = next(path.name for path in place.glob("wayland-?"))
                yield {**environment, "WAYLAND_DISPLAY": display}
            finally:
                process.terminate()


@pytest.fixture
def wayland(compositor: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("DISPLAY", raising=False)
    for name in ("XDG_RUNTIME_DIR", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, compositor[name])
    return compositor


def test_words_are_typed_into_the_focused_window(wayland: dict[str, str]) -> None:
    typist = Typist(find_typist())
    typist.event(said("IT'S GIVEN ME", 2))
    typist.event(said("IT'S GIVEN ME", 3, is_final=True))
    subprocess.run(["wtype", "-s", "100", "-k", "Return"], check=True, timeout=PATIENCE_S)
    typed = Path(wayland["XDG_RUNTIME_DIR"]) / "typed"
    wait(lambda: typed.read_text().endswith("\n"))
    assert typed.read_text() == "IT'S GIVEN ME \n"


def test_finals_are_copied(wayland: dict[str, str]) -> None:
    clipboard = Clipboard(find_copier())
    for n, text in enumerate(("IT'S GIVEN ME", "THE KEY")):
        clipboard.event(said(text, 9, is_final=True, segment=n))
    done = subprocess.run(["wl-paste"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "IT'S GIVEN ME\nTHE KEY\n"


SHOW = """
import sys
sys.path.insert(0, "tests")
from test_console import said
from clients.controls import Status
from clients.window import Window
import pygame
with Window() as window:
    window.show(said("GIVE ME THE", 2))
    for _ in range(20):
        window.status(Status("A microphone", "balanced", -20.0, 0.8))
    print(pygame.display.get_driver(), [word for line in window.shown for word, _ in line])
"""


def test_the_window_opens(wayland: dict[str, str]) -> None:
    pytest.importorskip("pygame")
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, env=wayland, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["wayland ['GIVE', 'ME', 'THE']"], done.stderr
