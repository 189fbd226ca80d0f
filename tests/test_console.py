"""The captions screen: sessions driven under a pseudo-terminal, its screen read by a terminal emulator."""

from __future__ import annotations

import io
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from clients.console import LiveCaptions, render
from clients.controls import Controls, Status, clock, level_bar, level_db, status_line
from core.transcript import Gap, Transcript, Word, make_transcript

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60


def said(text: str, n_committed: int, is_final: bool = False, segment: int = 0) -> Transcript:
    words = tuple(Word(w, 61.5 + i, 62.0 + i, 0.9, i < n_committed) for i, w in enumerate(text.split()))
    return make_transcript(segment, is_final, words, 0.0, 0.0)


def test_keys() -> None:
    controls = Controls()
    controls.press("sdx")
    assert controls.take("s") and not controls.take("s") and controls.take("d") and not controls.take("n")
    controls.press(" ")
    assert controls.is_paused and controls.take("n"), "words before a pause become final"
    controls.press(" N")
    assert not controls.is_paused and controls.take("n")
    controls.press("Q")
    assert controls.wants_to_quit


def test_status_line_fits() -> None:
    status = Status("A microphone", "balanced", -20.0, 0.84, 0.3, 2)
    assert status_line(status, False, 200) == (
        "▅ A microphone · 2 overruns · lag 0.3 s · balanced 0.8 s "
        "· q quit · s save · space pause · n new line · d device"
    )
    for width in range(1, 120):
        assert len(status_line(status, False, width)) <= width
    assert status_line(status, False, 80).endswith(" · balanced 0.8 s · q quit · s save")
    assert "overruns" in status_line(status, False, 30) and "lag" not in status_line(status, False, 30)
    assert status_line(status, True, 200).startswith("paused · ")
    assert "it has gone" in status_line(Status("A", "low", -60.0, trouble="it has gone"), False, 80)


def test_level_and_clock() -> None:
    import numpy as np

    assert level_db(np.zeros(0, np.float32)) == level_db(np.zeros(9, np.float32)) == -60
    assert level_db(np.ones(9, np.float32)) == pytest.approx(0, abs=1e-4)
    assert (level_bar(-60), level_bar(0)) == (" ", "█")
    assert (clock(75.25), clock(3700.0)) == ("01:15.2", "1:01:40.0")


def test_the_last_words_of_a_long_line_are_shown() -> None:
    partial = said(" ".join(f"WORD{i}" for i in range(100)), 50)
    shown = render(partial, 20, 3).plain.split("\n")
    assert len(shown) == 3 and all(len(line) <= 20 for line in shown) and shown[-1].endswith("WORD99")
    lines = render(said("A" * 50 + " B", 0), 20, 2).plain.split("\n")
    assert lines == ["A" * 20, "A" * 10 + " B"], "a word alone may be too long"
    assert render(said("漢" * 20 + "字", 0), 20, 2).plain.split("\n") == ["漢" * 10, "字"]


def test_a_device_with_wide_letters_takes_one_line() -> None:
    out = io.StringIO()
    with LiveCaptions(Console(file=out, width=20, height=5, force_terminal=True)) as captions:
        out.truncate(0)
        captions.status(Status("マイク" * 6, "low", -60.0))
        assert "マイク" in out.getvalue() and "\n" not in out.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with LiveCaptions(Console(file=out, width=30)) as captions:
        captions.status(Status("A", "low", -60.0))
        captions.show(said("GIVE ME", 1))
        captions.show(said("GIVE ME THE KEY TO THE HOUSE OF CARDS", 9, is_final=True))
        captions.show(Gap(70.0, 72.0, "unplugged"))
        for _ in range(2):
            captions.status(Status("A", "low", -60.0, trouble="it has gone"))
    assert out.getvalue().splitlines() == [
        "01:01.5  GIVE ME THE KEY TO THE HOUSE OF CARDS",
        "[2.0 s lost: unplugged]",
        "it has gone",
    ]


SCREEN = """
import sys, time
sys.path.insert(0, "tests")
from test_console import said
from clients.console import LiveCaptions
from clients.controls import Status
with LiveCaptions(takes_keys=sys.argv[1:] != ["--type"]) as captions:
    captions.show(said("AN EARLIER FINAL", 3, is_final=True))
    captions.show(said("GIVE ME THE", 2, segment=1))
    while not captions.controls.wants_to_quit:
        time.sleep(0.02)  # as long as a block of sound
        captions.status(Status("A microphone", "balanced", -20.0, 0.8))
        if captions.controls.take("s"):
            captions.note("saved a.txt")
        if captions.controls.take("d"):
            captions.note("listening to B")
    captions.show(said("GIVE ME THE KEY", 4, is_final=True, segment=1))
"""


