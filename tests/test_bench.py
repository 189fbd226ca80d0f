"""The benchmark's counting, its text rules, its sets, and one whole run with a tiny model."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.audio import SAMPLE_RATE, Samples
from core.configuration import Wav2Vec2Config
from core.edit_distance import WordErrors, word_errors
from core.normalise import normalise, spell, spell_ordinal
from core.training.manifest import read_manifest, read_set
from streamer.bench.agreement import table as precision_table
from streamer.bench.arithmetic import flops
from streamer.bench.conditions import CONDITIONS, apply_condition, empty_audio
from streamer.bench.speed import load_peers
from streamer.bench.speed import table as speed_table
from streamer.bench.systems import ModelChoice, Transcribe, assemble_base, load_system
from streamer.bench.task import Task
from streamer.bench.wer import (
    Hypothesis,
    Loaded,
    SystemReport,
    count_hotwords,
    equal_to_offline,
    measure,
    summary,
    table,
    write_details,
)
from streamer.cli import main

WORDS = st.lists(st.sampled_from(["A", "B", "C", "D"]), max_size=12)
TRANSCRIPTS = {"one.wav": "Mr. Hale said 21.", "two.wav": 'a "quoted" line', "three.wav": "GO"}


def hear(name: str, load: Callable[[], Transcribe], task: Task) -> SystemReport:
    """One system alone."""
    return measure({name: Loaded(load)}, task)[0]


def tone(seconds: float, hertz: float = 440) -> Samples:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


@pytest.fixture
def speech_set(tmp_path: Path) -> Path:
    """Three lines; their audio lasts 1, 2 and 21 s and lies beside the manifest."""
    lines = ["path\tduration_s\tspeaker\ttranscript"]
    for seconds, (path, transcript) in zip((1, 2, 21), TRANSCRIPTS.items(), strict=True):
        soundfile.write(tmp_path / path, tone(seconds), SAMPLE_RATE)
        lines.append(f"{path}\t{seconds}\tnobody\t{transcript}")
    manifest = tmp_path / "tiny.tsv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def says(answers: dict[int, str]) -> Callable[[], Callable[[Samples], str]]:
    """A system that knows an utterance by its whole seconds."""
    return lambda: lambda samples: answers[len(samples) // SAMPLE_RATE]


@given(reference=WORDS.filter(bool), hypothesis=WORDS)
def test_errors_are_jiwers(reference: list[str], hypothesis: list[str]) -> None:
    errors = word_errors(reference, hypothesis)
    assert errors.rate == pytest.approx(jiwer.wer(" ".join(reference), " ".join(hypothesis)))
    assert errors.deletions - errors.insertions == len(reference) - len(hypothesis)
    assert min(errors.substitutions, errors.deletions, errors.insertions) >= 0
    assert errors.n_words == len(reference)


def test_errors_by_hand() -> None:
    assert word_errors("A B C".split(), "A X C D".split()) == WordErrors(1, 0, 1, 3)
    assert word_errors("A B C".split(), ["C"]) == WordErrors(0, 2, 0, 3)
    assert word_errors([], ["A", "B"]) == WordErrors(0, 0, 2, 0)
    assert word_errors([], ["A", "B"]).change == 2.0
    with pytest.raises(ValueError, match="one word. Found: none"):
        _ = word_errors([], ["A", "B"]).rate
    assert (WordErrors(1, 2, 3, 10) + WordErrors(0, 0, 1, 4)).rate == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Hale's 2nd, 21%.", "MISTER HALE'S SECOND TWENTY ONE PERCENT"),
        ("$1,234.50 and $3.5 million", "ONE THOUSAND TWO HUNDRED THIRTY FOUR DOLLARS AND FIFTY CENTS AND "
         "THREE POINT FIVE MILLION DOLLARS"),
        ("in 1850, 1805, 1900 and the 1850s", "IN EIGHTEEN FIFTY EIGHTEEN O FIVE NINETEEN HUNDRED AND THE "
         "EIGHTEEN FIFTIES"),
        ("at 10:30, 9:05, 5:00", "AT TEN THIRTY NINE O FIVE FIVE O'CLOCK"),
        ("'tis the boys' café—it’s well-known", "TIS THE BOYS CAFE IT'S WELL KNOWN"),
        ("007 [BLANK_AUDIO]", "ZERO ZERO SEVEN"),
        ("1" * 20, " ".join(["ONE"] * 20)),
        ("£1 & 99999999999999999999 dollars", "ONE POUND AND " + "NINE " * 20 + "DOLLARS"),
        ("MISTER HALE'S OLD O'CLOCK", "MISTER HALE'S OLD O'CLOCK"),
        ("…", ""),
    ],
)  # fmt: skip
def test_text_rules(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(text=st.text())
def test_normalised_text_stays_as_it_is(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert set(once) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")


def test_spelling() -> None:
    assert [spell(n) for n in (0, 13, 40, 99, 100, 1_205)] == [
        "ZERO",
        "THIRTEEN",
        "FORTY",
        "NINETY NINE",
        "ONE HUNDRED",
        "ONE THOUSAND TWO HUNDRED FIVE",
    ]
    assert spell(2_000_000_017) == "TWO BILLION SEVENTEEN"
    ordinals = {1: "FIRST", 12: "TWELFTH", 20: "TWENTIETH", 23: "TWENTY THIRD", 100: "ONE HUNDREDTH"}
    assert {n: spell_ordinal(n) for n in ordinals} == ordinals
    assert len({spell(n) for n in range(5_000)}) == 5_000


def test_a_set_of_files(speech_set: Path) -> None:
    utterances = list(read_set(speech_set))
    assert {u.path: u.transcript for u in utterances} == TRANSCRIPTS
    assert [len(u.samples) for u in utterances] == [16_000, 32_000, 336_000]
    assert [u.path for u in read_set(speech_set, limit=2)] == ["one.wav", "two.wav"]


def test_a_set_in_shards(speech_set: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, members in enumerate((["one.wav"], ["three.wav", "two.wav", "tiny.tsv"])):
        with tarfile.open(shards / f"tiny-{number:02}.tar", "w") as tar:
            for member in members:
                tar.add(tmp_path / member, arcname=f"tiny/{member}")
    assert [u.path for u in read_set(speech_set, shards)] == ["one.wav", "three.wav", "two.wav"]
    assert [u.path for u in read_set(speech_set, shards, limit=2)] == ["one.wav", "two.wav"]
    (shards / "tiny-01.tar").unlink()
    with pytest.raises(ValueError, match="audio of 2 of 3 lines is not in"):
        list(read_set(speech_set, shards))


def test_any_rate_and_channel_count(speech_set: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", np.stack([np.zeros(8_000), np.zeros(8_000)], 1), 8_000)
    assert len(next(read_set(speech_set)).samples) == SAMPLE_RATE


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no line"), ("path\tspeaker\na\tb\n", "path, speaker"), ("path\ttranscript\n", "no line")],
)
def test_what_is_no_manifest(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "set.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "set.tsv")


def test_missing_and_broken_audio(speech_set: Path, tmp_path: Path) -> None:
    (tmp_path / "two.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"two\.wav: not audio"):
        list(read_set(speech_set))
    (tmp_path / "one.wav").unlink()
    with pytest.raises(ValueError, match=r"one\.wav: no such file"):
        list(read_set(speech_set))
    with pytest.raises(ValueError, match="no such manifest"):
        read_manifest(tmp_path / "none.tsv")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("n", [0, 1, 16_001])
def test_conditions_keep_length_and_range(condition: str, n: int) -> None:
    samples = tone(2)[:n]
    changed = apply_condition(condition, samples, seed=5)
    assert changed.shape == (n,) and changed.dtype == np.float32
    assert not n or np.abs(changed).max() <= 1
    np.testing.assert_array_equal(changed, apply_condition(condition, samples, seed=5))


def test_conditions_do_what_they_say() -> None:
    samples = tone(2, 1000)
    power = float(np.mean(samples**2))
    noise = apply_condition("noise", samples) - samples
    assert 10 * np.log10(power / np.mean(noise**2)) == pytest.approx(10, abs=0.01)
    np.testing.assert_allclose(apply_condition("gain-30", samples), samples * 10**-1.5, rtol=1e-5)
    assert np.mean(np.abs(apply_condition("gain+10", tone(1))) > 0.94) < 0.3
    heard = apply_condition("telephone", samples)[4_000:-4_000]
    assert np.corrcoef(heard, samples[4_000:-4_000])[0, 1] > 0.99  # 1 kHz passes, and no sample is shifted
    assert np.abs(apply_condition("telephone", tone(1, 6_000))).max() < 0.02  # 6 kHz does not
    click = np.zeros(16_000, np.float32)
    click[100] = 0.5
    tail = apply_condition("reverb", click)
    assert not tail[:100].any() or np.abs(tail[:100]).max() < 1e-6
    assert np.mean(tail[200:4_000] ** 2) > 100 * np.mean(tail[7_000:] ** 2) > 0
    with pytest.raises(ValueError, match=r"clean, noise.*Found: 'rain'"):
        apply_condition("rain", samples)
    empty = empty_audio()
    assert not empty.pop("silence").any() and {len(noise) for noise in empty.values()} == {960_000}
    for noise in empty.values():
        assert 20 * np.log10(np.sqrt(np.mean(noise**2))) == pytest.approx(-30, abs=0.01)


def test_counts_and_comparison(speech_set: Path, tmp_path: Path) -> None:
    task = Task((speech_set,))
    exact = {1: "MISTER HALE SAID TWENTY ONE", 2: "A QUOTED LINE", 21: "GO"}
    streaming = hear("streaming", says(exact | {2: "A LINE", 21: "GONE GO"}), task)
    offline = hear("offline", says(exact), task)
    assert streaming.errors("tiny") == WordErrors(0, 1, 1, 9)
    assert offline.errors("tiny") == WordErrors(0, 0, 0, 9)
    assert equal_to_offline(streaming, offline) == (1, 2)  # the third lasts 21 s
    result = summary([streaming, offline], ModelChoice(), task)
    assert json.loads(json.dumps(result))["systems"][0]["sets"]["tiny"] == {
        "n_utterances": 3,
        "n_words": 9,
        "wer": 0.22222,
        "substitutions": 0,
        "deletions": 1,
        "insertions": 1,
    }
    assert result["systems"][0]["audio_s"] == 24.0
    assert result["systems"][0]["peak_memory_mb"] > 10
    shown = table(result)
    assert "22.22" in shown and "equal to offline: 1 of 2" in shown
    write_details([streaming], tmp_path / "details.tsv")
    details = (tmp_path / "details.tsv").read_text().splitlines()
    assert details[2].split("\t") == ["streaming", "tiny", "two.wav", "1", "3", "A QUOTED LINE", "A LINE"]


def test_every_system_hears_the_same_condition(speech_set: Path) -> None:
    heard: list[Samples] = []

    def load() -> Callable[[Samples], str]:
        def transcribe(samples: Samples) -> str:
            heard.append(samples)
            return ""

        return transcribe

    task = Task((speech_set,), limit=2, condition="noise")
    report = hear("one", load, task)
    hear("other", load, task)
    assert report.errors("tiny").deletions == 8
    for ours, theirs in zip(heard[:2], heard[2:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(heard[0], tone(1))


def test_systems_take_turns(speech_set: Path) -> None:
    order: list[str] = []

    def says_its_name(name: str) -> Callable[[Samples], str]:
        return lambda samples: order.append(name) or name

    names = ("first", "second")
    reports = measure({name: Loaded(partial(says_its_name, name)) for name in names}, Task((speech_set,), limit=2))
    assert order == ["first", "second"] * 2
    assert [[h.text for h in report.hypotheses["tiny"]] for report in reports] == [[name] * 2 for name in names]


def test_all_conditions_make_one_table_with_audio_in_which_nobody_speaks(speech_set: Path) -> None:
    lengths: list[int] = []

    def load() -> Callable[[Samples], str]:
        def transcribe(samples: Samples) -> str:
            lengths.append(len(samples))
            return "hello there" if samples.any() else ""

        return transcribe

    task = Task((speech_set,), limit=2, condition="all")
    report = hear("one", load, task)
    empty = ["60 s of silence", "60 s of white noise", "60 s of pink noise"]
    assert list(report.hypotheses) == [*(f"tiny {condition}" for condition in CONDITIONS), *empty]
    assert all(len(report.hypotheses[f"tiny {condition}"]) == 2 for condition in CONDITIONS)
    assert [report.errors(name).insertions for name in empty] == [0, 2, 2]
    assert lengths[-3:] == [960_000] * 3
    lines = table(summary([report], ModelChoice(), task)).splitlines()
    assert [line.split()[-6:] for line in lines if "white noise" in line] == [["-", "0", "0", "2", "0", "1"]]


@pytest.mark.slow
def test_the_command(speech_set: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "wer", speech_set, "--both", "--limit", "2", "--model", tiny_model_dir, "--threads", "1"]
    assert main([*map(str, arguments), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [system["system"] for system in result["systems"]] == ["streaming", "offline"]
    assert all(system["cpu_s_per_audio_s"] > 0 for system in result["systems"])
    assert result["equal_to_offline"]["of"] == 2


def test_speed(speech_set: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, plot = speech_set.parent / "two.wav", tmp_path / "speed.svg"
    arguments = ["bench", "speed", file, "--repeat", "1", "--model", tiny_model_dir, "--plot", plot]
    assert main([*map(str, arguments), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"float32", "auto"} <= result["systems"].keys() and result["ceilings_per_s"]["copy"] > 0
    for of in result["systems"].values():
        assert of["cpu_s_per_audio_s"] > 0 and of["streams_per_core"]["balanced"]["window_s"] == 5.005
    assert result["step_us"]["greedy"]["whole"]["n"] > 0 and result["step_us"]["greedy"]["of_1000"]["mean"] > 0
    assert plot.read_text().startswith("<?xml")
    shown = speed_table(result)
    words = "float32", "streams a core, low", "feature_extractor", "stitch", "first start: imports"
    assert all(word in shown for word in words)


def test_speed_is_compared_where_transformers_knows_the_model() -> None:
    small = Wav2Vec2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    peers = load_peers(small, torch.device("cpu"))
    assert peers.keys() == {"transformers float32", "transformers bfloat16"}
    assert np.asarray(peers["transformers float32"]([np.zeros(16_000, np.float32)])).shape == (1, 49, 32)
    assert load_peers(replace(small, feat_extract_norm="none"), torch.device("cpu")) == {}


def test_operations_of_the_published_sizes() -> None:
    """As PyTorch's own counter finds for a window of 8 s."""
    total = flops(Wav2Vec2Config(), 8 * 16_000)
    assert sum(total.values()) / 8e9 == pytest.approx(14.6, rel=0.02)
    assert total["feature_extractor"] / 8e9 == pytest.approx(4.91, rel=0.02)


