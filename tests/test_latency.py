"""Replays on a simulated clock, what is read off them, and whole runs with planted text and a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from core.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, Samples, n_samples_for
from core.engine import Engine
from core.normalise import normalise
from core.transcript import Gap
from core.windows import StreamConfig
from streamer.bench.latency import Setting, measure, spoken
from streamer.bench.latency_report import Heard, delays, finalizations, first_words, report
from streamer.bench.latency_table import table
from streamer.bench.listeners import LocalAgreement, PocketSphinxListener, WhisperListener, spelled
from streamer.bench.plots import plot_latency
from streamer.bench.references import ALIGNERS, Reference, load_aligner, references
from streamer.bench.replay import (
    OwnListener,
    Shown,
    ShownWord,
    Snapshot,
    committed,
    first_shown,
    replay,
    revised_words,
    settled,
)
from streamer.bench.task import Task
from streamer.cli import main
from tests.planted import PlantedModel, plant

BLOCK = SAMPLE_RATE // 10


def words(text: str, word_s: float = 1.0) -> tuple[ShownWord, ...]:
    """Word i lasts from i to i + 1 times `word_s`."""
    return tuple(ShownWord(w, i * word_s, (i + 1) * word_s, 0.9) for i, w in enumerate(text.split()))


def snapshots(*shown: tuple[str, int]) -> list[Snapshot]:
    """Snapshot i comes after i + 1 s of audio, half a second later with computing."""
    return [Snapshot(i + 1, i + 1.5, words(text), n) for i, (text, n) in enumerate(shown)]


class Clock:
    """Passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """Says how many samples it has heard; a push takes `push_s`, the end one second."""

    def __init__(self, clock: Clock, push_s: float, takes_all: bool) -> None:
        self.clock, self.push_s, self.takes_all = clock, push_s, takes_all
        self.pushes: list[int] = []

    def push(self, samples: Samples) -> Iterator[Shown]:
        self.pushes.append(len(samples))
        self.clock.now += self.push_s
        yield words(f"W{len(self.pushes)}"), 0

    def finish(self) -> Iterator[Shown]:
        self.clock.now += 1
        yield words("END"), 1


def test_a_fast_system_is_late_by_its_computing_alone() -> None:
    clock = Clock()
    recorder = replay(Slow(clock, 0.01, takes_all=False), np.zeros(3 * BLOCK + 8, np.float32), BLOCK, clock)
    assert [s.audio_s for s in recorder.snapshots] == pytest.approx([0.1, 0.2, 0.3, 0.3005, 0.3005])
    assert [s.at_s for s in recorder.snapshots] == pytest.approx([0.11, 0.21, 0.31, 0.32, 1.32])
    assert recorder.compute_s == pytest.approx(1.04)


def test_a_slow_system_falls_behind_block_by_block() -> None:
    clock = Clock()
    recorder = replay(Slow(clock, 0.15, takes_all=False), np.zeros(3 * BLOCK, np.float32), BLOCK, clock)
    assert [s.at_s for s in recorder.snapshots] == pytest.approx([0.25, 0.40, 0.55, 1.55])


def test_a_slow_system_that_takes_all_hears_more_at_once() -> None:
    clock = Clock()
    system = Slow(clock, 0.35, takes_all=True)
    recorder = replay(system, np.zeros(6 * BLOCK, np.float32), BLOCK, clock)
    assert system.pushes == [BLOCK, round(0.45 * SAMPLE_RATE) - BLOCK, 6 * BLOCK - round(0.45 * SAMPLE_RATE)]
    assert [s.at_s for s in recorder.snapshots] == pytest.approx([0.45, 0.80, 1.15, 2.15])


def test_a_state_that_did_not_change_is_no_snapshot() -> None:
    class Same:
        takes_all = False

        def push(self, samples: Samples) -> Iterator[Shown]:
            yield words("A"), 0

        def finish(self) -> Iterator[Shown]:
            yield words("A"), 1

    recorder = replay(Same(), np.zeros(3 * BLOCK, np.float32), BLOCK)
    assert [(s.texts, s.n_committed) for s in recorder.snapshots] == [(["A"], 0), (["A"], 1)]


def test_when_words_come_to_stay() -> None:
    shown = snapshots(("A", 0), ("A X", 0), ("A B C", 1), ("A Y", 1), ("A B C", 1), ("A B C", 3))
    assert first_shown(shown) == [0, 2, 2]
    assert settled(shown) == [0, 4, 4]
    assert settled(snapshots(("A X", 0), ("B X", 0), ("B", 0), ("C X", 2))) == [3, 3]
    assert settled(snapshots(("A X", 0), ("B X", 0), ("C X", 2))) == [2, 0]
    assert committed(shown) == [2, 5, 5]
    assert revised_words(shown) == 0
    assert settled([]) == first_shown([]) == committed([]) == []
    assert settled(snapshots(("A", 0), ("", 0))) == []
    assert revised_words(snapshots(("A B", 2), ("A C", 2), ("A", 1))) == 2


