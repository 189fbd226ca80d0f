"""The engine on planted audio: whatever the cutting, the words come out once, in order, and never change."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import PlantedModel, plant

from core.audio import HOP, SAMPLE_RATE, n_frames, n_samples_for
from core.endpoint import EndpointConfig
from core.engine import Engine
from core.offline import transcribe_offline
from core.seam import FEW
from core.search import AHEAD, GLIMPSE, LEAD
from core.stream import Stream
from core.transcript import Event, Gap, Transcript
from core.windows import Pass, StreamConfig

TEXT = "VERY VERY GOOD FIVE FIVE FIVE BOOKKEEPER SEES LLAMAS~~THE END OF ALL GOOD THINGS"
WORDS = TEXT.replace("~~", " ")


def run(engine: Engine, samples: np.ndarray, config: StreamConfig, cuts: list[int]) -> list[Event]:
    stream = engine.new_stream(config)
    events: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(samples)], strict=True):
        events += stream.push(samples[start:end])
        events += engine.drain(stream)
    stream.finish()
    return events + engine.drain(stream)


def finals(events: list[Event]) -> list[Transcript]:
    return [event for event in events if isinstance(event, Transcript) and event.is_final]


def said(events: list[Event]) -> str:
    return " ".join(final.text for final in finals(events))


def check_contract(events: list[Event]) -> None:
    """Committed words stand for ever; a segment has one final; segments come in order."""
    committed: dict[int, tuple[str, ...]] = {}
    ended: set[int] = set()
    last = 0
    for event in events:
        assert isinstance(event, Transcript)
        assert event.segment >= last
        assert event.segment not in ended
        last = event.segment
        words = tuple(word.text for word in event.words)
        before = committed.get(event.segment, ())
        assert words[: len(before)] == before
        committed[event.segment] = words[: event.n_committed_words]
        assert len(committed[event.segment]) >= len(before)
        assert [word.is_committed for word in event.words] == [i < event.n_committed_words for i in range(len(words))]
        if event.is_final:
            ended.add(event.segment)
            assert event.n_committed_words == len(words) > 0


@pytest.mark.parametrize("latency", ["low", "balanced", "accurate"])
def test_planted_words_come_out(latency: str) -> None:
    engine = Engine(PlantedModel())
    events = run(engine, plant(TEXT), StreamConfig.preset(latency), [])
    assert said(events) == WORDS
    assert len(finals(events)) == 2
    check_contract(events)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), edge=st.integers(0, 6), jitter=st.integers(0, 2))
def test_cutting_changes_nothing_and_committed_words_stand(data: st.DataObject, edge: int, jitter: int) -> None:
    engine = Engine(PlantedModel(edge=edge, jitter=jitter))
    samples = plant(TEXT, gap=data.draw(st.integers(2, 5)))
    config = StreamConfig(
        left=data.draw(st.integers(0, 60)),
        hop=data.draw(st.integers(1, 40)),
        right=data.draw(st.integers(0, 40)),
        commit_after=data.draw(st.integers(0, 20)),
        steady=data.draw(st.booleans()),
        endpoint=EndpointConfig(
            after_speech=data.draw(st.integers(10, 60)), max_length=data.draw(st.integers(120, 400))
        ),
    )
    whole = run(engine, samples, config, [])
    check_contract(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=30)))
    assert run(engine, samples, config, cuts) == whole


def test_words_that_steps_do_not_hear_stand_once_committed() -> None:
    """Windows without context hear no letter twice: for its steps the segment is silent."""
    config = StreamConfig(left=0, hop=1, right=2, commit_after=0, endpoint=EndpointConfig(10, max_length=149))
    events = run(Engine(PlantedModel(jitter=1)), plant(TEXT, gap=2), config, [])
    check_contract(events)
    assert said(events).split()[:3] == WORDS.split()[:3]


def test_steady_partials_only_grow() -> None:
    """Letters near a window's end are not heard by it; words that the next windows may complete wait."""
    engine = Engine(PlantedModel(edge=12))
    texts: dict[bool, list[list[str]]] = {}
    for steady in (False, True):
        config = StreamConfig.preset("balanced", steady=steady)
        events = run(engine, plant("HOW MANY LETTERS WILL BE HEARD OF EXTRAORDINARY WORDS~~", gap=1), config, [])
        texts[steady] = [event.text.split() for event in events if isinstance(event, Transcript)]

    def n_changed(shown: list[list[str]]) -> int:
        return sum(after[: len(before)] != before for before, after in itertools.pairwise(shown))

    assert n_changed(texts[False]) > 0 and n_changed(texts[True]) == 0
    assert texts[True][-1] == texts[False][-1]
    assert len(texts[True]) > 3


