from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamer.cli import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    samples = 0.1 * np.random.default_rng(1).standard_normal(24_000)
    soundfile.write(path, samples, 16_000)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as e:
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_json_object(capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path) -> None:
    code, out, err = run(capsys, audio, "--model", tiny_model_dir, "--format", "json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert set(value) == {"text", "duration_s", "model", "segments", "gaps"}
    assert value["duration_s"] == 1.5
    assert value["text"] == " ".join(segment["text"] for segment in value["segments"])
    for word in value["segments"][0]["words"]:
        assert 0 <= word["start_s"] < word["end_s"] <= 1.5 and 0 <= word["confidence"] <= 1


def test_jsonl_ends_with_an_end(capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path) -> None:
    _, out, _ = run(capsys, audio, "--model", tiny_model_dir, "--format", "jsonl", "--partials")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["type"] for line in lines} == {"partial", "final", "end"}
    assert lines[-1] == {"type": "end", "audio_s": 1.5}


def test_words_are_committed_before_their_segment_ends(
    capsys: pytest.CaptureFixture[str], sample: Path, tmp_path: Path
) -> None:
    samples, rate = soundfile.read(sample)
    soundfile.write(tmp_path / "twice.wav", np.concatenate([samples, samples]), rate)
    common = (tmp_path / "twice.wav", "--lm", "none", "--format", "jsonl", "--partials")
    runs = [run(capsys, *common, *options)[1] for options in ((), ("--commit-ms", "500"))]
    late, early = ([json.loads(line) for line in out.splitlines()] for out in runs)
    assert {line["n_committed_words"] for line in late if line["type"] == "partial"} == {0}
    committed: list[list[str]] = [
        line["text"].split()[: line["n_committed_words"]] for line in early if line["type"] != "end"
    ]
    assert 0 < len(committed[-2]) < len(committed[-1])
    assert all(after[: len(before)] == before for before, after in itertools.pairwise(committed))
    for ms in ("-1", "60001", "soon"):
        code, _, err = run(capsys, sample, f"--commit-ms={ms}")
        assert code == 2 and f"from 0 to 60000. Found: {ms}" in err


def test_the_good_files_are_transcribed(capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path) -> None:
    code, out, err = run(capsys, audio, "/none.wav", audio, "--model", tiny_model_dir, "--format", "json")
    assert code == 1
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(audio)] * 2
    assert err == "streamer: error: /none.wav: no such file\n"


def test_a_file_with_an_impossible_rate_stops_no_other(
    capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(800), 800)
    target = tmp_path / "all.jsonl"
    code, _, err = run(capsys, audio, tmp_path / "slow.wav", audio, "--model", tiny_model_dir, "--output", target)
    assert code == 1 and err.startswith(f"streamer: error: {tmp_path}/slow.wav: Expected a sample rate")
    assert target.read_text().count('"type": "end"') == 2


