"""The native session without any socket: messages in, messages out."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import PlantedModel, plant

from core.audio import ENCODINGS, encode_pcm16
from core.engine import Engine
from core.transcript import Event, Gap, Transcript, Word
from core.windows import StreamConfig
from streamer.job import Command, Failed, Finished, Flushed, Progress, Widened
from streamer.protocols.native import ProtocolError, Start, parse, parse_start
from streamer.scheduler import Scheduler
from streamer.session import Session, SessionLimits

LIMITS = SessionLimits(backlog_s=1.0, lag_s=0.5, unsent=8, replay=8)


def said(session: Session) -> list[dict[str, object]]:
    messages = []
    while (message := session.next_message()) is not None:
        messages.append(message)
    return messages


def opened(limits: SessionLimits = LIMITS, **options: object) -> Session:
    session = Session("id", parse_start(options, Start()), limits)
    assert [message["type"] for message in said(session)] == ["ready"]
    return session


def transcript(segment: int, text: str, is_final: bool) -> Transcript:
    word = Word(text, 0.0, 0.5, 0.9, is_final)
    return Transcript(segment, is_final, text, int(is_final), 0.0, 0.5, (word,))


def kinds(session: Session) -> list[object]:
    return [message["type"] for message in said(session)]


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ("{", "bad_json", "JSON"),
        ("[1]", "bad_json", "list"),
        ("[" * 100_000, "bad_json", "JSON"),
        ('{"type": "stop"}', "unknown_type", "start, resume, flush or end. Found: 'stop'"),
        ('{"type": "start", "rate": 8000}', "unknown_option", "sample_rate"),
        ('{"type": "start", "sample_rate": 7999}', "bad_option", "8000 to 48000. Found: 7999"),
        ('{"type": "start", "sample_rate": true}', "bad_option", "Found: True"),
        ('{"type": "start", "encoding": "mp3"}', "bad_option", "pcm_s16le, pcm_f32le, mulaw, alaw. Found: 'mp3'"),
        ('{"type": "start", "encoding": {}}', "bad_option", "Found: {}"),
        ('{"type": "start", "channels": 3}', "bad_option", "1 to 2"),
        ('{"type": "start", "latency": "fast"}', "bad_option", "low, balanced, accurate"),
        ('{"type": "start", "words": "perhaps"}', "bad_option", "true or false"),
        ('{"type": "start", "commit_ms": -1}', "bad_option", "0 to 60000. Found: -1"),
        ('{"type": "start", "silence_ms": 1}', "bad_option", "500 to 30000. Found: 1"),
        ('{"type": "start", "max_segment_ms": 9000, "endpoint_ms": 5000}', "bad_option", "twice endpoint_ms"),
        ('{"type": "resume", "session": 1, "seq": 0}', "bad_resume", "session"),
        ('{"type": "resume", "session": "a", "seq": -1}', "bad_resume", "seq"),
    ],
)
def test_errors_name_what_was_found_and_what_would_be_right(text: str, code: str, names: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(text, Start())
    assert caught.value.code == code
    assert names in str(caught.value)


def test_query_options_are_text() -> None:
    options = {"sample_rate": "8000", "encoding": "mulaw", "channels": "2", "partials": "false"}
    assert parse_start(options, Start()) == Start(sample_rate=8000, encoding="mulaw", channels=2, partials=False)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_messages_may_end_anywhere(encoding: str, sample_rate: int, channels: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(-0.5, 0.5, 3000 * channels).astype(np.float32)
    data = {
        "pcm_s16le": lambda: encode_pcm16(values),
        "pcm_f32le": lambda: values.tobytes(),
    }.get(encoding, lambda: rng.integers(0, 256, len(values), dtype=np.uint8).tobytes())()

    def samples(cuts: list[int]) -> np.ndarray:
        session = opened(encoding=encoding, sample_rate=sample_rate, channels=channels)
        items = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            items += session.receive_bytes(data[start:end])
        items += session.receive_text('{"type": "end"}')
        assert items.pop() is Command.FINISH
        assert session.intake.n_frames == 3000
        assert round(session.intake.accepted_s * sample_rate) == 3000
        return np.concatenate([item for item in items if not isinstance(item, Command)])

    whole = samples([])
    assert abs(len(whole) - 3000 * 16000 / sample_rate) <= 1
    np.testing.assert_array_equal(samples(sorted(rng.integers(0, len(data), 40).tolist())), whole)
    np.testing.assert_array_equal(samples(list(range(1, 999))), whole)


def test_numbers_that_are_no_audio_are_silence_and_told() -> None:
    session = opened(encoding="pcm_f32le")
    bad = np.array([0.5, np.nan, 0.25, np.inf, 12000.0, 0.125], np.float32)
    (samples,) = session.receive_bytes(bad.tobytes())
    np.testing.assert_array_equal(samples, np.float32([0.5, 0, 0.25, 0, 0, 0.125]))
    gap, error = said(session)
    assert (gap["type"], gap["start_s"], gap["end_s"]) == ("gap", 0.0, 0.0)
    assert error["code"] == "bad_samples"
    assert "[-1, 1], found nan" in str(error["message"])


def test_unread_partials_make_way_and_finals_stay() -> None:
    session = opened()
    for n in range(5):
        session.deliver([transcript(0, f"P{n}", False)])
    session.deliver([transcript(0, "F0", True), transcript(1, "Q0", False)])
    session.deliver([transcript(1, "F1", True), transcript(2, "R0", False), transcript(2, "R1", False)])
    messages = said(session)
    assert [message["text"] for message in messages] == ["F0", "F1", "R1"]
    seqs = [message["seq"] for message in messages]
    assert seqs == sorted(set(seqs))


def test_flush_end_and_what_comes_after() -> None:
    session = opened()
    assert session.receive_text('{"type": "flush"}') == [Command.FLUSH]
    session.deliver([transcript(0, "A", True), Flushed()])
    assert session.receive_text('{"type": "end"}') == [Command.FINISH]
    assert session.receive_text('{"type": "end"}') == []
    assert session.receive_bytes(b"\0\0") == []
    assert session.receive_text('{"type": "flush"}') == []
    assert session.receive_text('{"type": "start"}') == []
    session.deliver([Finished()])
    assert not session.is_over
    assert kinds(session) == ["final", "flushed", "error", "error", "end"]
    assert session.is_over
    assert session.close == (1000, "")


def test_failure_closes_with_an_error_after_the_finals() -> None:
    session = opened()
    session.deliver([transcript(0, "A", True), Failed("internal", "broken")])
    assert kinds(session) == ["final", "error"]
    assert session.close == (1011, "internal")
    assert session.is_over


def test_behind_and_lag() -> None:
    session = opened()
    second = bytes(2 * 16000)
    for _ in range(3):
        session.receive_bytes(second)
    assert session.is_behind
    session.deliver([Progress(3 * 16000 - 25 * 320)])
    assert not session.is_behind
    lags = [message["lag_s"] for message in said(session)]
    assert lags == [0.0]  # unread lags make way, too
    session.receive_bytes(second)
    session.receive_bytes(second)
    assert [message["lag_s"] for message in said(session)] == [pytest.approx(1.5)]


def test_a_reader_that_stalls_stops_its_own_audio_only() -> None:
    session = opened()
    for n in range(9):
        session.deliver([transcript(n, "F", True)])
    assert session.is_behind
    assert len(said(session)) == 9
    assert not session.is_behind


def test_steps_left_out_are_no_lag() -> None:
    session = opened(endpoint_ms=5000)
    session.receive_bytes(bytes(2 * 16000 * 2))
    session.deliver([Progress(0)])
    assert session.backlog_s == 1.0
    session.deliver([Widened(True)])
    assert session.backlog_s == 0.0
    assert [(m["type"], m["widened"]) for m in said(session)] == [("lag", True)]
    session.deliver([Widened(True), Widened(False)])
    assert [(m["type"], m["widened"]) for m in said(session)] == [("lag", False)]


def test_a_session_sets_its_own_pauses_lengths_and_commits() -> None:
    start = parse_start({"endpoint_ms": 400, "silence_ms": "1000", "max_segment_ms": 4000, "commit_ms": 600}, Start())
    rules = start.config().endpoint
    assert (rules.after_speech, rules.before_speech, rules.max_length) == (20, 50, 200)
    assert Start().config() == StreamConfig.preset("balanced", commit_after=3000)
    assert parse_start({"steady": "true"}, Start()).config().steady

    def committed_before_the_final(start: Start) -> int:
        engine = Engine(PlantedModel())  # type: ignore[arg-type]
        stream = engine.new_stream(start.config())
        stream.push(plant(" ".join(3 * letter for letter in 2 * "ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "~~~~~"))
        events = engine.drain(stream)
        partials = [event for event in events if isinstance(event, Transcript) and not event.is_final]
        counts = [event.n_committed_words for event in partials if event.segment == 0]
        assert counts == sorted(counts)
        return counts[-1]

    assert committed_before_the_final(Start()) == 0
    assert committed_before_the_final(replace(start, endpoint_ms=1000, max_segment_ms=20000)) >= 2


def test_acks_where_asked_for() -> None:
    quiet, acked = opened(), opened(acks=True)
    for session in (quiet, acked):
        for _ in range(25):
            session.receive_bytes(bytes(3200))
            session.deliver([Progress(session.n_pushed)])
    assert said(quiet) == []
    assert [(message["type"], message["audio_s"]) for message in said(acked)] == [("ack", 2.0)]
    for session in (quiet, acked, acked):  # an empty message asks, and is answered where there is something new
        session.receive_bytes(b"")
    assert said(quiet) == []
    assert [(message["type"], message["audio_s"]) for message in said(acked)] == [("ack", 2.5)]


def test_resume_repeats_what_was_missed_and_says_what_was_accepted() -> None:
    session = opened()
    session.receive_bytes(bytes(3201))  # half a sample is left; the client sends it again
    session.deliver([transcript(0, "A", True), transcript(1, "B", True)])
    first, second = said(session)
    session.deliver([transcript(2, "C", False), transcript(2, "C", True)])
    seq = first["seq"]
    assert isinstance(seq, int)
    session.resume(seq)
    ready, *rest = said(session)
    assert (ready["type"], ready["samples"], ready["audio_s"], ready["seq"]) == ("ready", 1600, 0.1, seq)
    assert rest[0] == second
    assert [message["text"] for message in rest] == ["B", "C"]
    session.receive_bytes(b"\1\0")
    assert session.intake.n_frames == 1601
    with pytest.raises(ProtocolError, match="at most"):
        session.resume(session.seq + 1)


def test_replay_is_bounded_and_says_so() -> None:
    session = opened()
    for n in range(20):
        session.deliver([transcript(n, "F", True)])
        said(session)
    assert len(session.sent) == LIMITS.replay
    with pytest.raises(ProtocolError, match="no longer kept"):
        session.resume(2)
    session.resume(session.seq - LIMITS.replay)
    assert len(said(session)) == 1 + LIMITS.replay


def test_a_session_has_an_end() -> None:
    session = opened(SessionLimits(audio_s=1.0))
    items = session.receive_bytes(bytes(2 * 16000))
    assert items[-1] is Command.FINISH
    assert [message["code"] for message in said(session)] == ["session_limit"]


MESSAGES = st.one_of(
    st.binary(max_size=50),
    st.text(max_size=30),
    st.sampled_from(
        ['{"type":"flush"}', '{"type":"end"}', '{"type":"start"}', '{"type":"resume"}', "{}", "null", "1e999"]
    ),
    st.dictionaries(
        st.sampled_from(["type", "seq", "session", "sample_rate"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers())),
    ).map(json.dumps),
)
EVENTS = st.one_of(
    st.builds(transcript, st.integers(0, 3), st.text(max_size=3), st.booleans()),
    st.just(Gap(0.0, 1.0, "x")),
    st.just(Flushed()),
    st.builds(Progress, st.integers(0, 1000)),
    st.integers(0, 30),  # a resume from there
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(ENCODINGS)), st.sampled_from([8000, 16000]), st.lists(st.one_of(MESSAGES, EVENTS), max_size=40)
)
def test_nothing_that_a_client_sends_escapes(encoding: str, rate: int, messages: list[object]) -> None:
    session = opened(encoding=encoding, sample_rate=rate)
    last = session.seq
    for message in messages:
        if isinstance(message, bytes):
            session.receive_bytes(message)
        elif isinstance(message, str):
            session.receive_text(message)
        elif isinstance(message, int):
            try:
                session.resume(message)
                last = message
            except ProtocolError:
                pass
        else:
            session.deliver([message])  # type: ignore[list-item]
        if not session.is_behind:
            for out in said(session):
                json.dumps(out)
                seq = out["seq"]
                assert isinstance(seq, int)
                assert seq > last or out["type"] == "ready"
                last = seq
        assert len(session.sent) <= LIMITS.replay


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ten_thousand_messages_leave_nothing_behind(seed: int) -> None:
    """Whatever comes, what a session keeps stays bounded, and every message it says can be sent."""
    rng = np.random.default_rng(seed)
    session, n_sessions = opened(acks=True), 1
    for _ in range(10_000):
        kind = rng.integers(12)
        if kind < 5:
            session.receive_bytes(rng.bytes(int(rng.integers(400))))
        elif kind == 5:
            session.receive_text(rng.bytes(int(rng.integers(40))).decode("latin-1"))
        elif kind == 6:
            session.receive_text(str(rng.choice(['{"type":"flush"}', '{"type":"start"}', "[]", '{"type":1}'])))
        elif kind == 7:
            session.deliver([transcript(int(rng.integers(9)), "WORD", bool(rng.integers(2)))])
        elif kind == 8:
            session.deliver([Progress(session.n_pushed), Flushed(), Widened(bool(rng.integers(2)))])
        elif kind == 9:
            with contextlib.suppress(ProtocolError):
                session.resume(int(rng.integers(session.seq + 3)))
        elif kind == 10 and rng.random() < 0.01:
            session.receive_text('{"type":"end"}')
            session.deliver([Finished()])
        if not session.is_behind or rng.random() < 0.1:
            json.dumps(said(session))
        if session.is_over:
            session, n_sessions = opened(acks=True), n_sessions + 1
        assert len(session.sent) <= LIMITS.replay
        assert len(session.unsent) <= LIMITS.unsent + 20
        assert len(session.intake.rest) < 2
    assert n_sessions > 1


def words_of(events: list[Event] | list[dict[str, object]]) -> list[str]:
    return [str(event["text"]) for event in events if isinstance(event, dict) and event["type"] == "final"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40_000), max_size=8), st.integers(0, 2**32 - 1))
def test_finals_never_depend_on_packets(cuts: list[int], seed: int) -> None:
    data = encode_pcm16(plant("HELLO WORLD~~ONCE MORE~"))

    def run(cuts: list[int]) -> list[dict[str, object]]:
        scheduler = Scheduler(Engine(PlantedModel()))  # type: ignore[arg-type]
        session = opened(SessionLimits())
        job = scheduler.open(session.config, session.deliver)
        rng = np.random.default_rng(seed)
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            scheduler.submit(job, session.receive_bytes(data[start:end]))
            for _ in range(int(rng.integers(3))):
                scheduler.run_once()
        scheduler.submit(job, session.receive_text('{"type":"end"}'))
        while scheduler.active:
            scheduler.run_once()
        return [m for m in said(session) if m["type"] in ("final", "end")]

    cuts = sorted(min(cut, len(data)) for cut in cuts)
    strip = [{**m, "seq": 0, "audio_s": 0} for m in run(cuts)]
    assert strip == [{**m, "seq": 0, "audio_s": 0} for m in run([])]
    assert words_of(strip) == ["HELLO WORLD", "ONCE MORE"]
