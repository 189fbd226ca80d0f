"""Ways of joining windows against planted text, and the command that compares them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from core.audio import HOP, SAMPLE_RATE, Samples, n_frames, n_samples_for
from core.engine import Engine
from core.stitcher import Emission
from streamer.bench.plots import plot_stitch
from streamer.bench.stitch import default_plans, measure, offline_text, parse_plan, run_windows, table
from streamer.bench.stitchers import (
    METHODS,
    Plan,
    Window,
    average,
    centre_crop,
    common_letters,
    cropped,
    cross_fade,
    longest_common_subsequence,
    merge_texts,
    middle_tokens,
    mixed,
    plan_windows,
    seam_aware,
    triangle_weights,
)
from streamer.bench.task import Task
from streamer.cli import main
from tests.planted import ALPHABET, TOKENS, PlantedModel, plant


def rows(line: str, sure: float = 0.95) -> np.ndarray:
    """`A_A|B` to log-probabilities, one frame a character."""
    log_probs = np.full((len(line), len(TOKENS)), np.log((1 - sure) / (len(TOKENS) - 1)), np.float32)
    log_probs[range(len(line)), [TOKENS.index(letter) for letter in line]] = np.log(sure)
    return log_probs


@settings(deadline=None)
@given(n=st.integers(0, 200_000), left=st.integers(0, 150), hop=st.integers(1, 60), right=st.integers(0, 60))
def test_windows_cover_every_frame_once(n: int, left: int, hop: int, right: int) -> None:
    spans = plan_windows(n, Plan(left, hop, right))
    assert spans[-1].end_sample == n and spans[-1].stable_frame == max(1, n_frames(n))
    stable = 0
    for span in spans:
        assert span.start_sample % HOP == 0 and span.start_sample <= stable * HOP
        assert stable <= span.stable_frame <= max(1, n_frames(span.end_sample))
        stable = span.stable_frame
    for span in spans[:-1]:
        assert n_frames(span.end_sample) == span.stable_frame + right
        assert span.stable_frame - span.start_sample // HOP == min(span.stable_frame, left + hop)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("plan", [Plan(40, 7, 9), Plan(30, 20, 20), Plan(60, 30, 0)], ids=str)
def test_every_method_reads_windows_that_agree(method, plan: Plan) -> None:
    engine = Engine(PlantedModel())  # type: ignore[arg-type]
    text = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG"
    samples = plant(text, 2, tail=7)
    assert offline_text(engine, samples) == text
    assert method.join(run_windows(engine, samples, plan), plan, ALPHABET) == text


def test_a_letter_that_moved_is_doubled_by_a_fixed_seam_alone() -> None:
    plan = Plan(4, 4, 4)
    windows = [
        Window(Emission(rows("__________A_____"), 0), 12),
        Window(Emission(rows("_____________A__________"), 0), 24),
    ]
    assert centre_crop(windows, plan, ALPHABET) == "AA"
    assert middle_tokens(windows, plan, ALPHABET) == "AA"
    assert seam_aware(windows, plan, ALPHABET) == "A"
    assert longest_common_subsequence(windows, plan, ALPHABET) == "A"


def test_rows_of_fixed_seams() -> None:
    windows = [Window(Emission(rows("ABCD"), 0), 2), Window(Emission(rows("WXYZ"), 1), 5)]
    assert "".join(TOKENS[i] for i in cropped(windows, [2, 5]).argmax(1)) == "ABXYZ"
    assert "".join(TOKENS[i] for i in cropped(windows, [3, 5]).argmax(1)) == "ABCYZ"


def test_means_by_hand() -> None:
    windows = [Window(Emission(rows("AAAA"), 0), 2), Window(Emission(rows("BBBB"), 1), 5)]
    a, b = rows("A")[0], rows("B")[0]
    flat = mixed(windows, lambda n, is_first, is_last: np.ones(n))
    np.testing.assert_allclose(flat, [a, a, (a + b) / 2, (a + b) / 2, b], rtol=1e-5)
    np.testing.assert_array_equal(triangle_weights(5, False, False), [1, 2, 3, 2, 1])
    np.testing.assert_array_equal(triangle_weights(4, True, False), [4, 3, 2, 1])
    np.testing.assert_array_equal(triangle_weights(4, False, True), [1, 2, 3, 4])
    faded = mixed(windows, triangle_weights)
    np.testing.assert_allclose(faded, [a, a, (2 * a + 2 * b) / 4, (a + 3 * b) / 4, b], rtol=1e-5)


def test_means_wait_for_no_later_window() -> None:
    """What is stable stays, whatever comes."""
    plan, first = Plan(2, 2, 2), Window(Emission(rows("A_B_"), 0), 2)
    for later in ("____", "CCCC"):
        windows = [first, Window(Emission(rows(later), 0), 4)]
        for method in (average, cross_fade, centre_crop):
            assert method(windows, plan, ALPHABET).startswith("A")


def test_texts() -> None:
    assert merge_texts("THE QUICK BRO", "UICK BROWN") == "THE QUICK BROWN"
    assert merge_texts("ABC", "XYZ") == "ABC XYZ"
    assert merge_texts("", "XYZ") == "XYZ" and merge_texts("ABC", "") == "ABC"
    assert common_letters("AXBC", "ABYC") == [(0, 0), (2, 1), (3, 3)]
    assert common_letters("AB", "") == []
    # What text alone cannot know: a repeated phrase is taken for the same one.
    assert merge_texts("VERY GOOD", "VERY GOOD INDEED") == "VERY GOOD INDEED"


def test_latencies() -> None:
    plan = Plan(150, 25, 25)
    assert {method.name: method.latency_ms(plan) for method in METHODS} == {
        "seam (ours)": 1000,
        "centre crop": 1000,
        "middle tokens": 2240,
        "average": 1000,
        "cross-fade": 1000,
        "text LCS": 2240,
    }
    assert [METHODS[0].latency_ms(plan) for plan in default_plans()] == [380, 500, 1000, 2000]


def write_set(folder: Path, texts: list[str]) -> Path:
    lines = ["path\tduration_s\tspeaker\ttranscript"]
    for number, text in enumerate(texts):
        samples: Samples = plant(text, 2, tail=20)
        soundfile.write(folder / f"{number}.wav", samples, SAMPLE_RATE, subtype="FLOAT")
        lines.append(f"{number}.wav\t{len(samples) / SAMPLE_RATE}\tnobody\t{text.replace('~', '')}")
    manifest = folder / "planted.tsv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def test_planted_sets_are_read_without_an_edit(tmp_path: Path) -> None:
    texts = ["VERY VERY GOOD FIVE FIVE FIVE", "BOOKKEEPER SEES LLAMAS ~ AGAIN"]
    engine = Engine(PlantedModel(edge=3, jitter=1))  # type: ignore[arg-type]
    result = measure(engine, Task((write_set(tmp_path, texts),)), [Plan(60, 13, 12), Plan(60, 25, 25)])
    assert result["n_utterances"] == 2 and result["offline_wer"] == 0
    ours = [of["methods"][0] for of in result["plans"]]
    assert [of["method"] for of in ours] == ["seam (ours)"] * 2
    assert all((of["word_edits"], of["letter_edits"], of["n_equal"], of["wer"]) == (0, 0, 2, 0) for of in ours)
    assert json.loads(json.dumps(result)) == result
    assert table(result).count("centre crop") == 2
    plot_stitch(result, tmp_path / "stitch.png")
    assert (tmp_path / "stitch.png").read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.normal(0, 0.1, n_samples_for(100)), SAMPLE_RATE)
    (tmp_path / "set.tsv").write_text("path\ttranscript\na.wav\tA B\n")
    arguments = ["bench", "stitch", tmp_path / "set.tsv", "--model", tiny_model_dir, "--plan", "40,20,20", "--json"]
    assert main([str(argument) for argument in arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [len(of["methods"]) for of in result["plans"]] == [len(METHODS)]
    assert main([str(argument) for argument in arguments[:-1]]) == 0
    assert "40,20,20" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,0,1", "-1,2,3"])
def test_what_is_no_plan(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "stitch", "a.tsv", f"--plan={text}"])
    error = capsys.readouterr().err
    assert "xpected" in error and "Found" in error and error.count("\n") == 1
    assert parse_plan("1,2,3") == Plan(1, 2, 3)
