from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from clients.captions_file import CaptionsFile
from clients.desktop import Command, DesktopError, Typist, find_copier, find_typist, run_tool
from clients.recording import LONGEST, Recording
from core.captions import to_srt, to_vtt
from core.transcript import Gap, Transcript, Word, make_transcript
from streamer.output import LiveFile, Writer, check_targets, format_of, write_to_stdout

ROOT = Path(__file__).parent.parent


def said(segment: int, text: str, n_committed: int | None = None, is_final: bool = True) -> Transcript:
    """A word each half a second, ten seconds a segment."""
    names = text.split()
    n = len(names) if n_committed is None else n_committed
    starts = [10 * segment + i / 2 for i in range(len(names))]
    words = tuple(Word(name, at, at + 0.4, 0.9, i < n) for i, (name, at) in enumerate(zip(names, starts, strict=True)))
    return make_transcript(segment, is_final, words, 10.0 * segment, 10.0 * segment)


FINALS = [said(i, f"THIS IS SENTENCE NUMBER {name} OF SEVERAL") for i, name in enumerate(["ONE", "TWO", "THREE"])]


@pytest.mark.parametrize(
    ("kind", "output", "expected"),
    [
        (None, "a.srt", "srt"),
        (None, "a.VTT", "vtt"),
        (None, "a.txt", "text"),
        (None, "a.jsonl", "jsonl"),
        (None, "a", "text"),
        (None, None, "text"),
        ("json", "a.srt", "json"),
    ],
)
def test_the_format_is_what_the_name_ends_in(kind: str | None, output: str | None, expected: str) -> None:
    assert format_of(kind, output) == expected


@pytest.mark.parametrize(("kind", "is_kept"), [("text", False), ("jsonl", False), ("json", True), ("srt", True)])
def test_what_is_written_is_not_kept(kind: str, is_kept: bool) -> None:
    """A stream of days needs no memory for it."""
    texts: list[str] = []
    writer = Writer(kind, texts.append, False, warns=False)
    for event in (*FINALS, Gap(30.0, 31.0, "unplugged")):
        writer.event(event, 31.0)
    assert (len(writer.finals), len(writer.gaps)) == ((3, 1) if is_kept else (0, 0))
    writer.end(31.0, "planted")
    assert all(name in "".join(texts) for name in ("ONE", "TWO", "THREE"))


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "… ÄHM →😀"), ("latin-1", "... ÄHM \\u2192\\ud83d\\ude00")])
def test_a_stream_is_given_what_it_can_encode(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", stream)
    partial = said(0, "ÄHM →😀", 0, is_final=False)
    Writer("text", write_to_stdout, True).event(partial, 1.0)
    Writer("jsonl", write_to_stdout, True).event(partial, 1.0)
    text, line = stream.buffer.getvalue().decode(encoding).splitlines()
    assert text == shown and json.loads(line)["text"] == "ÄHM →😀"


def check(kind: str, text: str, finals: list[Transcript]) -> None:
    """The file is whole, and holds all finals so far."""
    if kind == "srt":
        assert text == to_srt(finals)
    elif kind == "vtt":
        assert text == to_vtt(finals) and text.startswith("WEBVTT\n")
    elif kind == "text":
        assert text.splitlines() == [final.text for final in finals]
    elif kind == "json":
        assert [segment["text"] for segment in json.loads(text)["segments"]] == [final.text for final in finals]
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["text"] for line in lines if line["type"] == "final"] == [final.text for final in finals]