def test_precision(speech_set: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "precision", str(speech_set), "--limit", "2", "--model", str(tiny_model_dir)]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    plain, packed = result["precisions"][:2]
    assert (plain["label_agreement"], plain["wer_change"], plain["times_float32"]) == (1, 0, 1)
    assert packed["label_agreement"] > 0.99
    assert "equal labels %" in precision_table(result)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["wer"], 2, "at least one set"),
        (["wer", "a.tsv", "--peers", "siri"], 2, "expected peers of .* Found: siri"),
        (["wer", "a.tsv", "--both", "--offline"], 2, "not allowed with"),
        (["wer", "a.tsv", "--limit", "0"], 2, "at least 1"),
        (["wer", "a/x.tsv", "b/x.tsv"], 2, "different names"),
        (["wer", "/none.tsv"], 1, "no such manifest"),
        (["speed", "/none.wav"], 1, "no such file"),
        (["speed", "/none.wav", "--repeat", "0"], 1, "at least 1 repeat"),
        (["precision"], 2, "at least one set"),
        ([], 2, "wer|speed"),
    ],
)
def test_wrong_use(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found = main(["bench", *arguments])
    except SystemExit as e:
        found = int(e.code or 0)
    error = capsys.readouterr().err
    assert found == code and error.count("\n") == 1
    assert re.search(message, error), error


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("streamer.bench.systems.find_spec", lambda name: None)
    for name in ("faster-whisper-tiny", "faster-whisper-base", "pocketsphinx"):
        with pytest.raises(ValueError, match=r"not installed: pip install '\.\[peers\]'"):
            load_system(name, ModelChoice())
    with pytest.raises(ValueError, match="Found: 'siri'"):
        load_system("siri", ModelChoice())


def test_halves_that_are_not_whisper_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"half{part}" / "data").mkdir(parents=True)
        (tmp_path / f"half{part}" / "data" / f"model.bin.part{part}").write_bytes(b"x")
    monkeypatch.setattr("streamer.bench.systems.package_folder", lambda name: tmp_path / f"half{name[-1]}")
    with pytest.raises(ValueError, match="SHA-256"):
        assemble_base(tmp_path)


