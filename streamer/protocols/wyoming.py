"""Wyoming, the protocol of Home Assistant (rhasspy/wyoming 1.10), as a speech-to-text service: sans I/O.

An event is a JSON line, `data_length` bytes of JSON, and `payload_length` bytes. A connection may ask what there is
(`describe`), and bring one utterance after the other: `transcribe`, `audio-start`, many `audio-chunk`, `audio-stop`.
Each is a stream of its own, answered by `transcript`, before it by a `transcript-chunk` for each segment as it ends.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from core.beam import HOTWORD_WEIGHT
from core.transcript import Event, Transcript
from streamer import __version__
from streamer.dialect import Dialect
from streamer.hotwords import LETTERS, MOST, HotWords, bounded
from streamer.intake import Intake
from streamer.job import Item, Opening
from streamer.protocols.native import Message, Start, shown, to_json
from streamer.session import INTERNAL, POLICY, TRY_LATER, SessionLimits

VERSION = "1.10.2"  # of the protocol
LINE_BYTES = 1 << 16  # that the reference reader takes at most
DATA_BYTES, PAYLOAD_BYTES = 1 << 20, 1 << 22
RATES, WIDTHS, CHANNELS = (4_000, 192_000), (1, 4), (1, 8)  # least and most: Hz, bytes a sample, channels
ATTRIBUTION = {"name": "streamer", "url": "https://github.com/rhasspy/wyoming"}
LANGUAGE = "en"  # of models whose own is not known


class FramingError(Exception):
    """What came is not a sequence of events; nothing after it can be read."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event."""

    kind: str
    data: Mapping[str, object] = field(default_factory=dict)
    payload: bytes = b""

    def encode(self) -> bytes:
        data = to_json(self.data).encode()
        header: Message = {"type": self.kind, "version": VERSION, "data_length": len(data)}
        if self.payload:
            header["payload_length"] = len(self.payload)
        return json.dumps(header).encode() + b"\n" + data + self.payload


