"""The native protocol of `/v1/stream`: the shapes of its JSON messages, no state.

Client to server: `start`, `resume`, `flush`, `end`, and binary audio. Server to client: `ready`, `partial`,
`final`, `gap`, `lag`, `flushed`, `end`, `error`, and `ack` where `start` asked for `acks`: each second of audio, and
in answer to an empty binary message. Every server message also carries `seq`, which grows, and `audio_s`, the seconds
of audio accepted so far (the acknowledgement); with `split`, what belongs to one channel carries `channel`, from 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from core.audio import ENCODINGS, SAMPLE_RATE, frames_in
from core.beam import parse_hotwords
from core.captions import event_object
from core.endpoint import EndpointConfig
from core.transcript import Event
from core.windows import LATENCIES, StreamConfig
from streamer.hotwords import HotWords, bounded

Message = dict[str, object]

SAMPLE_RATES = (8_000, 48_000)  # Hz, lowest and highest
MAX_CHANNELS = 2
ENDPOINT_MS = (200, 10_000)  # shortest and longest pause that may end a segment; within words some are quiet for 100
SILENCE_MS = (500, 30_000)  # of silence that is let go of
SEGMENT_MS = (2_000, 30_000)  # shortest and longest segment that may be the longest
COMMIT_MS = (0, 60_000)
REFRESH_MS = (200, 60_000)


class ProtocolError(Exception):
    """The peer's fault. `code` is for programs, the text says what was found and what would be right."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Start:
    """What one session asks for; the defaults are the server's."""

    sample_rate: int = SAMPLE_RATE  # of the audio that comes, Hz
    encoding: str = "pcm_s16le"
    channels: int = 1  # interleaved; two are mixed
    split: bool = False  # transcribe each channel by itself: events carry `channel`
    latency: str = "balanced"
    model: str = ""  # empty: whatever the server has
    endpoint_ms: int = 1000  # a quiet pause of this length ends a segment
    silence_ms: int = 3000  # so much of it without a word is let go of
    max_segment_ms: int = 20_000  # a segment of this length is cut where it pauses longest
    commit_ms: int = COMMIT_MS[1]  # words are committed this long after their end, if not with their final before
    refresh_ms: int | None = None  # of what was heard before is computed again by each step; None: the latency's own
    steady: bool = False  # partials show a word only when it is known what follows it: later, but few change
    partials: bool = True  # whether partials are sent
    words: bool = True  # whether messages list words with times
    hotwords: HotWords = field(default=(), repr=False)  # words or phrases, and by how much they become likelier
    acks: bool = False  # whether accepted audio is acknowledged each second although there is nothing to say

    @property
    def n_streams(self) -> int:
        return self.channels if self.split else 1

    def config(self) -> StreamConfig:
        """The engine's settings for this session."""
        after, before, longest, commit = (
            frames_in(ms) for ms in (self.endpoint_ms, self.silence_ms, self.max_segment_ms, self.commit_ms)
        )
        rules = EndpointConfig(after_speech=after, before_speech=before, max_length=longest)
        config = StreamConfig.preset(self.latency, endpoint=rules, commit_after=commit, steady=self.steady)
        return config if self.refresh_ms is None else replace(config, refresh=frames_in(self.refresh_ms))


@dataclass(frozen=True, slots=True)
class Resume:
    """The wish to go on with a session after its connection broke."""

    session: str
    seq: int  # of the last message that the client saw


@dataclass(frozen=True, slots=True)
class Flush:
    pass


@dataclass(frozen=True, slots=True)
class End:
    pass


ClientMessage = Start | Resume | Flush | End
OPTIONS = tuple(one.name for one in fields(Start))


