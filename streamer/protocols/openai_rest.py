"""OpenAI's file transcription, sans I/O: form fields in, reply bodies and server-sent events out.

https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.beam import HOTWORD_WEIGHT
from core.captions import to_srt, to_vtt
from core.transcript import Transcript
from streamer.hotwords import HotWords, bounded

FORMATS = {"json": "application/json", "verbose_json": "application/json", "text": "text/plain"}
FORMATS |= {"srt": "text/plain", "vtt": "text/vtt"}
GRANULARITIES = ("word", "segment")
KINDS = {400: "invalid_request_error", 401: "invalid_request_error", 403: "invalid_request_error"}
KINDS |= {404: "invalid_request_error", 413: "invalid_request_error"}


class FormError(ValueError):
    """A field that cannot be; the message is for the client."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Form:
    """What a client asks for, besides the file."""

    model: str = ""  # empty: whatever the server has
    format: str = "json"
    streams: bool = False  # as server-sent events
    granularities: tuple[str, ...] = ("segment",)
    language: str = ""
    hotwords: HotWords = ()


def parse(fields: Sequence[tuple[str, str]], models: Sequence[str]) -> Form:
    """The fields of a form, but for the file. Unknown ones are ignored; so are model names of other services.

    Raises:
        FormError: a value is none of those allowed.
    """
    one = {name: value.strip() for name, value in fields}
    format = one.get("response_format") or "json"
    if format not in FORMATS:
        raise FormError("response_format", f"expected a response_format of {', '.join(FORMATS)}. Found: {format!r}")
    streams = one.get("stream", "").lower() or "false"
    if streams not in ("true", "false"):
        raise FormError("stream", f"expected stream to be true or false. Found: {streams!r}")
    wanted = tuple(value for name, value in fields if name in ("timestamp_granularities[]", "timestamp_granularities"))
    for value in wanted:
        if value not in GRANULARITIES:
            raise FormError("timestamp_granularities", f"expected {' or '.join(GRANULARITIES)}. Found: {value!r}")
    if "word" in wanted and format != "verbose_json":
        raise FormError("timestamp_granularities", "expected response_format verbose_json, which alone has words")
    check_temperature(one.get("temperature") or "0")
    try:
        keywords = [value for name, value in fields if name in ("keywords[]", "keywords")]
        hotwords = bounded((word, HOTWORD_WEIGHT) for word in keywords)
    except ValueError as e:
        raise FormError("keywords", str(e)) from e
    model = one.get("model", "")
    return Form(
        model if model in models else "",
        format,
        streams == "true",
        wanted or ("segment",),
        one.get("language", ""),
        hotwords,
    )


def check_temperature(text: str) -> None:
    """Decoding here has none, but clients send it."""
    try:
        is_right = 0 <= float(text) <= 1
    except ValueError:
        is_right = False
    if not is_right:
        raise FormError("temperature", f"expected a temperature between 0 and 1. Found: {text!r}")


def text_of(finals: Sequence[Transcript]) -> str:
    return " ".join(final.text for final in finals)


def reply(form: Form, finals: Sequence[Transcript], duration_s: float) -> str:
    """The body, in the format that was asked for."""
    if form.format == "text":
        return text_of(finals) + "\n"
    if form.format == "srt":
        return to_srt(finals)
    if form.format == "vtt":
        return to_vtt(finals)
    body: dict[str, Any] = {"text": text_of(finals)}
    if form.format == "verbose_json":
        language = form.language or "english"
        body = {"task": "transcribe", "language": language, "duration": duration_s, **body}
        if "word" in form.granularities:
            words = (word for final in finals for word in final.words)
            body["words"] = [{"word": word.text, "start": word.start_s, "end": word.end_s} for word in words]
        if "segment" in form.granularities:
            body["segments"] = [segment_object(i, final) for i, final in enumerate(finals)]
    return json.dumps({**body, "usage": {"type": "duration", "seconds": math.ceil(duration_s)}}, ensure_ascii=False)


def segment_object(number: int, final: Transcript) -> dict[str, Any]:
    """The fields that Whisper has no counterpart for here are at their neutral values: clients require them."""
    sure = [math.log(max(word.confidence, 1e-4)) for word in final.words]
    return {
        "id": number,
        "seek": 0,
        "start": final.start_s,
        "end": final.end_s,
        "text": f" {final.text}",
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(sure) / max(1, len(sure)), 4),
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }


class Deltas:
    """Transcripts as text that only grows: committed words as they come, and the whole at the end."""

    def __init__(self) -> None:
        self.text = ""
        self.begin()

    def begin(self) -> None:
        """Another stream comes, whose segments count from 0."""
        self.segment = -1
        self.n_words = 0  # of the running segment, said already

    def add(self, transcript: Transcript) -> str:
        """What this transcript adds; empty where it commits nothing new."""
        if transcript.segment != self.segment:
            self.segment, self.n_words = transcript.segment, 0
        new = [word.text for word in transcript.words[self.n_words : transcript.n_committed_words]]
        self.n_words += len(new)
        delta = " ".join(new)
        if delta and self.text:
            delta = f" {delta}"
        self.text += delta
        return delta


def delta_event(delta: str) -> str:
    return sent({"type": "transcript.text.delta", "delta": delta})


def done_events(text: str) -> str:
    return sent({"type": "transcript.text.done", "text": text}) + "data: [DONE]\n\n"


def error_event(status: int, message: str, code: str) -> str:
    return sent(error_object(status, message, code))


def sent(event: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def error_object(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    kind = KINDS.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_object(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "streamer"}


def model_list(names: Sequence[str]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(name) for name in names]}
