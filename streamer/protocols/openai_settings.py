"""The settings of an OpenAI realtime transcription session: merged from updates, shown, and as a stream's.

The GA dialect nests them under `audio.input`; the beta dialect has them flat, under other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.audio import HOP, SAMPLE_RATE
from core.beam import HOTWORD_WEIGHT
from core.endpoint import EndpointConfig
from core.windows import StreamConfig
from streamer.hotwords import HotWords, bounded
from streamer.protocols.native import Message, Start, shown

FORMATS = {"audio/pcm": ("pcm_s16le", 24_000), "audio/pcmu": ("mulaw", 8_000), "audio/pcma": ("alaw", 8_000)}
BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
RATES = (8_000, 48_000)  # of `audio/pcm`; the service itself takes 24000 alone
VAD: dict[str, Any] = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}
PATIENCE_MS = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}  # eagerness of `semantic_vad`
SHORTEST_PAUSE_MS = 300  # within words there are quiet moments of less
LATENCIES = {"minimal": "low", "low": "low", "medium": "balanced", "high": "accurate", "xhigh": "accurate"}


class SettingsError(ValueError):
    """What the client sent cannot be; the message is for it."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Settings:
    """One session's. `transcription` and `noise_reduction` are kept as they came, to be shown again."""

    model: str = ""
    format: str = "audio/pcm"
    rate: int = 24_000
    transcription: Mapping[str, Any] = field(default_factory=dict)
    turn_detection: Mapping[str, Any] | None = field(default_factory=lambda: VAD)
    noise_reduction: Mapping[str, Any] | None = None
    include: Sequence[str] | None = None

    @property
    def finds_turns(self) -> bool:
        """Whether pauses end items; else the client commits them."""
        return self.turn_detection is not None

    @property
    def padding_ms(self) -> int:
        return int((self.turn_detection or {}).get("prefix_padding_ms", 300))

    @property
    def encoding(self) -> str:
        return FORMATS[self.format][0]

    @property
    def stream(self) -> tuple[object, ...]:
        """What another stream is needed for when it changes."""
        said = self.transcription
        pause = None if self.turn_detection is None else self.pause_ms
        return (self.format, self.rate, pause, self.wanted_model, said.get("delay"), said.get("keywords"))

    @property
    def wanted_model(self) -> str:
        return str(self.transcription.get("model") or self.model)

    @property
    def pause_ms(self) -> int:
        """The silence that ends a turn."""
        detection = self.turn_detection or {}
        if detection.get("type") == "semantic_vad":
            return PATIENCE_MS[detection.get("eagerness") or "auto"]
        return max(SHORTEST_PAUSE_MS, int(detection.get("silence_duration_ms", 500)))

    def updated(self, session: object, is_beta: bool) -> Settings:
        """With what an update gives; keys that it lacks keep their value.

        Raises:
            SettingsError: a value is none of those allowed.
        """
        if not isinstance(session, Mapping):
            raise SettingsError("session", f"expected an object. Found: {shown(session)}")
        if not is_beta and session.get("type", "transcription") != "transcription":
            raise SettingsError(
                "session.type", f"this server transcribes: expected transcription. Found: {shown(session['type'])}"
            )
        found = flattened(session) if is_beta else nested(session)
        changes: dict[str, Any] = {}
        if found.get("format") is not None:
            changes["format"], changes["rate"] = parse_format(found["format"])
        if "transcription" in found:
            said = check_object(found["transcription"] or {}, "transcription")
            check_keywords(said)
            changes["transcription"] = {**self.transcription, **said} if said else {}
        if "turn_detection" in found:
            changes["turn_detection"] = parse_detection(found["turn_detection"], self.turn_detection or VAD)
        if "noise_reduction" in found:
            changes["noise_reduction"] = found["noise_reduction"]
        if "include" in session:
            changes["include"] = session["include"]
        return replace(self, **changes)

    def start(self, defaults: Start, models: Sequence[str]) -> Start:
        model = self.wanted_model if self.wanted_model in models else defaults.model
        latency = LATENCIES.get(str(self.transcription.get("delay")), defaults.latency)
        encoding, _ = FORMATS[self.format]
        words = check_keywords(self.transcription)
        return replace(
            defaults, model=model, latency=latency, encoding=encoding, sample_rate=self.rate, channels=1, hotwords=words
        )

    def config(self, start: Start) -> StreamConfig:
        """Without turn detection a pause ends nothing, but a segment of the longest length still does."""
        longest = EndpointConfig().max_length // 2
        frames = self.pause_ms * SAMPLE_RATE // 1000 // HOP if self.finds_turns else longest
        return StreamConfig.preset(start.latency, endpoint=EndpointConfig(after_speech=min(frames, longest)))

    def shown(self, session_id: str, is_beta: bool) -> Message:
        """The whole session, as the dialect has it."""
        said = {"model": self.model or None, "language": None, "prompt": "", **self.transcription}
        if is_beta:
            names = {ours: theirs for theirs, ours in BETA_FORMATS.items()}
            return {
                "id": session_id,
                "object": "realtime.transcription_session",
                "input_audio_format": names[self.format],
                "input_audio_transcription": said,
                "turn_detection": self.turn_detection,
                "input_audio_noise_reduction": self.noise_reduction,
            }
        format: Message = {"type": self.format}
        if self.format == "audio/pcm":
            format["rate"] = self.rate
        return {
            "type": "transcription",
            "id": session_id,
            "object": "realtime.transcription_session",
            "audio": {
                "input": {
                    "format": format,
                    "transcription": said,
                    "noise_reduction": self.noise_reduction,
                    "turn_detection": self.turn_detection,
                }
            },
            "include": self.include,
        }