def test_a_word_elsewhere_is_another_word() -> None:
    early = Snapshot(1, 1, (ShownWord("FIVE", 0, 0.4, 1),), 0)
    late = Snapshot(9, 9, (ShownWord("FIVE", 0, 0.4, 1), ShownWord("FIVE", 0.8, 1.2, 1)), 2)
    assert first_shown([early, late]) == [0, 1]


def reference(text: str, offline: str = "") -> Reference:
    """Words of a second each; the recording ends with the last."""
    said = tuple(text.split())
    places = range(len(said))
    return Reference("x", len(said), said, tuple(map(float, places)), tuple(i + 1.0 for i in places), offline or text)


def heard(shown: list[Snapshot], text: str) -> Heard:
    return Heard(tuple(shown), text, None, 0.5, 2.0)


def test_delays_by_hand() -> None:
    shown = snapshots(("A", 0), ("A X", 0), ("A B Z", 1), ("A B Z", 3))
    found = delays([reference("A B C")], [heard(shown, "A B Z")])  # C is not right and does not count
    assert found == {
        "provisional": {"audio": [0, 1], "with_compute": [0.5, 1.5]},
        "settled": {"audio": [0, 1], "with_compute": [0.5, 1.5]},
        "committed": {"audio": [2, 2], "with_compute": [2.5, 2.5]},
    }
    assert first_words([reference("A B C")], [heard(shown, "")]) == {"audio": [1], "with_compute": [1.5]}
    assert finalizations([reference("A B C")], [heard(shown, "")]) == {"after_speech": [1.5], "after_audio": [1.5]}


