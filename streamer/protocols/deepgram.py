"""Deepgram's live protocol of `/v1/listen`: what its query says, and the shapes of its messages. No state.

Source: Deepgram's documentation of the streaming API, and its SDKs 3.11 and 7.17 for what clients read of it.
Unknown parameters are ignored, as clients send many. Any name of a model is taken; of other models than the
server's it means the default.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clients.container import can_decode
from core.audio import HOP, SAMPLE_RATE
from core.beam import HOTWORD_WEIGHT
from core.transcript import Word
from core.windows import StreamConfig
from streamer import __version__
from streamer.hotwords import HotWords, bounded
from streamer.protocols.native import ENDPOINT_MS, MAX_CHANNELS, SAMPLE_RATES, Message, Start, shown

ENCODINGS = {"linear16": "pcm_s16le", "linear32": "pcm_f32le", "mulaw": "mulaw", "alaw": "alaw"}
CONTAINERS = ("ogg-opus", "flac")  # encodings whose bytes tell all about themselves
SHORTEST_PAUSE_MS = 300  # within words there are quiet moments of less: no shorter pause ends an utterance
LEAST_UTTERANCE_END_MS = 1000
UNDECODABLE = (1008, "DATA-0000")  # close codes and reasons
NO_AUDIO = (
    1011,
    "Deepgram did not receive audio data or a text message within the timeout window. See https://dpgr.am/net0001",
)
IDLE_S = 10.0
BOOST = re.compile(r"-?[0-9]{1,4}(\.[0-9]{0,9})?")
ERROR_CODES = {
    400: "INVALID_QUERY_PARAMETER",
    401: "INVALID_AUTH",
    403: "INSUFFICIENT_PERMISSIONS",
    503: "TOO_MANY_REQUESTS",
}


class QueryError(Exception):
    """A parameter that cannot be served; the message is for its client."""


@dataclass(frozen=True, slots=True)
class Listen:
    """What one connection asks for."""

    start: Start
    is_container: bool = False  # the audio's bytes tell its format
    interim_results: bool = False
    ends_by_silence: bool = True  # whether a pause sets `speech_final`
    utterance_end_ms: int | None = None
    vad_events: bool = False
    punctuates: bool = False  # whether words carry `punctuated_word`

    def config(self) -> StreamConfig:
        """A pause of `utterance_end_ms` ends a segment however loud it is: that event looks at words alone."""
        config = self.start.config()
        if self.utterance_end_ms is None:
            return config
        frames = self.utterance_end_ms * SAMPLE_RATE // 1000 // HOP
        after = min(config.endpoint.after_speech, frames)
        loud = max(1, min(config.endpoint.loud_factor, frames // after))
        return replace(config, endpoint=replace(config.endpoint, after_speech=after, loud_factor=loud))


def parse(query: Iterable[tuple[str, str]], defaults: Start, models: Sequence[str] = ()) -> Listen:
    """The parameters of the query string.

    Raises:
        QueryError: a parameter that is served has an impossible value.
    """
    query = [(name.lower(), value) for name, value in query]
    given: dict[str, str] = {}
    for name, value in query:
        given.setdefault(name, value)
    encoding = given.get("encoding", "").lower()
    is_container = encoding in ("", *CONTAINERS)
    if not is_container and encoding not in ENCODINGS:
        served = ", ".join((*ENCODINGS, *CONTAINERS))
        raise QueryError(f"encoding must be one of {served}, or absent for containers. Found: {shown(encoding)}")
    if not is_container and "sample_rate" not in given:
        raise QueryError(f"sample_rate is missing; encoding {encoding} needs it")
    if is_container and not can_decode():
        raw = "send encoding=linear16&sample_rate=..., or install streamer[media]"
        raise QueryError(f"this server reads no containers; {raw}")
    splits = flag(given, "multichannel")
    channels = 1 if is_container else integer(given, "channels", 1, 1, MAX_CHANNELS)
    endpoint_ms, ends_by_silence = pause(given, defaults.endpoint_ms)
    interim_results = flag(given, "interim_results")
    utterance_end = given.get("utterance_end_ms", "").lower() not in ("", "false")
    if utterance_end and not interim_results:
        raise QueryError("utterance_end_ms needs interim_results=true")
    start = replace(
        defaults,
        sample_rate=SAMPLE_RATE if is_container else integer(given, "sample_rate", SAMPLE_RATE, *SAMPLE_RATES),
        encoding=ENCODINGS.get(encoding, "pcm_f32le"),
        channels=channels,
        split=splits and channels > 1,
        model=given["model"] if given.get("model") in models else defaults.model,
        endpoint_ms=endpoint_ms,
        partials=interim_results,
        hotwords=hot_words(query),
    )
    return Listen(
        start,
        is_container,
        interim_results,
        ends_by_silence,
        integer(given, "utterance_end_ms", 0, LEAST_UTTERANCE_END_MS, ENDPOINT_MS[1]) if utterance_end else None,
        flag(given, "vad_events"),
        flag(given, "punctuate") or flag(given, "smart_format"),
    )


def hot_words(query: Iterable[tuple[str, str]]) -> HotWords:
    """`keyterm=PHRASE` and `keywords=WORD` or `WORD:BOOST`, without which a boost of 1 is meant: the usual weight."""
    words = []
    for name, value in query:
        if name == "keyterm":
            words.append((value, HOTWORD_WEIGHT))
        elif name == "keywords":
            word, _, boost = value.rpartition(":") if ":" in value else (value, "", "1")
            if not BOOST.fullmatch(boost):
                raise QueryError(f"keywords must be WORD or WORD:BOOST. Found a boost of {shown(boost)}")
            more = float(boost) - 1
            words.append((word, HOTWORD_WEIGHT + more if more > 0 else HOTWORD_WEIGHT * (1 + more)))
    try:
        return bounded(words)
    except ValueError as e:
        raise QueryError(str(e)) from e


def pause(given: Mapping[str, str], default_ms: int) -> tuple[int, bool]:
    """The pause that ends a segment, and whether it counts as the end of an utterance."""
    value = given.get("endpointing", "true").lower()
    if value in ("true", "false"):
        return default_ms, value == "true"
    asked_ms = integer(given, "endpointing", default_ms, 0, 1 << 31)
    return min(max(asked_ms, SHORTEST_PAUSE_MS), ENDPOINT_MS[1]), True


def flag(given: Mapping[str, str], name: str) -> bool:
    value = given.get(name, "false").lower()
    if value not in ("true", "false"):
        raise QueryError(f"{name} must be true or false. Found: {shown(value)}")
    return value == "true"


def integer(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 12 and least <= int(value) <= most):
        raise QueryError(f"{name} must be a whole number from {least} to {most}. Found: {shown(value)}")
    return int(value)


def refusal(status: int, message: str, request_id: str) -> Message:
    """The body of an answer that refuses the websocket."""
    if status == 400:
        message = f"Failed to deserialize query parameters: {message}"
    return {"err_code": ERROR_CODES[status], "err_msg": message, "request_id": request_id}


def model_uuid(model: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, model))


def model_info(model: str) -> Message:
    return {"name": model, "version": __version__, "arch": "wav2vec2"}


@dataclass(frozen=True, slots=True)
class Span:
    """What one `Results` message says of the audio of one channel from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()
    is_final: bool = True
    speech_final: bool = False
    from_finalize: bool = False