def test_output_appears_whole(
    capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    target = tmp_path / "subs.srt"
    code, out, _ = run(capsys, audio, "--model", tiny_model_dir, "--format", "srt", "--output", target)
    assert (code, out) == (0, "")
    assert target.read_text().startswith("1\n00:00:0")
    assert list(tmp_path.iterdir()) == [target]


def test_standard_input_and_offline_give_the_file_s_words(
    capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, _ = run(capsys, audio, "--model", tiny_model_dir)
    pcm = soundfile.read(audio, dtype="int16")[0].tobytes()
    for data in (audio.read_bytes(), pcm):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run(capsys, "-", "--model", tiny_model_dir)[:2] == (0, expected)
    assert run(capsys, audio, "--offline", "--model", tiny_model_dir)[:2] == (0, expected)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--mic", "a.wav"], 2, "both"),
        (["--partials"], 2, "expected audio files"),
        (["a.wav", "--offline", "--partials"], 2, "--offline"),
        (["a.wav", "--format", "doc"], 2, "invalid choice"),
        (["models", "info"], 2, "expected a model's name"),
        (["models", "info", "./no-such-model"], 1, "no-such-model"),
        (["connect", "ws://127.0.0.1:9"], 2, "expected one file"),
        (["/none.wav"], 1, "no such file"),
        (["--play", "a.wav", "--record", "a.wav"], 2, "--record a.wav would replace the recording"),
        (["--mic", "--output", "a.txt", "--captions-file", "a.txt"], 2, "would both write a.txt"),
        (["--mic", "--record", "/"], 2, "--record / is a folder"),
        (["--mic", "--output", "/none/a.srt"], 2, "there is no folder /none"),
        (["connect", "ws://127.0.0.1:9", "a.wav", "--output", "a.wav"], 2, "would replace the recording"),
        (["a.wav", "--threads", "0"], 2, "--threads: expected a number of at least 1. Found: 0"),
        (["-", "--channels", "-1"], 2, "--channels: expected a number of at least 1. Found: -1"),
        (["serve", "--max-sessions", "0"], 2, "--max-sessions: expected a number of at least 1. Found: 0"),
        (
            ["serve", "--sessions-per-client", "x"],
            2,
            "--sessions-per-client: expected a number of at least 1. Found: x",
        ),
        (["serve", "--tls-key", "key.pem"], 2, "--tls-key needs --tls-cert"),
        (["serve", "--refresh-ms", "5"], 2, "--refresh-ms must be from"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str) -> None:
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err and err.count("\n") == 1 and "error: " in err


def test_a_model_whose_settings_are_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": "x"}')
    code, out, err = run(capsys, "models", "info", tmp_path)
    assert (code, out) == (1, "") and "hidden_size must be a number. Found: 'x'" in err and err.count("\n") == 1


def test_bad_device(capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path) -> None:
    code, _, err = run(capsys, audio, "--model", tiny_model_dir, "--device", "abacus")
    assert code == 1 and "cuda:N" in err


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "--mic" in out
    assert len(out.splitlines()) < 24 and max(map(len, out.splitlines())) <= 80
    assert run(capsys, "--version")[1].startswith("streamer ")
    assert run(capsys)[0] == 2


def test_as_a_program(audio: Path, tiny_model_dir: Path) -> None:
    command = [sys.executable, "-m", "streamer", str(audio), "--model", str(tiny_model_dir)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == "" and result.stdout


def test_progress_on_a_terminal_leaves_the_result_alone(audio: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The bar is drawn on stderr, a terminal here; every line of a long file must still reach stdout."""
    pty = pytest.importorskip("pty")
    long = tmp_path / "long.wav"
    soundfile.write(long, np.tile(soundfile.read(audio)[0], 24), 16_000)
    command = [sys.executable, "-m", "streamer", str(long), "--model", str(tiny_model_dir)]
    plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    try:
        with_bar = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True
        ).stdout
    finally:
        os.close(theirs)
        os.close(ours)
    assert with_bar == plain != ""


def test_output_spares_devices_recordings_and_earlier_results(
    capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    fifo, earlier = tmp_path / "fifo", tmp_path / "earlier.txt"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert run(capsys, audio, "--model", tiny_model_dir, "--output", fifo)[0] == 0
    assert os.read(reader, 1 << 16) and fifo.is_fifo()
    os.close(reader)
    before = audio.read_bytes()
    code, _, err = run(capsys, audio, "--model", tiny_model_dir, "--output", audio)
    assert code == 2 and "would replace the recording" in err and audio.read_bytes() == before
    earlier.write_text("kept")
    assert run(capsys, "/none.wav", "--output", earlier)[0] == 1
    assert earlier.read_text() == "kept"


def test_output_directory_gets_a_file_for_each_recording(
    capsys: pytest.CaptureFixture[str], audio: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(audio.read_bytes())
    model = ("--model", tiny_model_dir)
    assert run(capsys, audio, other, *model, "--format", "vtt", "--output", tmp_path)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"other.wav", "other.vtt", "noise.vtt"}
    code, _, err = run(capsys, audio, other, *model, "--format", "vtt")
    assert code == 2 and "--output DIRECTORY" in err


def test_server_is_connect(capsys: pytest.CaptureFixture[str]) -> None:
    """`--mic --window --server URL` is `connect URL --mic --window`, with its options and its usage errors."""
    with pytest.raises(SystemExit) as e:
        main(["--mic", "--window", "--server", "ws://127.0.0.1:1", "--split"])
    assert e.value.code == 2 and "streamer connect: error: --split goes with a file" in capsys.readouterr().err