def test_one_sample_at_a_time_is_the_whole_at_once() -> None:
    engine = Engine(PlantedModel())
    samples = plant("AT ONCE")
    config = StreamConfig(left=5, hop=3, right=2)
    assert run(engine, samples, config, list(range(1, len(samples)))) == run(engine, samples, config, [])


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(0, 300), hop=st.integers(5, 40))
def test_no_word_is_lost_or_doubled_at_a_maximum_length_cut(cut: int, hop: int) -> None:
    text = " ".join(f"{'ABCDEFGH'[i % 8]}{'XYZ'[i % 3]}WORD" for i in range(60))
    config = StreamConfig(left=50, hop=hop, right=10, endpoint=EndpointConfig(after_speech=50, max_length=120 + cut))
    events = run(Engine(PlantedModel()), plant(text), config, [])
    assert said(events) == text
    assert len(finals(events)) > 1
    check_contract(events)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), pauses=st.lists(st.integers(5, 90), min_size=1, max_size=8))
def test_finals_do_not_depend_on_the_hop(data: st.DataObject, pauses: list[int]) -> None:
    """Pauses that are just long enough, or just too short, lie anywhere on the grid of hops."""
    engine = Engine(PlantedModel())
    words = [f"{'ABCDEFGH'[i]}WORDS {'XYZ'[i % 3]}MORE" for i in range(8)]
    parts = [plant(word, tail=tail)[:-80] for word, tail in zip(words, pauses, strict=False)]
    samples = np.concatenate([*parts, np.zeros(80, np.float32)])
    rules = EndpointConfig(data.draw(st.integers(10, 60)), max_length=data.draw(st.integers(120, 400)))
    heard = []
    for _ in range(2):
        hop, right = data.draw(st.integers(3, 60)), data.draw(st.integers(0, 60))
        config = StreamConfig(data.draw(st.integers(0, 60)), hop, right, endpoint=rules)
        heard.append(finals(run(engine, samples, config, [])))
        assert finals(run(engine, samples, replace(config, commit_after=data.draw(st.integers(0, 60))), []))
    assert heard[0] == heard[1] == transcribe_offline(engine, samples, config)


def run_without_partials(engine: Engine, samples: np.ndarray, config: StreamConfig, n: int) -> list[Event]:
    """With `n` samples at once."""
    stream = engine.new_stream(config)
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "only_ends", True)  # else of models alone whose features are kept
        stream.hide_partials()
        for start in range(0, len(samples), n):
            stream.push(samples[start : start + n])
            events += engine.drain(stream)
            # A server reads no more than that of a recording, so a step must not wait for more.
            assert stream.n_samples - stream.n_processed <= n_samples_for(config.longest_wait)
        stream.finish()
        return events + engine.drain(stream)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), pauses=st.lists(st.integers(5, 200), min_size=1, max_size=8), noise=st.sampled_from([0, 0.1]))
def test_streams_that_show_no_partials_have_the_same_finals(
    data: st.DataObject, pauses: list[int], noise: float
) -> None:
    """Their steps hear little but pauses."""
    engine = Engine(PlantedModel())
    words = [f"{'ABCDEFGH'[i]}WORDS {'XYZ'[i % 3]}MORE" for i in range(8)]
    parts = [plant(word, tail=tail)[:-80] for word, tail in zip(words, pauses, strict=False)]
    samples = np.concatenate([*parts, np.zeros(80, np.float32)])
    samples[np.arange(len(samples)) % HOP > 0] += noise  # between the samples that the model reads
    rules = EndpointConfig(data.draw(st.integers(10, 60)), max_length=data.draw(st.integers(120, 400)))
    config = replace(StreamConfig.preset(data.draw(st.sampled_from(["low", "balanced", "accurate"]))), endpoint=rules)
    whole = finals(run(engine, samples, config, []))
    assert finals(run_without_partials(engine, samples, config, data.draw(st.integers(1000, 40_000)))) == whole
    assert transcribe_offline(engine, samples, config) == whole