def results(span: Span, channel: int, listen: Listen, request_id: str) -> Message:
    model = listen.start.model
    return {
        "type": "Results",
        "channel_index": [channel, listen.start.n_streams],
        "duration": round(span.end_s - span.start_s, 3),
        "start": round(span.start_s, 3),
        "is_final": span.is_final,
        "speech_final": span.speech_final,
        "channel": {"alternatives": [alternative(span.words, listen.punctuates)]},
        "metadata": {"request_id": request_id, "model_info": model_info(model), "model_uuid": model_uuid(model)},
        "from_finalize": span.from_finalize,
    }


def alternative(words: Sequence[Word], punctuates: bool) -> Message:
    confidence = sum(word.confidence for word in words) / len(words) if words else 0.0
    return {
        "transcript": " ".join(word.text for word in words),
        "confidence": round(confidence, 6),
        "words": [
            {
                "word": word.text,
                "start": word.start_s,
                "end": word.end_s,
                "confidence": round(word.confidence, 6),
                **({"punctuated_word": word.text} if punctuates else {}),
            }
            for word in words
        ],
    }


def metadata(listen: Listen, request_id: str, created: str, duration_s: float, sha256: str) -> Message:
    model = listen.start.model
    return {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": sha256,
        "created": created,
        "duration": duration_s,
        "channels": listen.start.n_streams,
        "models": [model_uuid(model)],
        "model_info": {model_uuid(model): model_info(model)},
    }


def speech_started(channel: int, n_channels: int, timestamp_s: float) -> Message:
    return {"type": "SpeechStarted", "channel": [channel, n_channels], "timestamp": timestamp_s}


def utterance_end(channel: int, n_channels: int, last_word_end_s: float) -> Message:
    return {"type": "UtteranceEnd", "channel": [channel, n_channels], "last_word_end": last_word_end_s}


def schema_error(text: str, why: str) -> Message:
    description = f"Could not deserialize last text message: {why}"
    return {"type": "Error", "variant": "SchemaError", "description": description, "message": text[:1000]}