class Terminal:
    """A program under a pseudo-terminal of the given size; `screen` is what a person would see."""

    def __init__(self, command: list[str], columns: int, lines: int = 12, **environment: str) -> None:
        pty = pytest.importorskip("pty")
        pyte = pytest.importorskip("pyte")

        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**kept, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = b""

    def resize(self, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, columns, 0, 0))
        self.screen.resize(columns=columns)

    def text(self) -> str:
        return "\n".join(self.screen.display)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Reads the screen until the condition holds."""
        until = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > until or not self.read():
                assert condition(), self.text()

    def read(self) -> bool:
        if not select.select([self.ours], [], [], PATIENCE_S)[0]:
            return False
        try:
            data = os.read(self.ours, 1 << 16)
        except OSError:  # Linux: the program has ended
            return False
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def style(self, word: str) -> set[str]:
        """Of the word's first character: `bold`, and its colour where it has one."""
        for row, line in enumerate(self.screen.display):
            if word in line:
                cell = self.screen.buffer[row][line.index(word)]
                return ({"bold"} if cell.bold else set()) | ({cell.fg} if cell.fg != "default" else set())
        raise AssertionError(f"{word} is not on the screen:\n{self.text()}")

    def end(self) -> int:
        until = time.monotonic() + PATIENCE_S
        while self.read():
            assert time.monotonic() < until, "Expected the program to end"
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def make(command: list[str], columns: int, **environment: str) -> Terminal:
        terminals.append(Terminal(command, columns, **environment))
        return terminals[-1]

    yield make
    for terminal in terminals:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)