def test_a_report_by_hand() -> None:
    shown = snapshots(("A", 0), ("A X", 0), ("A B Z", 1), ("A B Z", 3))
    silent = Heard((), "", None, 0.5, 2.0)
    found = report("ours", [reference("A B C", "A B Z"), reference("D")], [heard(shown, "A B Z"), silent])
    assert (found["n_words"], found["wer"]) == (4, 0.5)  # Z for C, and no D
    assert (found["induced_word_edits"], found["n_equal_to_offline"]) == (1, 1)
    assert found["emission_s"]["committed"]["audio"]["p50"] == 2 and found["emission_s"]["settled"]["audio"]["n"] == 2
    assert found["unstable_word_ratio"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["revised_committed_words"] == 0
    # Words due at 0, 1 and 2 s; the first two are settled at 1 and 3 s, the third at 3 s, which is the end.
    assert found["laal_s"]["settled"]["audio"] == pytest.approx((1 + 2) / 2)
    assert found["compute_s_per_audio_s"] == 0.25
    of_words = found["words"]
    assert (of_words["n_timed"], of_words["share_within_60_ms"]) == (2, 1.0)
    assert of_words["calibration_error"] == pytest.approx(0.9 - 2 / 3, abs=1e-4)
    assert json.loads(json.dumps(found)) == found


def test_confidence_that_a_system_does_not_have() -> None:
    shown = [Snapshot(1, 1, (ShownWord("A", 0.1, 1.0, nan),), 1)]
    of_words = report("peer", [reference("A")], [heard(shown, "A")])["words"]
    assert of_words["n_with_confidence"] == 0 and of_words["calibration_error"] is None
    assert of_words["share_within_60_ms"] == 0 and of_words["start_off_ms"]["p50"] == 100


def test_words_are_counted_as_they_are_spoken() -> None:
    snapshot = Snapshot(
        1, 1, (ShownWord("Hale,", 0, 1, 0.5), ShownWord("—", 1, 1, 0.5), ShownWord("21%", 1, 2, 0.5)), 2
    )
    assert spoken(snapshot).texts == ["HALE", "TWENTY", "ONE", "PERCENT"]
    assert spoken(snapshot).n_committed == 1
    assert {(w.start_s, w.end_s) for w in spoken(snapshot).words[1:]} == {(1, 2)}


def test_two_hypotheses_that_agree_are_committed() -> None:
    agreement = LocalAgreement()
    agreement.hear(words("so we"))
    assert agreement.shown == (words("so we"), 0)
    agreement.hear(words("So, we go"))
    assert (spelled(agreement.committed), spelled(agreement.provisional)) == (["so", "we"], ["go"])
    agreement.hear(words("so we went home"))  # what is committed stays; `go` was not confirmed
    assert (spelled(agreement.committed), spelled(agreement.provisional)) == (["so", "we"], ["went", "home"])
    agreement.hear([ShownWord("we", 1.95, 2.1, 1), *words("so we went home")[2:]])  # said again, a little later
    assert spelled(agreement.committed) == ["so", "we", "went", "home"]
    agreement.hear([])
    agreement.finish()
    assert agreement.shown[1] == 4


class FakeWhisper:
    """Hears a word in every whole second of the buffer."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, str | None]] = []

    def transcribe(self, samples: Samples, initial_prompt: str | None, **_: object) -> tuple[list[object], None]:
        self.heard.append((len(samples), initial_prompt))
        ids = [int(samples[second * SAMPLE_RATE]) for second in range(len(samples) // SAMPLE_RATE)]
        found = [SimpleNamespace(word=f" w{n}", start=i, end=i + 1.0, probability=0.5) for i, n in enumerate(ids)]
        return [SimpleNamespace(words=[word], end=word.end) for word in found], None


def test_whisper_hears_the_buffer_again_until_it_is_cut() -> None:
    model = FakeWhisper()
    samples = np.repeat(np.arange(1, 41, dtype=np.float32), SAMPLE_RATE)
    recorder = replay(WhisperListener(model), samples, BLOCK, Clock())
    assert recorder.snapshots[-1].texts == [f"w{n}" for n in range(1, 41)]
    assert recorder.snapshots[-1].n_committed == 40
    assert recorder.snapshots[0].audio_s == 1 and committed(recorder.snapshots)[:3] == [1, 2, 3]
    assert max(n for n, _ in model.heard) <= 17 * SAMPLE_RATE
    assert model.heard[0][1] is None and "w1 w2" in str(model.heard[-1][1])
    assert recorder.snapshots[-1].words[30].start_s == pytest.approx(30, abs=0.2)
    assert revised_words(recorder.snapshots) == 0


def test_what_pocketsphinx_says() -> None:
    segments = [("<s>", 0, 9), ("<sil>", 10, 20), ("the(2)", 21, 39), ("[NOISE]", 40, 41), ("end", 42, 49)]
    calls: list[str] = []

    class Decoder:
        def hyp(self) -> object | None:
            return None if calls[-1] == "start" else SimpleNamespace(hypstr="the end")

        def seg(self) -> list[object]:
            return [SimpleNamespace(word=w, start_frame=a, end_frame=b) for w, a, b in segments]

        def start_utt(self) -> None:
            calls.append("start")

        def process_raw(self, data: bytes) -> None:
            calls.append(f"{len(data)} bytes" if len(calls) > 1 else "start")

        def end_utt(self) -> None:
            calls.append("end")

    recorder = replay(PocketSphinxListener(Decoder()), np.zeros(2 * BLOCK, np.float32), BLOCK, Clock())
    assert calls == ["start", "start", f"{2 * BLOCK} bytes", "end"]
    assert [(s.texts, s.n_committed) for s in recorder.snapshots] == [([], 0), (["the", "end"], 0), (["the", "end"], 2)]
    assert (recorder.snapshots[1].words[0].start_s, recorder.snapshots[1].words[0].end_s) == (0.21, 0.4)


@pytest.fixture
def planted_set(tmp_path: Path) -> Path:
    lines = ["path\tduration_s\tspeaker\ttranscript"]
    for number, text in enumerate(["VERY VERY GOOD ~~ FIVE FIVE FIVE", "BOOKKEEPERS SEE LLAMAS"]):
        soundfile.write(tmp_path / f"{number}.wav", plant(text, 2, tail=20), SAMPLE_RATE, subtype="FLOAT")
        lines.append(f"{number}.wav\t1\tnobody\t{text.replace('~', '')}")
    (tmp_path / "planted.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "planted.tsv"


def test_planted_words_are_found_where_they_are(planted_set: Path) -> None:
    first, second = references(Engine(PlantedModel()), Task((planted_set,)))  # type: ignore[arg-type]
    assert first.words == tuple("VERY VERY GOOD FIVE FIVE FIVE".split()) and first.offline == " ".join(first.words)
    # A letter is a frame and two blanks, and so is the delimiter.
    assert first.starts_s[:3] == pytest.approx([0, 15 * HOP / SAMPLE_RATE, 30 * HOP / SAMPLE_RATE])
    assert second.ends_s[0] == pytest.approx(((10 * 3 + 1) * HOP + RECEPTIVE_FIELD - HOP) / SAMPLE_RATE)


def test_an_aligner_that_knows_nothing_of_the_model(sample: Path) -> None:
    pytest.importorskip("pocketsphinx")
    engine = Engine(PlantedModel())  # type: ignore[arg-type]
    align = load_aligner("pocketsphinx", engine)
    samples, _ = soundfile.read(sample, dtype="float32")
    said = normalise((sample.parent / "sample.txt").read_text()).split()
    times = align(samples, np.zeros((0, 0), np.float32), said)
    assert len(times) == len(said) and all(a < b for a, b in times)
    assert all(b <= c for (_, b), (c, _) in zip(times, times[1:], strict=False))
    assert times[0][0] < 0.1 and 4.2 < times[-1][1] < 4.55  # it speaks from the first moment on
    assert align(samples, np.zeros((0, 0), np.float32), ["QWZX"]) == []
    assert align(samples, np.zeros((0, 0), np.float32), []) == []
    with pytest.raises(ValueError, match=f"Expected an aligner of {', '.join(ALIGNERS)}. Found: 'ear'"):
        load_aligner("ear", engine)


def test_a_whole_run_with_planted_words(planted_set: Path, tmp_path: Path) -> None:
    engine = Engine(PlantedModel())  # type: ignore[arg-type]
    result, of_words = measure(engine, ["low", "accurate"], [], Task((planted_set,)), Setting(HOP), None)
    low, accurate = result["systems"]
    for of in result["systems"]:
        assert (of["wer"], of["induced_word_edits"], of["n_equal_to_offline"]) == (0, 0, 2)
        assert of["revised_committed_words"] == 0
        assert of["words"]["share_within_60_ms"] == 1 and of["words"]["n_timed"] == 9
        assert of["emission_s"]["committed"]["audio"]["n"] == 9
    # A letter is seen at most a hop after it was said, and settles by then: nothing moves.
    config = StreamConfig.preset("low")
    assert low["emission_s"]["provisional"]["audio"]["p99"] <= (config.hop + config.right + 1) * HOP / SAMPLE_RATE
    for kind in ("provisional", "settled"):
        assert low["emission_s"][kind]["audio"]["p50"] < accurate["emission_s"][kind]["audio"]["p50"]
    assert low["unstable_word_ratio_without_growth"] == 0
    assert json.loads(json.dumps(result)) == result
    assert "accurate" in table(result)
    plot_latency(result, of_words, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_silence_brings_the_final_by_itself(planted_set: Path) -> None:
    engine = Engine(PlantedModel())  # type: ignore[arg-type]
    task = Task((planted_set,))
    result, _ = measure(engine, ["balanced"], [], task, Setting(HOP, 5 * SAMPLE_RATE), None)
    after = result["systems"][0]["finalization_s"]["after_audio"]
    assert 0.5 < after["p50"] < 5.0
    assert result["silence_s"] == 5 and result["systems"][0]["wer"] == 0


def test_audio_that_is_lost_is_no_result() -> None:
    listener = OwnListener(Engine(PlantedModel()), StreamConfig.preset("low"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Found: Gap"):
        listener.shown(Gap(1, 2, "too much"))


def test_words_that_cannot_be_aligned_are_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", plant("A"), SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "set.tsv").write_text("path\ttranscript\nshort.wav\tFAR MORE WORDS THAN THAT\n")
    engine = Engine(PlantedModel())  # type: ignore[arg-type]
    result, _ = measure(engine, ["low"], [], Task((tmp_path / "set.tsv",)), Setting(HOP), None)
    assert result["n_not_aligned"] == 1 and result["systems"][0]["emission_s"]["settled"]["audio"] == {"n": 0}
    assert "low" in table(result)


def test_the_command(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, n_samples_for(150)), SAMPLE_RATE)
    (tmp_path / "set.tsv").write_text("path\ttranscript\na.wav\tA B\n")
    arguments = [
        "bench",
        "latency",
        tmp_path / "set.tsv",
        "--model",
        tiny_model_dir,
        "--presets",
        "low,low-whole",
        "--json",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [of["system"] for of in result["systems"]] == ["low", "low-whole"]
    assert main([str(argument) for argument in arguments[:-1]]) == 0
    assert "Seconds from the end of a word" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--presets", "low,fast"],
            "of low, balanced, accurate, or these with -steady or -whole or -commit1 or -commit2. Found: fast",
        ),
        (["--presets", "low-steady-fast"], "Found: low-steady-fast"),
        (["--peers", "siri"], "expected peers of .* Found: siri"),
        (["--block-ms", "0"], "a block of at least 1 ms"),
        (["--silence", "-1"], "no negative silence"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "latency", "a.tsv", *arguments])
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_a_plot_that_cannot_be_drawn(
    planted_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streamer.bench.plots.find_spec", lambda name: None)
    for command in ("latency", "stitch"):
        assert main(["bench", command, str(planted_set), "--plot", "x.png", "--model", "/no/model"]) == 1
        assert "pip install '.[bench]'" in capsys.readouterr().err
