"""Whatever clients of the other protocols send, and whenever the engine speaks: nothing escapes, nothing piles up."""

import base64
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from core.transcript import Gap, Transcript, Word
from streamer.dialect import Dialect
from streamer.job import Command, Finished, Flushed, Progress, Widened
from streamer.protocols.deepgram import QueryError, parse
from streamer.protocols.deepgram_session import Deepgram
from streamer.protocols.native import Start
from streamer.protocols.openai_realtime import Realtime
from streamer.protocols.vosk import Vosk
from streamer.protocols.wyoming import Told, Wyoming
from streamer.session import SessionLimits

LIMITS = SessionLimits(unsent=20, audio_s=5.0)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("caf\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
DEEPGRAM = st.fixed_dictionaries(
    {"type": st.sampled_from(["KeepAlive", "Finalize", "CloseStream", "Configure"]) | VALUES},
    optional={"channel": VALUES, "keyterms": VALUES},
)
CONFIG = st.dictionaries(
    st.sampled_from(["sample_rate", "words", "phrase_list", "max_alternatives", "model"]), VALUES, max_size=4
)
VOSK = st.fixed_dictionaries({}, optional={"config": CONFIG | VALUES, "eof": VALUES, "reset": VALUES})
TEXTS = st.one_of(st.text(max_size=20), DEEPGRAM.map(json.dumps), VOSK.map(json.dumps), VALUES.map(json.dumps))
NAMES = ["type", "rate", "width", "channels", "name", "language", "transcript_names", "transcript_terms", "text"]
EVENTS = st.builds(
    lambda kind, data, payload: Told(kind, data, payload).encode(),
    st.sampled_from(["describe", "transcribe", "audio-start", "audio-chunk", "audio-stop", "ping", "x"]),
    st.dictionaries(st.sampled_from(NAMES), VALUES | st.sampled_from([1, 2, 16000, ["a"]]), max_size=4)
    | st.just({"rate": 16000, "width": 2, "channels": 1}),
    st.binary(max_size=700),
)
BYTES = st.binary(max_size=700) | EVENTS
DETECTION = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["server_vad", "semantic_vad"]) | VALUES,
        "eagerness": st.sampled_from(["low", "auto"]) | VALUES,
        "prefix_padding_ms": VALUES,
        "silence_duration_ms": VALUES,
    },
)
SPOKEN = VALUES | st.dictionaries(st.sampled_from(["model", "language", "delay", "keywords", "prompt"]), VALUES)
FORMAT = VALUES | st.fixed_dictionaries(
    {"type": st.sampled_from(["audio/pcm", "audio/pcmu"]) | VALUES},
    optional={"rate": st.sampled_from([24000, 16000]) | VALUES},
)
INPUT = st.fixed_dictionaries({}, optional={"turn_detection": DETECTION, "transcription": SPOKEN, "format": FORMAT})
REALTIME = st.one_of(
    st.builds(lambda given: {"type": "session.update", "session": {"audio": {"input": given}}}, INPUT),
    st.builds(
        lambda detection, said, event_id: {
            "type": "transcription_session.update",
            "session": {"turn_detection": detection, "input_audio_transcription": said},
            "event_id": event_id,
        },
        DETECTION,
        SPOKEN,
        VALUES,
    ),
    st.binary(max_size=9000).map(
        lambda data: {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}
    ),
    st.sampled_from(["input_audio_buffer.commit", "input_audio_buffer.clear"]).map(lambda kind: {"type": kind}),
    st.builds(lambda kind, audio: {"type": kind, "audio": audio}, VALUES, VALUES),
    VALUES,
).map(json.dumps)
WORD = Word("A", 0.1, 0.2, 0.5, True)
SAID = st.one_of(
    st.builds(lambda i, is_final: Transcript(i, is_final, "A", 0, 0.0, 0.2, (WORD,)), st.integers(0, 3), st.booleans()),
    st.builds(lambda i, is_final: Transcript(i, is_final, "", 0, 0.0, 0.2, ()), st.integers(0, 3), st.booleans()),
    st.just(Gap(0.0, 1.0, "x")),
    st.builds(Progress, st.integers(0, 1000)),
    st.builds(Widened, st.booleans()),
)
STEPS = st.lists(st.one_of(TEXTS, BYTES, SAID, st.just(None)), max_size=30)


def live(session: Dialect, steps: list[object]) -> None:
    """One conversation, with an engine that answers each command sooner or later, in order."""
    owed: list[object] = []
    opening = session.opening

    def heed(items: list[object]) -> None:
        nonlocal opening
        if session.opening is not opening:
            opening = session.opening
            owed.clear()
        owed.extend(Flushed() if item is Command.FLUSH else Finished() for item in items if isinstance(item, Command))

    def answer_all() -> None:
        while owed:
            heed(session.deliver([owed.pop(0)]))  # type: ignore[arg-type, list-item]

    def read_all() -> None:
        while (frame := session.next_frame()) is not None:
            assert isinstance(frame, bytes) or frame.encode()

    for step in steps:
        if session.is_over:
            break
        if isinstance(step, str | bytes) and session.is_behind:  # the hub waits, too
            read_all()
            answer_all()
        if isinstance(step, bytes):
            heed(session.receive_bytes(step))  # type: ignore[arg-type]
        elif isinstance(step, str):
            heed(session.receive_text(step))  # type: ignore[arg-type]
        elif step is None:
            answer_all()
        elif session.opening is not None:
            heed(session.deliver([step]))  # type: ignore[arg-type, list-item]
        if not session.is_behind:
            read_all()
    heed(session.shut_down())  # type: ignore[arg-type]
    answer_all()
    read_all()
    session.release()
    assert session.is_over


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from(["linear16", "mulaw"]), st.booleans())
def test_deepgram(steps: list[object], encoding: str, shows_all: bool) -> None:
    query = [("encoding", encoding), ("sample_rate", "8000"), ("channels", "2")]
    query += [("interim_results", "true"), ("utterance_end_ms", "1000"), ("vad_events", "true")] if shows_all else []
    live(Deepgram("id", parse(query, Start(model="m")), "2026-01-01T00:00:00.000Z", LIMITS), steps)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_vosk(steps: list[object]) -> None:
    live(Vosk("id", Start(model="m"), ("m",), LIMITS), steps)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(EVENTS, BYTES, SAID, st.just(None)), max_size=30))
def test_wyoming(steps: list[object]) -> None:
    live(Wyoming("id", Start(model="m"), {"m": "en"}, LIMITS), steps)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(REALTIME, TEXTS, SAID, st.just(None)), max_size=30), st.booleans())
def test_realtime(steps: list[object], is_beta: bool) -> None:
    live(Realtime("id", Start(model="m"), ("m",), "", is_beta, LIMITS), steps)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                "model encoding sample_rate channels multichannel interim_results endpointing utterance_end_ms "
                "vad_events keywords keyterm punctuate".split()
            ),
            st.text(max_size=8) | st.sampled_from(["true", "linear16", "8000", "2", "a:1", "a:nan", "a:1e999"]),
        ),
        max_size=8,
    )
)
def test_queries(query: list[tuple[str, str]]) -> None:
    try:
        parse(query, Start(model="m"), ("m",))
    except QueryError as e:
        assert len(str(e)) < 300