def nested(session: Mapping[str, Any]) -> Mapping[str, Any]:
    audio = check_object(session.get("audio") or {}, "session.audio")
    return check_object(audio.get("input") or {}, "session.audio.input")


def flattened(session: Mapping[str, Any]) -> Mapping[str, Any]:
    names = {"input_audio_transcription": "transcription", "input_audio_noise_reduction": "noise_reduction"}
    names["turn_detection"] = "turn_detection"
    found = {ours: session[theirs] for theirs, ours in names.items() if theirs in session}
    name = session.get("input_audio_format")
    if name is not None:
        if not isinstance(name, str) or name not in BETA_FORMATS:
            raise SettingsError("input_audio_format", f"expected {', '.join(BETA_FORMATS)}. Found: {shown(name)}")
        found["format"] = {"type": BETA_FORMATS[name]}
    return found


def check_object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(name, f"expected an object. Found: {shown(value)}")
    return value


def parse_format(value: object) -> tuple[str, int]:
    format = check_object(value, "session.audio.input.format")
    kind = format.get("type")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise SettingsError("session.audio.input.format.type", f"expected {', '.join(FORMATS)}. Found: {shown(kind)}")
    rate = format.get("rate") or FORMATS[kind][1]
    allowed = RATES if kind == "audio/pcm" else (8_000, 8_000)
    if not isinstance(rate, int) or not allowed[0] <= rate <= allowed[1]:
        raise SettingsError("session.audio.input.format.rate", f"expected {FORMATS[kind][1]}. Found: {shown(rate)}")
    return kind, rate


def parse_detection(value: object, before: Mapping[str, Any]) -> Mapping[str, Any] | None:
    name = "session.audio.input.turn_detection"
    if value is None:
        return None
    given = check_object(value, name)
    kind = given.get("type", "server_vad")
    if kind == "semantic_vad":
        eagerness = given.get("eagerness") or "auto"
        if not isinstance(eagerness, str) or eagerness not in PATIENCE_MS:
            raise SettingsError(
                f"{name}.eagerness", f"expected {', '.join(PATIENCE_MS)}. Found: {shown(given['eagerness'])}"
            )
        return {"type": kind, "eagerness": eagerness}
    if kind != "server_vad":
        raise SettingsError(f"{name}.type", f"expected server_vad or semantic_vad. Found: {shown(kind)}")
    merged = {**(before if before.get("type") == kind else VAD), **{k: v for k, v in given.items() if v is not None}}
    for key, most in (("prefix_padding_ms", 10_000), ("silence_duration_ms", 10_000), ("threshold", 1)):
        number = merged[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
            raise SettingsError(f"{name}.{key}", f"expected a number from 0 to {most}. Found: {shown(number)}")
    return merged


def check_keywords(said: Mapping[str, Any]) -> HotWords:
    words = said.get("keywords") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise SettingsError("transcription.keywords", f"expected a list of strings. Found: {shown(words)}")
    try:
        return bounded((word, HOTWORD_WEIGHT) for word in words)
    except ValueError as e:
        raise SettingsError("transcription.keywords", str(e)) from e