def test_a_step_waits_while_no_pause_can_be_over() -> None:
    class Recorded(PlantedModel):
        def read(self, window: np.ndarray) -> np.ndarray:
            n_heard.append(n_frames(len(window)))
            return super().read(window)

    def steps(text: str, tail: int, noise: float = 0) -> list[int]:
        """Frames of the windows."""
        n_heard.clear()
        samples = plant(text, 0, tail)
        samples[np.arange(len(samples)) % HOP > 0] += noise  # between the samples that the model reads
        run_without_partials(Engine(Recorded()), samples, StreamConfig.preset("balanced"), HOP)
        return list(n_heard)

    n_heard: list[int] = []

    assert steps("A" * 600, 0) == [600], "no sound is that of a pause"
    whole = EndpointConfig().after_speech + 2 * EndpointConfig().slack + LEAD + AHEAD
    assert steps("A" * 160, 80)[:2] == [whole, 213], "the first row by which the quiet one has lasted long enough"
    loud = steps("A" * 100 + "~~~~" + "A" * 700 + "~~~~" + "A" * 100, 0, noise=0.1)
    glimpse = GLIMPSE + AHEAD
    assert loud[:3] == [glimpse, 1000, 255], "the longest segment has a loud pause"
    assert loud[3:8] == [glimpse, 50, 90, 170, 980], "the next one is looked for; where no letter is heard, more is"
    assert steps("~~~~~~~~" + "A" * 200, 0, noise=0.1) == [600, glimpse, 275], "silence is let go of by a final pass"
    assert steps("A" * 100 + "~~~~~~~~" + "A" * 200, 0)[2:] == [65, 85, 85, 375], (
        "at once, if the sound is that of a pause"
    )
    silent = steps("", 2500, noise=0.1)
    assert silent[:7] == [30, 50, 90, 170, 330, 650, 1010], "silence that might have been speech"
    assert set(silent[7:-1]) == {160}, "and goes on"


def test_a_pass_that_hears_the_next_letter_too_soon_is_run_again_without_it() -> None:
    has_letter = np.ones(108, bool)
    has_letter[52:101] = False  # one row less than a pause has
    stream = Stream(StreamConfig(), 0)
    stream.push(np.repeat(has_letter, HOP).astype(np.float32))
    stream.push(np.zeros(80, np.float32))
    assert stream.cut(Pass(0, n_samples_for(108), 80, is_pause=True), has_letter) is None
    shorter = stream.pending
    assert shorter is not None and shorter.end_sample == n_samples_for(105) and shorter.is_pause
    assert stream.cut(shorter, (has_letter & (np.arange(108) < 101))[:105]) == 77
    stream.pending = None
    assert stream.cut(shorter, has_letter[:105]) is None and stream.pending is None and stream.pause_frame > 105


class Unsure(PlantedModel):
    """Reads some frames otherwise in each window."""

    def read(self, window: np.ndarray) -> np.ndarray:
        rows = super().read(window)
        chance = np.random.default_rng(len(window))
        for row in np.flatnonzero(chance.random(len(rows)) < 0.05):
            rows[row] = np.roll(rows[row], chance.integers(28))
        return rows


@settings(deadline=None, max_examples=60)
@given(data=st.data(), pauses=st.lists(st.integers(5, 160), min_size=1, max_size=8), jitter=st.integers(0, 5))
def test_whatever_passes_disagree_on_the_stream_goes_on(data: st.DataObject, pauses: list[int], jitter: int) -> None:
    """A pause that one pass finds and the next does not must neither hold the stream up nor end what is committed."""
    model = Unsure(edge=data.draw(st.integers(0, 12)), jitter=jitter)
    samples = np.concatenate([plant("WORDS AND MORE", tail=tail)[:-80] for tail in pauses])
    config = StreamConfig(
        left=data.draw(st.integers(0, 60)),
        hop=data.draw(st.integers(3, 60)),
        right=data.draw(st.integers(0, 60)),
        commit_after=data.draw(st.integers(0, 60)),
        endpoint=EndpointConfig(data.draw(st.integers(10, 60)), max_length=data.draw(st.integers(120, 400))),
    )
    engine = Engine(model)
    stream = engine.new_stream(config)
    events: list[Event] = []
    for block in [*np.array_split(samples, 10), None]:
        if block is None:
            stream.finish()
        else:
            stream.push(block)
            if data.draw(st.booleans()):
                stream.flush()
        while stream.is_ready:
            events += engine.step([stream])[0]
            assert len(model.lengths) <= len(samples) // HOP + 20, "more passes than frames"
    check_contract(events)