@pytest.mark.parametrize("kind", ["srt", "vtt", "text", "json", "jsonl"])
def test_a_live_file_is_valid_at_every_moment(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("an earlier session")
    file = LiveFile(str(path), kind, False, "planted")
    for n, final in enumerate(FINALS):
        check(kind, path.read_text(), FINALS[:n])
        file.event(said(n, "THIS IS", 1, is_final=False), 10.0 * n)
        check(kind, path.read_text(), FINALS[:n])
        file.event(final, 10.0 * n)
    check(kind, path.read_text(), FINALS)
    file.event(Gap(30.0, 31.0, "unplugged"), 31.0)
    file.end(31.0)
    check(kind, path.read_text(), FINALS)
    assert list(tmp_path.iterdir()) == [path]


def test_a_live_file_refuses_early(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a.srt", tmp_path / "none" / "a.txt"):
        with pytest.raises(OSError, match="cannot write"):
            LiveFile(str(path), "text" if path.suffix == ".txt" else "srt", False, "planted")


KILLED = """
import sys
import numpy as np
from clients.recording import Recording
from core.transcript import Transcript, Word
from streamer.output import LiveFile
file, recording = LiveFile(sys.argv[1], sys.argv[2], False, "planted"), Recording(sys.argv[3])
n = 0
while True:
    word = Word("WORD" * 5 + str(n), n, n + 0.5, 0.9, True)
    file.event(Transcript(n, True, word.text, 1, n, n + 0.5, (word,)), n)
    recording.push(np.full(1600, 0.5, np.float32))
    n += 1
    print(n, flush=True)
"""


@pytest.mark.parametrize("kind", ["srt", "jsonl"])
def test_kill_leaves_all_finals_and_a_whole_recording(kind: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of writing, many finals in: nothing that was told is missing, nothing is half."""
    path, sound = tmp_path / f"a.{kind}", tmp_path / "a.wav"
    command = [sys.executable, "-c", KILLED, str(path), kind, str(sound)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        n = 0
        while n < 40:
            n = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        n = int(([str(n), *process.stdout.read().split()])[-1])
    text = path.read_text()
    if kind == "srt":
        blocks = text.split("\n\n")[:-1]
        assert [block.split("\n")[0] for block in blocks] == [str(i + 1) for i in range(len(blocks))]
        assert all(len(block.split("\n")) == 3 and " --> " in block for block in blocks)
        found = len(blocks)
    else:
        found = len([json.loads(line) for line in text.splitlines()])
    assert found in (n, n + 1)
    with wave.open(str(sound)) as file:
        assert file.getnframes() in (1600 * n, 1600 * (n + 1)) and file.getframerate() == 16_000
        assert len(file.readframes(1 << 30)) == 2 * file.getnframes()


def test_a_recording_can_be_read_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with Recording(str(path)) as recording:
        for n in range(3):
            with wave.open(str(path)) as file:
                assert file.getnframes() == 24_000 * n
            recording.push(np.full(8_000, 0.5, np.float32))
            recording.skip(1.0)
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(1 << 20), "<i2").reshape(3, 24_000)
    assert (samples[:, :8_000] == 1 << 14).all() and not samples[:, 8_000:].any()
    with pytest.raises(OSError, match="cannot write"):
        Recording(str(tmp_path / "none" / "a.wav"))


def test_a_full_recording_is_told_and_stays_whole(tmp_path: Path) -> None:
    """After 37 hours its header can count no further."""
    path = tmp_path / "a.wav"
    with Recording(str(path)) as recording:
        recording.push(np.zeros(8_000, np.float32))
        recording._wave._nframeswritten, recording._wave._datawritten = LONGEST - 800, 2 * LONGEST - 1600
        recording.push(np.zeros(800, np.float32))
        with pytest.raises(OSError, match="at most 37 hours"):
            recording.push(np.zeros(1, np.float32))
    with wave.open(str(path)) as file:
        assert file.getnframes() == LONGEST and path.stat().st_size == 44 + 2 * 8_800


def test_captions_file_holds_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "obs.txt"
    captions = CaptionsFile(str(path))
    assert path.read_text() == ""
    captions.event(said(0, "GIVE ME A", 1, is_final=False))
    assert path.read_text() == "GIVE ME A\n"
    for n in range(4):
        captions.event(said(n, " ".join(f"WORD{i}" for i in range(20))))
        lines = path.read_text().splitlines()
        assert len(lines) == 2 and all(len(line) <= 42 for line in lines) and lines[-1].endswith("WORD19")
    captions.event(Gap(1.0, 2.0, "unplugged"))
    captions.close()
    assert path.read_text() == "" and list(tmp_path.iterdir()) == [path]


def test_captions_file_replaces_no_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/null", str(tmp_path / "fifo"), str(tmp_path), str(tmp_path / "none" / "obs.txt")):
        with pytest.raises(OSError, match=f"cannot write {path}"):
            CaptionsFile(path)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"--output": "talk.wav"}, "--output talk.wav would replace the recording"),
        ({"--record": "./talk.wav"}, "--record ./talk.wav would replace the recording"),
        ({"--output": "a.txt", "--captions-file": "b.txt"}, ""),
        ({"--output": "a.txt", "--captions-file": "./a.txt"}, "--output and --captions-file would both write ./a.txt"),
        ({"--output": "/dev/null", "--record": "/dev/null"}, ""),
        ({"--output": None, "--record": None}, ""),
        ({"--captions-file": "none/a.txt"}, "--captions-file none/a.txt: there is no folder /.*none; make it first"),
    ],
)
def test_no_output_replaces_another(
    targets: dict[str, str | None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.wav").symlink_to("talk.wav")
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        check_targets(targets, "link.wav")


def test_words_are_typed_once_as_soon_as_they_stand() -> None:
    typed: list[str] = []
    typist = Typist(typed.append)
    typist.event(said(0, "GIVE ME A", 1, is_final=False))
    typist.event(said(0, "GIVE ME THE", 2, is_final=False))
    typist.event(said(0, "GIVE ME THE", 2, is_final=False))
    typist.event(Gap(1.0, 2.0, "unplugged"))
    typist.event(said(0, "GIVE ME THE KEY"))
    typist.event(said(1, "NOW"))
    assert typed == ["GIVE ", "ME ", "THE KEY ", "NOW "]


def test_typing_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the displays of Linux")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DesktopError, match="DISPLAY"):
        find_typist({})
    with pytest.raises(DesktopError, match="wtype"):
        find_typist({"WAYLAND_DISPLAY": "wayland-0"})


def test_a_tool_that_this_desktop_does_not_heed_is_told_before_anything_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A display that is not there; and a compositor without the protocol, as far as wtype tells of it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the displays of Linux")
    if shutil.which("xdotool"):
        monkeypatch.setenv("DISPLAY", ":999")
        with pytest.raises(DesktopError, match="lets no program type: xdotool failed: "):
            find_typist({"DISPLAY": ":999"})
    wtype = tmp_path / "wtype"
    wtype.write_text("#!/bin/sh\necho no such protocol >&2; exit 1\n")
    wtype.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DesktopError, match="lets no program type: wtype failed: no such protocol"):
        find_typist({"WAYLAND_DISPLAY": "wayland-0"})
    ydotool = tmp_path / "ydotool"
    ydotool.write_text(f"#!/bin/sh\n/bin/cat >> {tmp_path}/typed\n")
    ydotool.chmod(0o755)
    find_typist({"WAYLAND_DISPLAY": "wayland-0"})("GIVE ME ")
    assert (tmp_path / "typed").read_text() == "GIVE ME ", "the other tool does"


def test_clipboard_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the displays of Linux")
    with pytest.raises(DesktopError, match="xclip"):
        find_copier({})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DesktopError, match="wl-clipboard"):
        find_copier({"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"})


def test_a_tool_that_fails_is_told() -> None:
    with pytest.raises(DesktopError, match="^sh failed: it is broken$"):
        run_tool(["sh", "-c", "echo it is broken >&2; exit 2"], "x")
    with pytest.raises(DesktopError, match="none-such failed"):
        run_tool(["none-such"], "x")


def test_a_command_gets_each_final_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.name != "posix":
        pytest.skip("a shell")
    path = tmp_path / "got"
    command = Command(f"cat >> '{path}'; echo done >&2; exit 3")
    for final in FINALS:
        command.event(said(final.segment, "THIS", 1, is_final=False))
        command.event(final)
    command.close()
    assert path.read_text().splitlines() == [final.text for final in FINALS]
    assert "ended with code 3" in caplog.text
    assert capsys.readouterr().out == "done\n" * len(FINALS)


def test_words_that_cannot_be_written_do_not_end_the_commands(tmp_path: Path) -> None:
    """Half a surrogate pair here, whatever the system's encoding lacks elsewhere."""
    if os.name != "posix":
        pytest.skip("a shell")
    command = Command(f"cat >> '{tmp_path}/got'")
    for text in ("ODD\ud800", "GIVE ME"):
        command.event(said(0, text))
    command.close()
    assert (tmp_path / "got").read_text() == "ODD?\nGIVE ME\n"