def test_screen_and_keys(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([sys.executable, "-c", SCREEN], 120)
    terminal.wait(lambda: "d device" in terminal.text())
    shown = [line.rstrip() for line in terminal.screen.display]
    assert shown[:2] == ["01:01.5  AN EARLIER FINAL", "GIVE ME THE"]
    assert shown[2].startswith("▅ A microphone · lag 0.0 s · balanced 0.8 s · q quit")
    assert terminal.style("GIVE") == {"bold"} and "bold" not in terminal.style("THE")
    assert terminal.style("01:01") == {"cyan"}
    assert b"\x1b[2mTHE" in terminal.raw, "provisional words are dim"
    terminal.press(" ")
    terminal.wait(lambda: "paused · lag" in terminal.text())
    terminal.press(" s")
    terminal.wait(lambda: "saved a.txt" in terminal.text() and "paused · lag" not in terminal.text())
    terminal.press("d")
    terminal.wait(lambda: "listening to B" in terminal.text())
    terminal.press("q")
    assert terminal.end() == 0
    shown = [line.rstrip() for line in terminal.screen.display if line.strip()]
    assert shown == ["01:01.5  AN EARLIER FINAL", "saved a.txt", "listening to B", "01:01.5  GIVE ME THE KEY"]


def test_keys_without_a_letter_are_none(open_terminal: Callable[..., Terminal]) -> None:
    """Arrow left ends in a D, F2 in a Q, and an alt key is not its letter."""
    terminal = open_terminal([sys.executable, "-c", SCREEN], 120)
    terminal.wait(lambda: "d device" in terminal.text())
    terminal.press("\x1b[D\x1bOQ\x1b[12;5Q\x1bq\x1b[3~")
    terminal.press("s")
    terminal.wait(lambda: "saved a.txt" in terminal.text())
    assert "listening" not in terminal.text()
    terminal.press("q")
    assert terminal.end() == 0


def test_what_is_typed_for_others_is_no_key(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([sys.executable, "-c", SCREEN, "--type"], 120)
    terminal.wait(lambda: "balanced 0.8 s · Ctrl-C quit" in terminal.text())
    terminal.press("QUITE SO, SAID DAD ")
    time.sleep(0.5)
    assert terminal.process.poll() is None
    os.kill(terminal.process.pid, 2)
    assert terminal.end() != 0
    assert "paused" not in terminal.text() and "saved" not in terminal.text()


def test_a_terminal_without_unicode(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([sys.executable, "-c", SCREEN], 120, PYTHONIOENCODING="ascii")
    terminal.wait(lambda: "5 A microphone | lag 0.0 s | balanced 0.8 s | q quit" in terminal.text())
    assert "GIVE ME THE" in terminal.text()
    terminal.press("q")
    assert terminal.end() == 0


def test_keys_are_read_after_a_stop(open_terminal: Callable[..., Terminal]) -> None:
    """Ctrl-Z, then `fg`: the shell has had the terminal meanwhile."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    terminal = open_terminal(["bash", "--norc", "-i"], 120, SCREEN=SCREEN, PS1="READY ")
    terminal.wait(lambda: "READY" in terminal.text())
    terminal.press(f'"{sys.executable}" -c "$SCREEN"\n')
    terminal.wait(lambda: "d device" in terminal.text())
    terminal.press("\x1a")
    assert terminal.screen.cursor.hidden
    terminal.wait(lambda: "Stopped" in terminal.text())
    assert not terminal.screen.cursor.hidden
    terminal.press("fg\n")
    terminal.wait(lambda: terminal.screen.cursor.hidden)
    terminal.wait(lambda: terminal.text().count("balanced 0.8 s") > 1)
    terminal.press("s")
    terminal.wait(lambda: "saved a.txt" in terminal.text())
    terminal.press("q")
    terminal.wait(lambda: terminal.text().split()[-1] == "READY")


def test_a_terminal_that_becomes_narrow(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([sys.executable, "-c", SCREEN], 120)
    terminal.wait(lambda: "d device" in terminal.text())
    terminal.resize(30)
    terminal.wait(lambda: "▅ A microphone · lag 0.0 s" in [line.rstrip() for line in terminal.screen.display])
    terminal.press("q")
    assert terminal.end() == 0


def test_narrow_terminal_without_colour(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([sys.executable, "-c", SCREEN], 24, NO_COLOR="1")
    terminal.wait(lambda: "▅" in terminal.text())
    shown = [line.rstrip() for line in terminal.screen.display]
    assert [line.strip() for line in shown[:4]] == [
        "01:01.5  AN EARLIER",
        "FINAL",
        "GIVE ME THE",
        "▅ A microphone · q quit",
    ]
    assert terminal.style("01:01") == set() and terminal.style("GIVE") == {"bold"}
    terminal.press("q")
    assert terminal.end() == 0


def test_a_dumb_terminal_gets_plain_lines(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([sys.executable, "-c", SCREEN], 80, TERM="dumb")
    terminal.wait(lambda: "EARLIER" in terminal.text())
    terminal.press("q")
    assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw
    assert [line.rstrip() for line in terminal.screen.display][:2] == [
        "01:01.5  AN EARLIER FINAL",
        "01:01.5  GIVE ME THE KEY",
    ]


COMMAND = "cat > /dev/null; echo heard you; exit 3"


def test_a_file_is_played_with_captions_and_saved(
    tmp_path: Path, tiny_model_dir: Path, open_terminal: Callable[..., Terminal]
) -> None:
    """The whole command under a terminal; Ctrl-C prints the last words and keeps what was asked for."""
    import numpy as np
    import soundfile

    path, target, sound = tmp_path / "noise.wav", tmp_path / "a.srt", tmp_path / "rec.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal(160_000 * 6), 16_000)
    command = [sys.executable, "-m", "streamer", "--play", str(path), "--model", str(tiny_model_dir)]
    terminal = open_terminal(
        [*command, "--output", str(target), "--record", str(sound), "--latency", "low", "--exec", COMMAND],
        100,
        OMP_NUM_THREADS="1",
    )
    terminal.wait(lambda: "getting ready" in terminal.text())
    terminal.wait(lambda: "noise.wav" in terminal.text() and len(terminal.screen.display[0].split()) > 0)
    terminal.wait(lambda: sound.exists() and sound.stat().st_size > 44 + 32_000 * 2)
    terminal.press("n")
    terminal.wait(lambda: target.read_text() != "")
    terminal.wait(lambda: "ended with code 3" in terminal.text())
    shown = [line.rstrip() for line in terminal.screen.display]
    assert not any("getting ready" in line for line in shown)
    assert "heard you" in shown and any(line.startswith("streamer: warning: --exec:") for line in shown), shown
    os.kill(terminal.process.pid, 2)
    assert terminal.end() == 0, terminal.text()
    assert target.read_text().startswith("1\n00:00:0")
    last = target.read_text().split()[-1]
    assert last in terminal.text()
    info = soundfile.info(sound)
    assert (info.samplerate, info.channels) == (16_000, 1) and info.frames > 32_000