def test_ten_minutes_without_a_pause_stay_bounded() -> None:
    """Memory, the longest window and the rows that are kept do not grow with a monologue."""
    engine = Engine(PlantedModel())
    numbers = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN"]
    text = " ".join(numbers[i * i % 10] for i in range(2200))
    samples = plant(text)
    assert len(samples) > 600 * SAMPLE_RATE
    stream = engine.new_stream(StreamConfig.preset("balanced"))
    config = stream.config
    events: list[Event] = []
    longest = kept = 0
    for start in range(0, len(samples), 40_000):
        stream.push(samples[start : start + 40_000])
        while (task := stream.next_pass()) is not None:
            longest = max(longest, (task.end_sample - task.start_sample) // HOP)
            events += engine.step([stream])[0]
            kept = max(kept, len(stream.frames.marks))
    stream.finish()
    events += engine.drain(stream)
    assert said(events) == text
    assert kept <= config.endpoint.max_length + config.window
    assert longest <= config.endpoint.max_length + 2 * config.context + config.hop
    assert len(finals(events)) >= 600 // 20
    check_contract(events)


def test_confidence_is_the_letters_probability_to_the_power_of_the_checkpoint() -> None:
    samples = plant("SURE")
    plain = finals(run(Engine(PlantedModel()), samples, StreamConfig(), []))[0].words[0].confidence
    squared = finals(run(Engine(PlantedModel(confidence_exponent=2.0)), samples, StreamConfig(), []))[0].words[0]
    assert 0.9 < plain < 1
    assert squared.confidence == pytest.approx(plain**2, abs=1e-3)


def test_a_partial_that_the_final_pass_does_not_confirm_is_taken_back() -> None:
    """A window that ends early reads a letter where the whole segment has none."""

    class Hasty(PlantedModel):
        def read(self, window: np.ndarray) -> np.ndarray:
            return super().read(window if len(window) < 2 * SAMPLE_RATE else np.zeros_like(window))

    samples = np.concatenate([plant("UM"), np.zeros(5 * SAMPLE_RATE // 2, np.float32)])
    events = run(Engine(Hasty()), samples, StreamConfig.preset("balanced", EndpointConfig(after_speech=200)), [])
    assert [event.text for event in events][-1] == "" and len(events) > 1
    assert finals(events) == []


def test_flush_makes_all_words_so_far_final_and_the_stream_goes_on() -> None:
    engine = Engine(PlantedModel())
    samples = plant("FIRST HALF ")
    more = plant("SECOND HALF")
    stream = engine.new_stream(StreamConfig.preset("balanced"))
    stream.push(samples)
    stream.flush()
    assert said(engine.drain(stream)) == "FIRST HALF"
    # The planted grid goes on where the frames of the first part ended.
    padding = -stream.n_samples % HOP
    stream.push(np.zeros(padding, np.float32))
    stream.push(more)
    stream.finish()
    events = engine.drain(stream)
    assert said(events) == "SECOND HALF"
    assert finals(events)[0].segment == 1
    assert finals(events)[0].start_s >= len(samples) / SAMPLE_RATE - 0.02


def test_flush_twice_and_on_nothing_says_nothing() -> None:
    engine = Engine(PlantedModel())
    stream = engine.new_stream()
    stream.flush()
    stream.flush()
    assert engine.drain(stream) == []
    stream.push(np.zeros(10, np.float32))
    stream.finish()
    assert engine.drain(stream) == []
    assert not stream.is_ready


def test_streams_in_one_batch_say_what_they_say_alone() -> None:
    texts = ["ONE TWO THREE FOUR", "A MAN A PLAN A CANAL", "~~SILENCE FIRST", "SHORT"]
    config = StreamConfig(left=20, hop=10, right=5)
    engine = Engine(PlantedModel())
    alone = [run(engine, plant(text), config, []) for text in texts]
    streams = [engine.new_stream(config) for _ in texts]
    for stream, text in zip(streams, texts, strict=True):
        stream.push(plant(text))
        stream.finish()
    together: list[list[Event]] = [[] for _ in texts]
    while any(stream.is_ready for stream in streams):
        for events, new in zip(together, engine.step(streams), strict=True):
            events += new
    assert together == alone
    assert max(engine.model.lengths) == len(texts) - 1  # for silence no model is run


@settings(deadline=None, max_examples=20)
@given(data=st.data(), edge=st.integers(0, 6), jitter=st.integers(0, 2))
def test_what_many_windows_say_at_once_each_says_alone(data: st.DataObject, edge: int, jitter: int) -> None:
    """Streams of other presets, in other places, with steps left out in one of them: the same events and frames."""
    configs = [
        StreamConfig(
            left=data.draw(st.integers(20, 60)),
            hop=data.draw(st.integers(5, 30)),
            right=data.draw(st.integers(0, 30)),
            commit_after=data.draw(st.sampled_from([0, 20, 1000])),
            steady=data.draw(st.sampled_from([False, False, True])),
        )
        for _ in range(2 * FEW)
    ]
    texts = 3 * [TEXT, TEXT[20:], "~~~" + TEXT, "A LONG ~~ PAUSE"]
    engine = Engine(PlantedModel(edge=edge, jitter=jitter))
    streams = [[engine.new_stream(config) for config in configs] for _ in range(2)]
    for of_way in streams:
        for stream, text in zip(of_way, texts, strict=True):
            stream.push(plant(text))
            stream.shows_all = stream is not of_way[1]
            stream.finish()
    while work := [i for i, stream in enumerate(streams[0]) if stream.is_ready]:
        passes = [[(stream, stream.next_pass()) for stream in (of_way[i] for i in work)] for of_way in streams]
        emitted = engine.emit(passes[0])
        together = engine.apply_all(passes[0], emitted)
        assert together == [engine.apply(*of, rows) for of, rows in zip(passes[1], emitted, strict=True)]
        for one, other in ((streams[0][i].shown, streams[1][i].shown) for i in work):
            assert (one.start_frame, one.n_stable) == (other.start_frame, other.n_stable)
            np.testing.assert_array_equal(one.marks, other.marks)
    assert not any(stream.is_ready for stream in streams[1])


def test_silence_makes_no_events_and_holds_no_memory() -> None:
    engine = Engine(PlantedModel())
    stream = engine.new_stream(StreamConfig.preset("balanced"))
    for _ in range(120):
        assert stream.push(np.zeros(SAMPLE_RATE, np.float32)) == []
        assert engine.drain(stream) == []
    assert len(stream.buffer) < 12 * SAMPLE_RATE
    assert len(stream.frames.marks) < 300


def test_more_than_the_backlog_is_reported_and_what_was_accepted_stays_whole() -> None:
    engine = Engine(PlantedModel())
    text = "KEEP ME "
    stream = engine.new_stream(StreamConfig.preset("balanced"))
    samples = np.tile(plant(text)[: HOP * 24], 600)
    gaps = stream.push(samples)
    assert len(gaps) == 1 and isinstance(gaps[0], Gap)
    accepted = stream.n_samples
    assert gaps[0].start_s == round(accepted / SAMPLE_RATE, 3)
    assert gaps[0].end_s == pytest.approx(len(samples) / SAMPLE_RATE, abs=2e-3)
    stream.finish()
    assert said(engine.drain(stream)).split().count("KEEP") >= accepted // (HOP * 24) - 1


def test_times_are_those_of_the_frames() -> None:
    events = run(Engine(PlantedModel()), plant("~HI ~YOU"), StreamConfig.preset("balanced"), [])
    hi, you = finals(events)[0].words[0], finals(events)[-1].words[-1]
    assert hi.start_s == 0.98  # a frame before its spike
    assert you.start_s == pytest.approx(2 + 8 * 0.02)
    assert hi.end_s < you.start_s < you.end_s


@pytest.mark.parametrize("surplus", [0, 100, HOP - 1])
@pytest.mark.parametrize("n_words", [3, 60])
def test_no_word_ends_after_what_was_heard(n_words: int, surplus: int) -> None:
    samples = np.pad(plant("WORD " * n_words + "LAST", gap=3)[: -HOP * 3], (0, surplus))
    for max_length in (120, 1000):
        engine, config = Engine(PlantedModel()), StreamConfig(endpoint=EndpointConfig(max_length=max_length))
        stream = engine.new_stream(config)
        for start in range(0, len(samples), 500):
            stream.push(samples[start : start + 500])
            for event in engine.drain(stream):
                assert max((word.end_s for word in event.words), default=0) <= stream.n_samples / SAMPLE_RATE
        stream.finish()
        last = engine.drain(stream)[-1].words[-1]
        assert last.start_s < last.end_s <= round(len(samples) / SAMPLE_RATE, 3) <= last.end_s + 0.02
        assert transcribe_offline(engine, samples)[-1].words[-1].end_s == last.end_s


def test_an_hour_does_not_drift() -> None:
    engine = Engine(PlantedModel())
    stream = engine.new_stream(StreamConfig(left=10, hop=47, right=6))
    unit = plant("TICK", tail=0)[: HOP * 12]
    second = np.concatenate([unit, np.zeros(SAMPLE_RATE * 6 - len(unit), np.float32)])
    starts = []
    for _ in range(600):
        stream.push(second)
        starts += [final.words[0].start_s for final in finals(engine.drain(stream))]
    assert starts == [0.0, *(round(6.0 * i - 0.02, 2) for i in range(1, len(starts)))]
    assert len(starts) >= 599


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.0, np.nan], np.float32), "nan at sample 1"),
        (np.zeros((2, 2), np.float32), r"\(2, 2\)"),
    ],
)
def test_bad_samples_are_named(samples: np.ndarray, message: str) -> None:
    stream = Stream(StreamConfig(), 5)
    with pytest.raises(ValueError, match=message):
        stream.push(samples)
    assert stream.n_samples == 0