def parse(text: str, defaults: Start, models: Sequence[str] = ()) -> ClientMessage:
    """A text message of a client.

    Args:
        models: that may be asked for besides the default.

    Raises:
        ProtocolError: it is not JSON, or not one of the messages.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ProtocolError("bad_json", f"Expected a JSON object. Found text that is not JSON: {e}") from e
    if not isinstance(message, dict):
        raise ProtocolError("bad_json", f"Expected a JSON object. Found: {type(message).__name__}")
    kind = message.pop("type", None)
    if kind == "start":
        return parse_start(message, defaults, models)
    if kind == "resume":
        session, seq = message.get("session"), message.get("seq")
        if not isinstance(session, str) or not isinstance(seq, int) or isinstance(seq, bool) or seq < 0:
            raise ProtocolError(
                "bad_resume", f"resume needs session (text) and seq (0 or more). Found: {shown(session)}, {shown(seq)}"
            )
        return Resume(session, seq)
    if kind == "flush":
        return Flush()
    if kind == "end":
        return End()
    raise ProtocolError("unknown_type", f"Expected a type of start, resume, flush or end. Found: {shown(kind)}")


def parse_start(options: Mapping[str, object], defaults: Start, models: Sequence[str] = ()) -> Start:
    """The options of a `start` message or of a query string (whose values are all text).

    Raises:
        ProtocolError: an option is unknown or impossible.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ProtocolError("unknown_option", f"Expected options of {', '.join(OPTIONS)}. Found: {shown(unknown[0])}")
    start = replace(
        defaults,
        sample_rate=_integer(options, "sample_rate", defaults.sample_rate, *SAMPLE_RATES),
        channels=_integer(options, "channels", defaults.channels, 1, MAX_CHANNELS),
        endpoint_ms=_integer(options, "endpoint_ms", defaults.endpoint_ms, *ENDPOINT_MS),
        silence_ms=_integer(options, "silence_ms", defaults.silence_ms, *SILENCE_MS),
        max_segment_ms=_integer(options, "max_segment_ms", defaults.max_segment_ms, *SEGMENT_MS),
        commit_ms=_integer(options, "commit_ms", defaults.commit_ms, *COMMIT_MS),
        refresh_ms=(
            defaults.refresh_ms
            if options.get("refresh_ms") is None
            else _integer(options, "refresh_ms", REFRESH_MS[1], *REFRESH_MS)
        ),
        encoding=_choice(options, "encoding", defaults.encoding, tuple(ENCODINGS)),
        latency=_choice(options, "latency", defaults.latency, LATENCIES),
        model=_choice(options, "model", defaults.model, tuple(dict.fromkeys((defaults.model, *models)))),
        partials=_flag(options, "partials", defaults.partials),
        steady=_flag(options, "steady", defaults.steady),
        words=_flag(options, "words", defaults.words),
        acks=_flag(options, "acks", defaults.acks),
        split=_flag(options, "split", defaults.split),
        hotwords=_hotwords(options, defaults.hotwords),
    )
    if start.split and start.channels == 1:
        raise ProtocolError("bad_option", "split needs channels: 2. Found: 1")
    if start.max_segment_ms < 2 * start.endpoint_ms:
        raise ProtocolError(
            "bad_option",
            f"max_segment_ms must be at least twice endpoint_ms. Found: {start.max_segment_ms} and {start.endpoint_ms}",
        )
    return start


def shown(value: object) -> str:
    """A peer's value as it may appear in a message: never long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_json(message: object) -> str:
    """A message as text. Half a surrogate pair, which JSON can name and UTF-8 cannot write, stays an escape."""
    return json.dumps(message, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _integer(options: Mapping[str, object], name: str, default: int, least: int, most: int) -> int:
    value = options.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError(
            "bad_option", f"{name} must be a whole number from {least} to {most}. Found: {shown(value)}"
        )
    return value


def _choice(options: Mapping[str, object], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = options.get(name, default)
    if not isinstance(value, str) or value not in allowed:
        raise ProtocolError("bad_option", f"{name} must be one of {', '.join(allowed)}. Found: {shown(value)}")
    return value


def _flag(options: Mapping[str, object], name: str, default: bool) -> bool:
    value = options.get(name, default)
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise ProtocolError("bad_option", f"{name} must be true or false. Found: {shown(value)}")
    return value


def _hotwords(options: Mapping[str, object], default: HotWords) -> HotWords:
    """A list of `word` and `word:weight`; in a query separated by commas."""
    value = options.get("hotwords")
    if value is None:
        return default
    lines = value.split(",") if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ProtocolError("bad_option", f"hotwords must be a list of words. Found: {type(value).__name__}")
    try:
        return bounded(parse_hotwords(lines).items())
    except ValueError as e:
        raise ProtocolError("bad_option", str(e)) from e


def event_message(event: Event, with_words: bool) -> Message:
    """A `partial`, `final` or `gap`: the line that `--format jsonl` prints for it."""
    message: Message = event_object(event, 0.0)
    if not with_words:
        message.pop("words", None)
    return message


def error_message(code: str, message: str) -> Message:
    return {"type": "error", "code": code, "message": message}