class Reader:
    """Bytes, cut anywhere, to events."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def push(self, data: bytes) -> list[Told]:
        """Raises FramingError."""
        self.buffer += data
        events = []
        while (event := self.take()) is not None:
            events.append(event)
        return events

    def take(self) -> Told | None:
        end = self.buffer.find(b"\n", 0, LINE_BYTES)
        if end < 0:
            if len(self.buffer) >= LINE_BYTES:
                raise FramingError(f"expected a line of at most {LINE_BYTES} bytes")
            return None
        header = parse_object(bytes(self.buffer[:end]))
        kind = header.get("type")
        if not isinstance(kind, str):
            raise FramingError(f"expected an event with a type. Found: {shown(kind)}")
        n_data = length(header, "data_length", DATA_BYTES)
        n_payload = length(header, "payload_length", PAYLOAD_BYTES)
        start = end + 1
        if len(self.buffer) < start + n_data + n_payload:
            return None
        inline = header.get("data")
        data = dict(inline) if isinstance(inline, dict) else {}
        if n_data:
            data |= parse_object(bytes(self.buffer[start : start + n_data]))
        payload = bytes(self.buffer[start + n_data : start + n_data + n_payload])
        del self.buffer[: start + n_data + n_payload]
        return Told(kind, data, payload)


def parse_object(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise FramingError(f"expected JSON: {e}") from e
    if not isinstance(value, dict):
        raise FramingError(f"expected a JSON object. Found: {type(value).__name__}")
    return value


def length(header: Mapping[str, object], name: str, most: int) -> int:
    value = header.get(name) or 0
    if not isinstance(value, int) or not 0 <= value <= most:
        raise FramingError(f"{name} must be a whole number up to {most}. Found: {shown(value)}")
    return value


def info(models: Mapping[str, str]) -> Message:
    """What this service offers. Clients fail where a field is missing, and offer no model without a language.

    Args:
        models: with the language of each.
    """
    listed = [
        {
            "name": model,
            "attribution": ATTRIBUTION,
            "installed": True,
            "description": model,
            "version": __version__,
            "languages": [language],
        }
        for model, language in models.items()
    ]
    program = {
        "name": "streamer",
        "attribution": ATTRIBUTION,
        "installed": True,
        "description": "Streaming speech recognition",
        "version": __version__,
        "models": listed,
        "supports_transcript_streaming": True,
        "requires_external_vad": True,
    }
    return {"asr": [program], **{kind: [] for kind in ("tts", "handle", "intent", "wake", "mic", "snd")}}


class Wyoming(Dialect):
    """One connection.

    Args:
        defaults: latency, endpoint and model.
        models: that `transcribe` may name, with their languages; any other name means the default.
    """

    def __init__(
        self,
        session_id: str,
        defaults: Start,
        models: Mapping[str, str] | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        super().__init__(session_id, limits)
        self.defaults = defaults
        self.start = defaults
        self.models = models or {defaults.model: LANGUAGE}
        self.reader = Reader()
        self.waiting: deque[Told] = deque()  # for the end of the utterance before
        self.language = self.models.get(defaults.model, LANGUAGE)
        self.width = 0  # bytes a sample; 0 outside an utterance
        self.is_finishing = False  # an utterance waits for its last words
        self.texts: list[str] = []  # of its segments

    # The client's side

    def receive_bytes(self, data: bytes) -> list[Item]:
        if self.is_ended:
            return []
        try:
            self.waiting += self.reader.push(data)
        except FramingError as e:
            self.fail(str(e), "bad-event")
        return self.work()

    def work(self) -> list[Item]:
        """Handles what came, up to the end of an utterance."""
        items: list[Item] = []
        while self.waiting and not self.is_finishing and not self.is_ended:
            event = self.waiting.popleft()
            try:
                if event.kind == "audio-start":
                    self.begin_utterance(event.data)
                    items.clear()  # of an utterance that is given up
                elif event.kind == "audio-chunk":
                    if not self.width:
                        self.begin_utterance(event.data)
                    items += self.push(to_int16(event.payload, self.width))
                elif event.kind == "audio-stop":
                    items += self.end_utterance()
                else:
                    self.answer(event)
            except ValueError as e:
                self.fail(str(e), "bad-audio")
        return items

    def answer(self, event: Told) -> None:
        """Events around the audio; those that are not known mean nothing."""
        if event.kind == "describe":
            self.tell("info", info(self.models))
        elif event.kind == "ping":
            self.tell("pong", {"text": event.data.get("text")})
        elif event.kind == "transcribe":
            language, name = event.data.get("language"), event.data.get("name")
            named = isinstance(name, str) and name in self.models
            model = str(name) if named else self.defaults.model
            self.language = language if isinstance(language, str) else self.models.get(model, LANGUAGE)
            self.start = replace(self.defaults, model=model, hotwords=biasing(event.data))

    def begin_utterance(self, audio: Mapping[str, object]) -> None:
        """Raises ValueError where its format cannot be read."""
        rate = number(audio, "rate", *RATES)
        self.width = number(audio, "width", *WIDTHS)
        channels = number(audio, "channels", *CHANNELS)
        self.texts = []
        config, note = self.start.config(), f"wyoming, {rate} Hz"
        opening = Opening(
            config, self.start.model, partials=False, is_patient=True, note=note, hotwords=self.start.hotwords
        )
        self.begin(opening, Intake(rate, "pcm_s16le", channels))
        self.tell("transcript-start", {"language": self.language})

    def end_utterance(self) -> list[Item]:
        if not self.width:
            self.conclude()
            return []
        self.is_finishing = True
        return self.finish_stream()

    def finish(self) -> list[Item]:
        """No more audio, at our wish."""
        if self.is_ended:
            return []
        self.is_ended = True
        if self.is_finishing:
            return []
        if not self.width:
            self.end(*self.farewell)
            return []
        return self.end_utterance()

    @property
    def is_behind(self) -> bool:
        return super().is_behind or self.is_finishing

    # The engine's side

    def on_event(self, event: Event, channel: int) -> None:
        if isinstance(event, Transcript) and event.is_final and event.text:
            self.tell("transcript-chunk", {"text": " " + event.text if self.texts else event.text})
            self.texts.append(event.text)

    def on_finished(self) -> list[Item]:
        self.conclude()
        if self.is_ended:
            self.end(*self.farewell)
        return self.work()

    def conclude(self) -> None:
        self.tell("transcript", {"text": " ".join(self.texts), "language": self.language})
        self.tell("transcript-stop")
        self.texts, self.width, self.is_finishing = [], 0, False

    def on_failed(self, code: str, message: str) -> None:
        self.fail(message, code, INTERNAL)

    def refuse(self, message: str) -> None:
        self.fail(message, "busy", TRY_LATER)

    def fail(self, text: str, code: str, close_code: int = POLICY) -> None:
        """Home Assistant waits for a transcript or the end of the connection, not for an error."""
        self.tell("error", {"text": text, "code": code})
        self.end(close_code, code)

    def tell(self, kind: str, data: Mapping[str, object] | None = None) -> None:
        self.say(Told(kind, data or {}).encode())


def biasing(data: Mapping[str, object]) -> HotWords:
    """`transcript_names`, which count more, and `transcript_terms`: as many as a session may have."""
    words: list[tuple[str, float]] = []
    for key, weight in (("transcript_names", 1.25 * HOTWORD_WEIGHT), ("transcript_terms", HOTWORD_WEIGHT)):
        listed = data.get(key)
        texts = listed if isinstance(listed, list) else []
        words += [(text, weight) for text in texts if isinstance(text, str) and len(text) <= LETTERS]
    return bounded(words[:MOST])


def number(audio: Mapping[str, object], name: str, least: int, most: int) -> int:
    value = audio.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}. Found: {shown(value)}")
    return value


def to_int16(payload: bytes, width: int) -> bytes:
    """Little-endian samples of 1 to 4 bytes to 2; those of one byte are unsigned. Half a sample at the end is none."""
    if width == 2:
        return payload
    values = np.frombuffer(payload[: len(payload) - len(payload) % width], np.uint8).reshape(-1, width)
    if width == 1:
        return ((values[:, 0].astype("<i2") - 128) << 8).astype("<i2").tobytes()
    return values[:, -2:].tobytes()