def test_nothing_comes_after_the_end() -> None:
    stream = Stream(StreamConfig(), 5)
    stream.finish()
    with pytest.raises(ValueError, match="after finish"):
        stream.push(np.zeros(1, np.float32))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="hop must be at least 1"):
        StreamConfig(hop=0)
    with pytest.raises(ValueError, match="low, balanced, accurate"):
        StreamConfig.preset("quick")
    with pytest.raises(ValueError, match="max_length"):
        EndpointConfig(after_speech=50, max_length=60)


def test_offline_says_the_same() -> None:
    engine = Engine(PlantedModel())
    samples = plant(TEXT)
    offline = transcribe_offline(engine, samples)
    assert " ".join(segment.text for segment in offline) == WORDS
    long = np.concatenate([plant("OVER AND OVER ")[: HOP * 42]] * 60)
    assert " ".join(s.text for s in transcribe_offline(engine, long)) == " ".join(["OVER AND OVER"] * 60)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), edge=st.integers(0, 6), jitter=st.integers(0, 2))
def test_steps_left_out_change_no_final(data: st.DataObject, edge: int, jitter: int) -> None:
    """Under load partials are left out at any time; the finals are the same, with their times and committed words."""
    samples = plant(TEXT, gap=data.draw(st.integers(2, 5)))
    config = StreamConfig(
        left=data.draw(st.integers(40, 150)),
        hop=data.draw(st.integers(5, 30)),
        right=data.draw(st.integers(0, 30)),
        commit_after=data.draw(st.sampled_from([0, 20, 1000])),
        steady=data.draw(st.booleans()),
        endpoint=EndpointConfig(
            after_speech=data.draw(st.integers(30, 90)), max_length=data.draw(st.integers(180, 400))
        ),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    flush_at = data.draw(st.integers(0, len(samples)))

    def events_with(share_left_out: float) -> tuple[list[Event], int]:
        model = PlantedModel(edge=edge, jitter=jitter)
        engine = Engine(model)
        stream = engine.new_stream(config)
        events: list[Event] = []
        for part in (samples[:flush_at], samples[flush_at:]):
            for start in range(0, len(part), 5000):
                stream.push(part[start : start + 5000])
                stream.shows_all = rng.random() >= share_left_out
                while stream.is_ready:
                    events += engine.step([stream])[0]
                    stream.shows_all = rng.random() >= share_left_out
                    stream.shows_newest = rng.random() < share_left_out
            stream.flush()
        stream.finish()
        return events + engine.drain(stream), len(model.lengths)

    everything, n = events_with(0.0)
    check_contract(everything)
    for share in (0.5, 1.0):
        some, fewer = events_with(share)
        check_contract(some)
        assert finals(some) == finals(everything)
        assert fewer <= n


@settings(deadline=None, max_examples=40)
@given(data=st.data(), edge=st.integers(0, 6), jitter=st.integers(0, 2))
def test_partials_shown_while_a_final_pass_runs_change_no_final(data: st.DataObject, edge: int, jitter: int) -> None:
    samples = plant(TEXT, gap=data.draw(st.integers(2, 5)))
    rules = EndpointConfig(after_speech=data.draw(st.integers(30, 90)), max_length=data.draw(st.integers(180, 400)))
    hop, right = data.draw(st.integers(5, 30)), data.draw(st.integers(0, 30))
    commit_after = data.draw(st.sampled_from([20, 1000]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))

    def events_with(is_apart: bool) -> list[Event]:
        engine = Engine(PlantedModel(edge=edge, jitter=jitter))
        stream = engine.new_stream(StreamConfig(hop=hop, right=right, commit_after=commit_after, endpoint=rules))
        events: list[Event] = []
        at = 0
        while at < len(samples) or not stream.is_finished:
            n = int(rng.integers(1, 20_000))
            stream.push(samples[at : at + n])
            at += n
            if at >= len(samples):
                stream.finish()
            while (task := stream.next_pass()) is not None:
                rows = engine.emit([(stream, task)])[0]
                if (
                    is_apart and task.cut is not None and not task.is_review and not task.is_barrier
                ):  # see `Job.goes_on`
                    for _ in range(int(rng.integers(0, 30))):
                        stream.shows_newest, stream.shows_all = rng.random() < 0.5, rng.random() < 0.5
                        if at < len(samples):
                            stream.push(samples[at : at + 4000])
                            at += 4000
                        if (step := stream.next_meanwhile()) is not None:
                            events += engine.apply(stream, step, engine.emit([(stream, step)])[0])
                    assert stream.next_pass() == task
                events += engine.apply(stream, task, rows)
        return events

    meanwhile, expected = events_with(True), events_with(False)
    check_contract(meanwhile)
    assert finals(meanwhile) == finals(expected)


def test_of_the_partials_that_are_late_the_newest_alone_is_shown() -> None:
    engine = Engine(PlantedModel())
    stream = engine.new_stream(StreamConfig(hop=20, right=10, endpoint=EndpointConfig(after_speech=100)))
    stream.push(plant("A STEADY FLOW OF WORDS")[: HOP * 30 + 80])
    engine.drain(stream)
    target = stream.target
    assert target >= 60
    stream.push(np.zeros(HOP * 35, np.float32))
    for shows_newest, stable in ((False, 40), (True, min(target, 40))):
        stream.shows_newest = shows_newest
        task = stream.next_pass()
        assert task is not None and stream.stable_after(task) == stable
    stream.push(np.zeros(HOP * 20, np.float32))
    task = stream.next_pass()
    assert task is not None and stream.stable_after(task) == min(target, 60)


def test_steps_left_out_save_half_of_the_windows() -> None:
    counts = []
    for shows_all in (True, False):
        model = PlantedModel()
        stream = Engine(model).new_stream(StreamConfig.preset("balanced"))
        stream.shows_all = shows_all
        engine = Engine(model)
        for _ in range(30):
            stream.push(plant("NO PAUSE HERE AT")[: HOP * 50])
            engine.drain(stream)
        counts.append(len(model.lengths))
    assert counts[1] <= 0.55 * counts[0]


def test_what_the_whole_has_heard_is_not_asked_again() -> None:
    """The longest pass misses a letter, and so hears a pause; the pass that should end there hears the letter."""
    parts = [plant(text, tail=n) for text, n in (("ONE TWO ", 28), ("X ", 28), ("THREE FOUR", 10))]
    samples = np.concatenate([part[: len(part) // HOP * HOP] for part in parts])
    x = len(parts[0]) // HOP
    windows: list[int] = []

    class Deaf(PlantedModel):
        def read(self, window: np.ndarray) -> np.ndarray:
            windows.append(len(window))
            if len(window) == len(samples):
                window = window.copy()
                window[HOP * x : HOP * (x + 1)] = 0
            return super().read(window)

    events = run(Engine(Deaf()), samples, StreamConfig.preset("balanced"), [])
    assert said(events) == "ONE TWO THREE FOUR"  # by the longest pass, after all
    assert windows.count(len(samples)) == 1
    assert any(HOP * x < n < len(samples) for n in windows[windows.index(len(samples)) :])