def test_recall_counts_listed_words_within_their_utterance() -> None:
    said = [("OKAFOR MET OKAFOR AND JANE", "okafor met a car for and jane"), ("JANE LEFT", "okafor left")]
    heard = [Hypothesis(str(i), 1.0, ref, text, WordErrors()) for i, (ref, text) in enumerate(said)]
    count = count_hotwords(SystemReport("x", {"set": heard}, 0, 0, 0, 0), {"OKAFOR", "JANE"})
    assert (count.heard, count.said, count.made_up) == (2, 4, 1)
    assert count.others == WordErrors(0, 0, 3, 3)  # MET AND LEFT; a car for


def test_hot_words_are_reported(speech_set: Path, tmp_path: Path) -> None:
    (tmp_path / "hot.txt").write_text("Hale\nfence\n")
    exact = {1: "MISTER HALE SAID TWENTY ONE", 2: "A QUOTED LINE", 21: "GO"}
    task = Task((speech_set,))
    reports = [
        hear("with", says(exact), task),
        hear("without", says(exact | {1: "MISTER ALE SAID A FENCE"}), task),
    ]
    result = summary(reports, ModelChoice(hotwords=str(tmp_path / "hot.txt")), task)
    with_words, without = result["systems"]
    assert with_words["hotwords"] == {"heard": 1, "said": 1, "made_up": 0} and with_words["wer_of_other_words"] == 0
    assert without["hotwords"] == {"heard": 0, "said": 1, "made_up": 1} and without["wer_of_other_words"] > 0
    assert [line.split()[:4] for line in table(result).splitlines()[-2:]] == [
        ["with", "1", "1", "0"],
        ["without", "0", "1", "1"],
    ]
