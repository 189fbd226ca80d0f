from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from core.transcript import Event, Transcript
from core.windows import StreamConfig
from streamer import Recognizer

SECONDS = 4


@pytest.fixture(scope="module")
def recognizer(tiny_model_dir: Path) -> Recognizer:
    return Recognizer.load(tiny_model_dir, device="cpu", threads=1)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Noise in syllables: a random network says a lot about it."""
    rng = np.random.default_rng(5)
    envelope = np.abs(np.sin(np.arange(SECONDS * 16_000) * 2 * np.pi * 1.5 / 16_000))
    return (0.2 * envelope * rng.standard_normal(SECONDS * 16_000)).astype(np.float32)


def finals(events: list[Event]) -> list[Transcript]:
    return [event for event in events if isinstance(event, Transcript) and event.is_final]


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(0, SECONDS * 16_000), max_size=20))
def test_any_cutting_gives_the_same_events(recognizer: Recognizer, speech: np.ndarray, cuts: list[int]) -> None:
    whole = recognizer.stream()
    expected = whole.push(speech) + whole.finish()
    assert finals(expected)
    stream = recognizer.stream()
    edges = [0, *sorted(cuts), len(speech)]
    events: list[Event] = []
    for a, b in zip(edges, edges[1:], strict=False):
        events += stream.push(speech[a:b])
    assert events + stream.finish() == expected


def test_streaming_offline_file_and_array_agree(recognizer: Recognizer, speech: np.ndarray, tmp_path: Path) -> None:
    result = recognizer.transcribe(speech, 16_000)
    assert result.text
    # Without committed words a final is the final pass's; a random network would contradict itself.
    engine = recognizer.engine
    stream = engine.new_stream(StreamConfig.preset("balanced", commit_after=10**6))
    stream.push(speech)
    stream.finish()
    streamed = " ".join(final.text for final in finals(engine.drain(stream)))
    assert streamed == recognizer.transcribe(speech, 16_000, offline=True).text
    soundfile.write(tmp_path / "speech.wav", speech, 16_000, subtype="FLOAT")
    assert recognizer.transcribe(tmp_path / "speech.wav") == result
    assert result.to_dict()["text"] == result.text
    assert result.duration_s == SECONDS


def test_int16_and_channels(recognizer: Recognizer, speech: np.ndarray) -> None:
    pcm = (speech * 32767).astype(np.int16)
    as_float = recognizer.transcribe(pcm.astype(np.float32) / 32768, 16_000)
    assert recognizer.transcribe(pcm, 16_000) == as_float
    assert recognizer.transcribe(np.stack([pcm, pcm], 1), 16_000).text == as_float.text


def test_flush_gives_a_final_and_the_context_manager_finishes(recognizer: Recognizer, speech: np.ndarray) -> None:
    with recognizer.stream(latency="low") as stream:
        stream.push(speech[:32_000])
        assert len(finals(stream.flush())) == 1
        stream.push(speech[32_000:])
        last = stream.finish()
    assert [final.segment for final in finals(last)] == [1]
    assert stream.finish() == []


def test_wrong_input_is_named(recognizer: Recognizer, tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 thread. Found: 0"):
        Recognizer.load(tiny_model_dir, threads=0)
    with pytest.raises(ValueError, match="sample_rate"):
        recognizer.transcribe(np.zeros(100, np.float32))
    with pytest.raises(ValueError, match="int32"):
        recognizer.transcribe(np.zeros(100, np.int32), 16_000)
    for shape in ((2, 48_000), (1, 65), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"shape \(n,\) or \(n, channels\), of at most 64 channels. Found: \(\d, "):
            recognizer.transcribe(np.zeros(shape, np.float32), 16_000)
    with pytest.raises(ValueError, match="NaN"):
        recognizer.transcribe(np.array([np.nan], np.float32), 16_000)
    with pytest.raises(ValueError, match="low, balanced, accurate"):
        recognizer.stream(latency="fast")


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_nothing_comes_after_the_end(rate: int, recognizer: Recognizer) -> None:
    stream = recognizer.stream(rate)
    stream.finish()
    with pytest.raises(ValueError, match="Expected samples before"):
        stream.push(np.zeros(rate, np.float32))


def test_batched_windows_equal_single_ones(recognizer: Recognizer, speech: np.ndarray) -> None:
    windows = [speech[:8000], speech[:16_000], speech[8000:16_000], speech[:100], speech[100:8100]]
    together = recognizer.model.emit(windows)
    for window, batched in zip(windows, together, strict=True):
        np.testing.assert_allclose(recognizer.model.emit([window])[0], batched, atol=1e-5)
        np.testing.assert_allclose(np.exp(batched).sum(1), 1, atol=1e-5)


def test_without_a_language_model_the_embedded_decoder_reads(sample: Path) -> None:
    """The likeliest letters of the sample are not its words; with hot words of its own a stream keeps the decoder."""
    samples, _ = soundfile.read(sample, dtype="float32")
    expected = (sample.with_suffix(".txt")).read_text(encoding="utf-8").upper().split()
    letters = Recognizer.load(device="cpu", threads=1, lm="letters").transcribe(samples, 16_000)
    assert letters.text.split() != expected
    recognizer = Recognizer.load(device="cpu", threads=1, lm="none")
    assert recognizer.transcribe(samples, 16_000).text.split() == expected
    assert recognizer.stream(hotwords={})._stream.decode is recognizer.engine.decode
    pytest.importorskip("ctc_beam_decoder")
    with recognizer.stream(hotwords={"letter": 2.0}) as stream:
        events = stream.push(samples) + stream.finish()
    assert " ".join(event.text for event in finals(events)).split() == expected
